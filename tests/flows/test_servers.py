"""Both real servers from the pinned versions: up is idempotent, runs show in them, down ends exactly its own."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml

from flows import servers
from flows.lineage import from_mlflow
from flows.recipe import presets
from flows.run import known_stages
from flows.settings import Settings, authorization, credentials
from gpt.errors import UserError

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("servers")
        patch.setenv("GPTLOOM_HOME", str(home))
        patch.setenv("GPTLOOM_STORE", str(home / "store"))
        running = servers.up({"prefect": servers.free_port(0), "mlflow": servers.free_port(0)}, auth=True)
        yield home, running
        patch.setenv("GPTLOOM_HOME", str(home))
        servers.down()


@pytest.fixture
def at_home(up, monkeypatch):
    monkeypatch.setenv("GPTLOOM_HOME", str(up[0]))
    return up[1]


def gptloom(recipe, store, *switches):
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "--store", str(store), "--json", *switches]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(400)
def test_a_run_is_a_prefect_flow_and_a_rerun_shows_cached_with_its_lineage_in_mlflow(
    at_home, prefect_api, tiny_recipe, tmp_path
):
    prefect = prefect_api(at_home["prefect"].url)
    first = gptloom(tiny_recipe, tmp_path / "store")
    again = gptloom(tiny_recipe, tmp_path / "store")
    assert {s["cache"] for s in again["stages"]} == {"hit", "absent"}
    assert [s["digest"] for s in again["stages"]] == [s["digest"] for s in first["stages"]]
    flows = prefect.ask("/flow_runs/filter", sort="START_TIME_ASC")
    assert [(run["name"], run["state"]["name"]) for run in flows] == [("tiny", "Completed")] * 2
    tasks = prefect.ask("/task_runs/filter", flow_runs={"id": {"any_": [flows[1]["id"]]}})
    assert {task["name"] for task in tasks} == set(known_stages()) - {"filter"}
    assert {task["state"]["name"] for task in tasks} == {"Cached"}
    inputs = {task["name"]: {i["id"] for port in task["task_inputs"].values() for i in port} for task in tasks}
    ids = {task["name"]: task["id"] for task in tasks}
    assert inputs["shard"] == {ids["dedup"], ids["tokenizer"]}, "the UI draws its arrows from these"
    (tmp_path / "store").rename(tmp_path / "gone")
    tree = from_mlflow("models:/gptloom@challenger", servers.tracking())
    text = json.dumps(tree)
    assert all(f'"{stage}:' in text for stage in ("export", "sft", "pretrain", "shard", "dedup", "ingest", "chats"))
    assert "docs.jsonl" in text
    home = Path(os.environ["GPTLOOM_HOME"])
    secrets = [credentials()[name].encode() for name in ("password", "key")]
    files = [file for root in (home, tmp_path / "gone") for file in root.rglob("*") if file.is_file()]
    told = [file for file in files if any(secret in file.read_bytes() for secret in secrets)]
    assert told == [home / "auth.json"], "no log, parameter or artifact holds a secret"
    assert told[0].stat().st_mode & 0o777 == 0o600


DATA = [
    ("prefect", "/api/work_pools/gptloom", None),
    ("prefect", "/api/admin/settings", None),
    ("mlflow", "/api/2.0/mlflow/experiments/search?max_results=1", None),
    ("mlflow", "/api/2.0/mlflow/runs/search", b'{"experiment_ids": ["0"]}'),
    ("mlflow", "/ajax-api/2.0/mlflow/experiments/get?experiment_id=0", None),
    ("mlflow", "/get-artifact?path=x&run_uuid=y", None),
]


@pytest.mark.parametrize(("server", "path", "body"), DATA)
def test_nobody_gets_data_without_the_password_or_from_a_foreign_page(at_home, server, path, body):
    own = {"Content-Type": "application/json"}
    assert refusal(at_home[server], path, body, own) == 401
    own |= authorization()
    for foreign in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert refusal(at_home[server], path, body, own | foreign) == 403
    assert refusal(at_home[server], path, body, own) not in (401, 403)


def refusal(server, path, body, headers):
    """The status of an answer."""
    try:
        with urlopen(Request(server.url + path, body, headers), timeout=10) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def test_up_twice_starts_nothing_new(at_home):
    assert servers.up({}) == at_home


def test_the_commands_of_the_operations_page_tell_where_everything_is(at_home):
    for command in ("up", "status", "deploy", "sync"):
        done = subprocess.run([sys.executable, "-m", "flows.cli", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if command in ("up", "status"):
            assert all(
                f"{server.name:<8} {server.url}  up (pid {server.pid})" in done.stdout for server in at_home.values()
            )
            assert "user and password stand in" in done.stdout


def test_a_stranger_with_a_noted_pid_is_not_ours_whatever_the_clock_says(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLOOM_HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    noted = tmp_path / "run" / "mlflow"
    noted.write_text(str(os.getpid()))
    assert servers.pid_of("mlflow") is None, "that pid is another's now, as after a reboot"
    sleeper = subprocess.Popen(["sleep", "60"], env={servers.MARK: str(noted)})
    noted.write_text(str(sleeper.pid))
    os.utime(noted, (0, 0))
    for _ in range(500):
        if servers.pid_of("mlflow"):
            break
        time.sleep(0.01)  # a process that has just begun has no environment yet
    assert servers.pid_of("mlflow") == sleeper.pid
    sleeper.kill()
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert servers.pid_of("mlflow") is None, "a zombie serves nobody"
    sleeper.wait()


def test_a_service_that_ends_at_once_does_not_hang_up(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLOOM_HOME", str(tmp_path))
    monkeypatch.setattr(servers, "words", lambda name, settings: ["/nonexistent"])
    with pytest.raises(UserError, match="prefect stopped after 0 s; its log says why"):
        servers.up({"prefect": servers.free_port(0), "mlflow": servers.free_port(0)})


def test_two_servers_never_get_one_port(monkeypatch):
    monkeypatch.setattr(servers, "known", dict)
    usual = servers.PORTS["mlflow"]
    with pytest.raises(UserError, match="is taken or not allowed"):
        servers.chosen({"prefect": 45871, "mlflow": 45871}, None, None, None)
    assert servers.chosen({"prefect": usual}, None, None, None).ports["mlflow"] != usual


def test_another_server_gets_no_password_of_ours(at_home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    servers.connect()
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
    assert "PREFECT_API_AUTH_STRING" in os.environ


def test_deploy_keeps_what_people_set_in_the_ui(at_home, prefect_api):
    prefect = prefect_api(at_home["prefect"].url)
    (there,) = prefect.ask("/deployments/filter", deployments={"name": {"any_": ["refresh"]}})
    slot = there["schedules"][0]["id"]
    path = f"{prefect.url}/api/deployments/{there['id']}"
    change(prefect, f"{path}/schedules/{slot}", {"active": True, "schedule": {"cron": "5 4 * * *", "timezone": "UTC"}})
    change(prefect, path, {"parameters": {"recipe": "mine.yaml", "train": True}})
    change(prefect, f"{prefect.url}/api/v2/concurrency_limits/gpu", {"limit": 3})
    done = subprocess.run([sys.executable, "-m", "flows.cli", "deploy"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (after,) = prefect.ask("/deployments/filter", deployments={"name": {"any_": ["refresh"]}})
    assert after["parameters"] == {"recipe": "mine.yaml", "train": True}
    assert [(s["active"], s["schedule"]["cron"]) for s in after["schedules"]] == [(True, "5 4 * * *")]
    assert prefect.ask("/v2/concurrency_limits/gpu")["limit"] == 3


def change(prefect, url, body):
    """A PATCH, as the UI sends it."""
    with urlopen(Request(url, json.dumps(body).encode(), prefect.headers, method="PATCH"), timeout=30) as answer:
        assert answer.status == 204


def test_a_service_knows_its_pid_even_if_up_is_killed_right_after_it_started_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLOOM_HOME", str(tmp_path))
    code = "import os; from flows import servers; from flows.settings import Settings; servers.pid_of = os._exit;"
    code += f"s = Settings(ports={{'mlflow': {servers.free_port(0)}}}); s.save(); servers.start('mlflow', s)"
    subprocess.run([sys.executable, "-c", code], check=False)
    time.sleep(1)
    assert list(servers.known()) == ["mlflow"]
    assert servers.down() == ["mlflow"]
    assert servers.known() == {}


def test_a_service_is_known_from_the_moment_that_its_start_returns(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLOOM_HOME", str(tmp_path))
    monkeypatch.setattr(servers, "words", lambda *_: ["sleep", "60"])
    real, asked = {name: getattr(psutil.Process, name) for name in ("cmdline", "environ")}, []

    def through_exec(name, as_shell, amid):
        """What Linux tells at the first look, at the second, and later; under load the second was seen to last."""

        def tell(process):
            asked.append(name)
            return (as_shell, amid, real[name](process))[min(len(asked), 3) - 1]

        monkeypatch.setattr(psutil.Process, name, tell)

    through_exec("cmdline", ["sh"], [])
    through_exec("environ", {servers.MARK: str(tmp_path / "run" / "mlflow")}, {})
    settings = Settings(ports={"mlflow": 1})
    settings.save()
    servers.start("mlflow", settings)
    assert list(servers.known()) == ["mlflow"]
    assert servers.down() == ["mlflow"]


def test_a_server_that_runs_elsewhere_than_at_the_given_port_is_refused(at_home):
    refusal = r"prefect already runs at .*; stop it with `gptloom down`, or name nothing else"
    for other in ({"ports": {"prefect": 1}}, {"ports": {}, "auth": False}, {"ports": {}, "store": Path("/elsewhere")}):
        with pytest.raises(UserError, match=refusal):
            servers.up(**other)
    port = int(at_home["prefect"].url.rsplit(":", 1)[1])
    assert servers.up({"prefect": port})["prefect"] == at_home["prefect"]


def test_servers_listen_on_loopback_only(at_home):
    for server in at_home.values():
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        heard = {c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert heard == {"127.0.0.1"}, heard


def test_down_ends_every_process_of_up(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLOOM_HOME", str(tmp_path / "h"))
    settings = Settings(ports={"mlflow": servers.free_port(0)})
    settings.save()
    servers.start("mlflow", settings)
    parent = psutil.Process(servers.known()["mlflow"].pid)
    family = [parent, *parent.children(recursive=True)]
    assert servers.down() == ["mlflow"]
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    assert servers.known() == {}


def test_a_killed_server_comes_back_at_its_old_address(at_home):
    for name in ("mlflow", "worker"):
        psutil.Process(at_home[name].pid).kill()
        psutil.Process(at_home[name].pid).wait()
    assert set(servers.known()) == {"prefect"}
    back = servers.up({})
    assert {name: server.url for name, server in back.items()} == {n: s.url for n, s in at_home.items()}
    assert back["prefect"] == at_home["prefect"], "what lives stays"


@pytest.fixture
def slow_servers(monkeypatch):
    """Services that take a while to start and do nothing; the names of those that were started."""
    started = []

    def words(name, settings):
        started.append(name)
        time.sleep(0.3)
        return ["sleep", "60"]

    monkeypatch.setattr(servers, "words", words)
    monkeypatch.setattr(servers, "deploy", lambda _: None)
    monkeypatch.setattr(servers, "await_answers", lambda _: None)
    yield started
    servers.down()


def test_two_ups_at_once_start_each_server_once(slow_servers):
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(servers.up, [{}, {}])
    assert slow_servers == ["prefect", "mlflow", "worker"]
    assert one == two == servers.known()


def test_down_survives_a_server_that_ends_meanwhile(monkeypatch):
    gone = subprocess.Popen(["sleep", "60"])
    process = psutil.Process(gone.pid)
    gone.kill()
    gone.wait()
    monkeypatch.setattr(servers, "known", lambda: {"mlflow": servers.Server("mlflow", "http://127.0.0.1:9", gone.pid)})
    monkeypatch.setattr(servers, "family", lambda _: [process])
    assert servers.down() == ["mlflow"]


def test_every_stage_and_preset_can_be_started_from_the_ui():
    named = {
        d["entrypoint"].rpartition(".")[2]
        for d in yaml.safe_load((servers.ROOT / "prefect.yaml").read_text())["deployments"]
    }
    wanted = {*known_stages(), *(name.replace("-", "_") for name in presets()), "gptloom", "refresh", "promote"}
    assert named == wanted, "prefect.yaml has one line for each"
