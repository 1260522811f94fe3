"""SIGKILL of each service in the middle of a run: nothing but time is lost, and no secret was ever written anywhere.

All services as `up --auth --database` starts them, PostgreSQL by infra/local/postgres.sh.
"""

import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
from sqlalchemy.engine import make_url

from flows import servers
from flows.settings import credentials

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]
VICTIMS = ["prefect", "mlflow", "worker", "postgres"]


@pytest.fixture(scope="module")
def stack(new_postgres, tmp_path_factory):
    """(home, address of the database, folder of the database)."""
    url, folder = new_postgres()
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("stack")
        patch.setenv("GPTLOOM_HOME", str(home))
        patch.setenv("GPTLOOM_STORE", str(home / "store"))
        servers.up({"prefect": servers.free_port(0), "mlflow": servers.free_port(0)}, auth=True, database=url)
        yield home, url, folder
        patch.setenv("GPTLOOM_HOME", str(home))
        servers.down()


@pytest.fixture
def at_home(stack, monkeypatch):
    monkeypatch.setenv("GPTLOOM_HOME", str(stack[0]))
    monkeypatch.setenv("GPTLOOM_STORE", str(stack[0] / "store"))
    return stack


def settings(recipe, seed):
    """The tiny recipe with a pretraining of about half a minute."""
    made = yaml.safe_load(Path(recipe).read_text()) | {"name": f"seed {seed}"}
    made["pretrain"] |= {"seed": seed, "steps": 3000, "checkpoint_every": 300}
    return made


def training(store, seed):
    """The metrics.jsonl of the training with this seed, once it has lines."""
    files = [file for file in store.glob("pretrain/*/work/logs/metrics.jsonl") if file.stat().st_size]
    return [file for file in files if json.loads(file.with_name("run.json").read_text())["train"]["seed"] == seed]


def kill(victim, folder):
    """End a service the hard way, its helpers too where they live for it alone."""
    if victim == "postgres":
        pid = int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    else:
        processes = [psutil.Process(servers.known()[victim].pid)]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, 20)


def losses(store, seed):
    """The steps whose loss a finished training noted, and those that MLflow has, each as often as it has it."""
    from mlflow import MlflowClient

    made = [
        json.loads(file.read_text()) | {"at": file.parent} for file in store.glob("pretrain/*/current/artifact.json")
    ]
    (build,) = [one for one in made if one["config"]["seed"] == seed]
    lines = map(json.loads, (build["at"] / "logs" / "metrics.jsonl").read_text().splitlines())
    noted = [step for _, step, values in lines if "train/loss" in values]
    client = MlflowClient(servers.tracking())
    experiment = client.get_experiment_by_name("gptloom").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`gptloom.id` = '{build['tracking']['run']}'")
    return noted, sorted(point.step for point in client.get_metric_history(run.info.run_id, "train/loss"))


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_service_killed_in_mid_run_costs_time_and_nothing_else(victim, at_home, script, prefect_api, tiny_recipe):
    (home, url, folder), seed = at_home, VICTIMS.index(victim) + 1
    prefect = prefect_api(servers.known()["prefect"].url)
    run = prefect.start("pipeline", recipe=settings(tiny_recipe, seed))
    while not training(home / "store", seed):
        assert prefect.state(run)["type"] not in prefect.ENDS, prefect.state(run)
        time.sleep(0.2)
    killed = time.monotonic()
    kill(victim, folder)
    time.sleep(5)
    if victim == "postgres":
        assert script("local/postgres.sh", "start", folder, make_url(url).port).returncode == 0
    servers.up({})
    state = prefect.finished(run, 120)
    print(f"{victim}: {state} after {time.monotonic() - killed:.0f} s")
    assert state in ("Completed", "Crashed")
    if state == "Crashed":
        prefect.retry(run)
        time.sleep(3)
        assert prefect.finished(run) == "Completed"
    noted, arrived = losses(home / "store", seed)
    assert len(noted) >= 500
    assert arrived == noted


def test_no_secret_is_in_a_log_a_parameter_or_an_artifact(at_home, prefect_api, tiny_recipe):
    home, url, _ = at_home
    prefect = prefect_api(servers.known()["prefect"].url)
    assert prefect.finished(prefect.start("pipeline", recipe=settings(tiny_recipe, 9))) == "Completed"
    hidden = {**credentials(), "database": make_url(url).password}
    secrets = [str(hidden[name]).encode() for name in ("password", "key", "database")]
    private = {home / name for name in ("auth.json", "auth.ini", "servers.json")}
    assert {file.stat().st_mode & 0o777 for file in private} == {0o600}
    files = [file for file in home.rglob("*") if file.is_file() and file not in private]
    assert [file for file in files if any(secret in file.read_bytes() for secret in secrets)] == []
    for database in ("prefect", "mlflow", "mlflow_auth"):
        at = make_url(url).set(database=database).render_as_string(hide_password=False)
        dump = subprocess.run(["pg_dump", at], capture_output=True, check=True).stdout
        assert b"CREATE TABLE" in dump
        assert not any(secret in dump for secret in secrets), database
    lines = [" ".join(process.info["cmdline"] or []).encode() for process in psutil.process_iter(["cmdline"])]
    assert not any(secret in line for secret in secrets for line in lines)
