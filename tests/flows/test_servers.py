"""Both real servers from the pinned versions: up is idempotent, runs show in them, down ends exactly its own."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from flows import servers
from flows.lineage import from_mlflow
from flows.run import known_stages
from gpt.errors import UserError

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("servers")
        patch.setenv("GPTLOOM_HOME", str(home))
        running = servers.up({"prefect": servers.free_port(0), "mlflow": servers.free_port(0)})
        yield home, running
        patch.setenv("GPTLOOM_HOME", str(home))
        servers.down()


@pytest.fixture
def at_home(up, monkeypatch):
    monkeypatch.setenv("GPTLOOM_HOME", str(up[0]))
    return up[1]


def ask(server, path, **body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def gptloom(recipe, store, *switches):
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "--store", str(store), "--json", *switches]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(400)
def test_a_run_is_a_prefect_flow_and_a_rerun_shows_cached_with_its_lineage_in_mlflow(at_home, tiny_recipe, tmp_path):
    first = gptloom(tiny_recipe, tmp_path / "store")
    again = gptloom(tiny_recipe, tmp_path / "store")
    assert {s["cache"] for s in again["stages"]} == {"hit", "absent"}
    assert [s["digest"] for s in again["stages"]] == [s["digest"] for s in first["stages"]]
    flows = ask(at_home["prefect"], "/api/flow_runs/filter", sort="START_TIME_ASC")
    assert [(run["name"], run["state"]["name"]) for run in flows] == [("tiny", "Completed")] * 2
    tasks = ask(at_home["prefect"], "/api/task_runs/filter", flow_runs={"id": {"any_": [flows[1]["id"]]}})
    assert {task["name"] for task in tasks} == set(known_stages()) - {"filter"}
    assert {task["state"]["name"] for task in tasks} == {"Cached"}
    inputs = {task["name"]: {i["id"] for port in task["task_inputs"].values() for i in port} for task in tasks}
    ids = {task["name"]: task["id"] for task in tasks}
    assert inputs["shard"] == {ids["dedup"], ids["tokenizer"]}, "the UI draws its arrows from these"
    (tmp_path / "store").rename(tmp_path / "gone")
    tree = from_mlflow("models:/gptloom@challenger", at_home["mlflow"].url)
    text = json.dumps(tree)
    assert all(f'"{stage}:' in text for stage in ("export", "sft", "pretrain", "shard", "dedup", "ingest", "chats"))
    assert "docs.jsonl" in text


def test_up_twice_starts_nothing_new_and_a_noted_stranger_is_not_ours(at_home):
    assert {name: server.pid for name, server in servers.up({}).items()} == {n: s.pid for n, s in at_home.items()}
    stranger = servers.Server("prefect", "http://127.0.0.1:9", os.getpid(), 1.0)
    assert not stranger.alive


def test_a_server_that_runs_elsewhere_than_at_the_given_port_is_refused(at_home):
    with pytest.raises(UserError, match=r"prefect already runs at .*; stop it with `gptloom down`, or name no port"):
        servers.up({"prefect": 1})
    port = int(at_home["prefect"].url.rsplit(":", 1)[1])
    assert servers.up({"prefect": port})["prefect"] == at_home["prefect"]


def test_servers_listen_on_loopback_only(at_home):
    for server in at_home.values():
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        heard = {c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert heard == {"127.0.0.1"}, heard


def test_down_ends_every_process_of_up(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLOOM_HOME", str(tmp_path / "h"))
    running = servers.start("mlflow", servers.free_port(0))
    servers.note({"mlflow": running})
    family = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
    assert servers.down() == ["mlflow"]
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    assert servers.known() == {}


@pytest.fixture
def slow_servers(monkeypatch):
    """Servers that take a while to start and do nothing; the names of those that were started."""
    started, processes = [], []

    def start(name, port):
        started.append(name)
        time.sleep(0.3)
        processes.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return servers.Server(name, f"http://127.0.0.1:{port}", processes[-1].pid, time.time())

    monkeypatch.setattr(servers, "start", start)
    monkeypatch.setattr(servers, "await_answers", lambda _: None)
    yield started
    for process in processes:
        process.kill()
        process.wait()


def test_two_ups_at_once_start_each_server_once(slow_servers):
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(servers.up, [{}, {}])
    assert slow_servers == ["prefect", "mlflow"]
    assert one == two == servers.known()


def test_down_survives_a_server_that_ends_meanwhile(monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    noted = {"mlflow": servers.Server("mlflow", "http://127.0.0.1:9", gone.pid, 1.0)}
    monkeypatch.setattr(servers, "known", lambda: noted)
    assert servers.down() == ["mlflow"]
