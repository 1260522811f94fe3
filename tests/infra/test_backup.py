"""Back up while everything runs, lose everything, restore: the same runs, the same lineage, and a rerun is all hits."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from subprocess import DEVNULL
from unittest.mock import patch

import psutil
import pytest
from sqlalchemy.engine import make_url

from flows import servers


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A home and a store like those of `gptloom up`, made by hand: (home, store)."""
    home, store = tmp_path / "home", tmp_path / "store"
    for folder in (home / "prefect", home / "mlartifacts" / "1", home / "logs", store / "tracking" / "r1"):
        folder.mkdir(parents=True)
    for file in ("prefect/prefect.db", "mlflow.db"):
        with closing(sqlite3.connect(home / file)) as base:
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("CREATE TABLE t (x)")
            base.executemany("INSERT INTO t VALUES (?)", ((i,) for i in range(5000)))
            base.commit()
    (home / "auth.json").write_text("{}")
    (home / "auth.json").chmod(0o600)
    for file in ("servers.json", "logs/prefect.log", "mlartifacts/1/a picture.png"):
        (home / file).write_text(file)
    for file in ("events.jsonl", "delivered.json"):
        (store / "tracking" / "r1" / file).write_text(file)
    build = store / "ingest" / "key" / "0001"
    build.mkdir(parents=True)
    (build / "part").write_text("text")
    os.link(build / "part", build / "same part")
    (build.parent / "current").symlink_to("0001")
    monkeypatch.setenv("GPTLOOM_HOME", str(home))
    monkeypatch.setenv("GPTLOOM_STORE", str(store))
    return home, store


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


def test_a_backup_holds_all_but_what_belongs_to_the_machine_and_comes_back_as_it_was(small, script, tmp_path):
    home, store = small
    with closing(sqlite3.connect(home / "mlflow.db")) as busy:
        busy.execute("INSERT INTO t VALUES (-1)")  # never committed: a server in the middle of its work
        done = script("backup.sh", tmp_path / "backup")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o700, "it holds credentials"
    there = {"GPTLOOM_HOME": str(tmp_path / "home2"), "GPTLOOM_STORE": str(tmp_path / "store2")}
    done = script("restore.sh", tmp_path / "backup", **there)
    assert done.returncode == 0, done.stderr
    kept = {file for file in files(home) if not file.startswith(("logs/", "servers.json")) and ".db-" not in file}
    assert files(tmp_path / "home2") == kept
    assert files(tmp_path / "store2") == files(store)
    build = tmp_path / "store2" / "ingest" / "key" / "current"
    assert os.readlink(build) == "0001"
    assert os.path.samefile(build / "part", build / "same part")
    assert (tmp_path / "home2" / "auth.json").stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(tmp_path / "home2" / "mlflow.db")) as base:
        assert base.execute("SELECT count(*), min(x) FROM t").fetchone() == (5000, 0)


def flip(backup):
    part = backup / "store" / "ingest" / "key" / "0001" / "part"
    part.write_bytes(b"tex\x75")


def flip_the_list(backup):
    sums = bytearray((backup / "SHA256SUMS").read_bytes())
    sums[70] ^= 1
    (backup / "SHA256SUMS").write_bytes(sums)


def lose(backup):
    (backup / "home" / "auth.json").unlink()


def add(backup):
    (backup / "store" / "more").touch()


def point_elsewhere(backup):
    current = backup / "store" / "ingest" / "key" / "current"
    current.unlink()
    current.symlink_to("0002")


@pytest.mark.parametrize("damage", [flip, flip_the_list, lose, add, point_elsewhere])
def test_a_damaged_backup_is_refused_in_one_line_and_nothing_is_written(small, script, tmp_path, damage):
    assert script("backup.sh", tmp_path / "backup").returncode == 0
    damage(tmp_path / "backup")
    there = {"GPTLOOM_HOME": str(tmp_path / "home2"), "GPTLOOM_STORE": str(tmp_path / "store2")}
    done = script("restore.sh", tmp_path / "backup", **there)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "is damaged, first at ./" in done.stderr
    assert not (tmp_path / "home2").exists()
    assert not (tmp_path / "store2").exists()


@pytest.mark.parametrize(
    ("command", "target", "env", "problem"),
    [
        ("restore.sh", "backup", {}, "GPTLOOM_HOME .* is not empty"),
        ("restore.sh", "backup", {"GPTLOOM_HOME": "new"}, "GPTLOOM_STORE .* is not empty"),
        ("restore.sh", "store", {}, "has no SHA256SUMS"),
        ("restore.sh", "backup", {"GPTLOOM_HOME": "n", "GPTLOOM_STORE": "m", "GPTLOOM_DATABASE": "x"}, "SQLite files"),
        ("backup.sh", "backup", {}, "exists; name a new folder"),
        ("backup.sh", "store/b", {}, "lies inside of what is backed up"),
        ("backup.sh", "new", {"GPTLOOM_HOME": "none", "GPTLOOM_STORE": "none"}, "neither GPTLOOM_HOME"),
        ("backup.sh", "new", {"GPTLOOM_DATABASE": "mysql://a:b@c"}, "GPTLOOM_DATABASE must read postgresql://"),
        ("backup.sh", "new", {"GPTLOOM_DATABASE": "postgresql://a:b@c/prefect"}, "GPTLOOM_DATABASE must read"),
    ],
)
def test_what_cannot_be_is_one_line(small, script, tmp_path, command, target, env, problem):
    assert script("backup.sh", tmp_path / "backup").returncode == 0
    env = {name: value if "DATABASE" in name else str(tmp_path / value) for name, value in env.items()}
    before = files(tmp_path)
    done = script(command, tmp_path / target, **env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert re.search(problem, done.stderr), done.stderr
    assert files(tmp_path) == before


def test_a_backup_that_fails_leaves_nothing(small, script, tmp_path):
    home, _ = small
    (home / "mlflow.db").write_bytes(b"no database at all, but long enough to be read as one" * 100)
    done = script("backup.sh", tmp_path / "backup")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "mlflow.db: file is not a database" in done.stderr
    assert not list(tmp_path.glob("backup*"))


def test_without_the_environment_that_is_backed_up_which_up_was_told_and_a_missing_store_is_one_line(
    small, script, tmp_path, monkeypatch
):
    home, store = small
    (home / "servers.json").write_text(json.dumps({"store": str(store), "database": ""}))
    monkeypatch.delenv("GPTLOOM_STORE")
    assert script("backup.sh", tmp_path / "backup").returncode == 0
    assert files(tmp_path / "backup" / "store") == files(store)
    store.rename(tmp_path / "elsewhere")
    done = script("backup.sh", tmp_path / "again")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "there is no store at" in done.stderr


def test_a_store_inside_of_home_comes_back(small, script, tmp_path):
    assert script("backup.sh", tmp_path / "backup").returncode == 0
    home = tmp_path / "new"
    done = script("restore.sh", tmp_path / "backup", GPTLOOM_HOME=str(home), GPTLOOM_STORE=str(home / "store"))
    assert done.returncode == 0, done.stderr
    assert files(home / "store") == files(small[1])
    assert (home / "mlflow.db").exists()
    assert not list(tmp_path.glob("*.part"))


# -- the whole: real servers, a real run -----------------------------------------------------------------------------


def gptloom(*words):
    command = [sys.executable, "-m", "flows.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:1500] + done.stderr[-1500:]
    return json.loads(done.stdout.splitlines()[-1]) if "--json" in words else done.stdout


def backup_watched(infra, folder, secret):
    """Run backup.sh and look at every command line of the machine meanwhile; returns how many looks."""
    child, looks = subprocess.Popen([str(infra / "backup.sh"), str(folder)], stdout=DEVNULL), 0
    while child.poll() is None:
        words = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
        assert not [line for line in words if secret in line], "a password shows in a command line"
        looks += 1
    assert child.returncode == 0
    return looks


@contextmanager
def up(database, store):
    """Servers at free ports, those on SQLite with a password; they and what they put into the environment end here."""
    ports = {"prefect": servers.free_port(0), "mlflow": servers.free_port(0)}
    with patch.dict(os.environ):
        try:
            yield servers.up(ports, auth=not database, database=database, store=store)
        finally:
            servers.down()


@contextmanager
def a_long_run(recipe, store):
    """Another run into the same store, from its first training step on; killed when the block ends."""
    words = ["run", str(recipe), "--set", "pretrain.seed=7", "--set", "pretrain.steps=100000"]
    running = subprocess.Popen([sys.executable, "-m", "flows.cli", *words], stdout=DEVNULL, stderr=DEVNULL)
    try:
        while not list(store.glob("pretrain/*/work/logs/metrics.jsonl")):
            assert running.poll() is None
            time.sleep(0.1)
        yield
        assert running.poll() is None, "the backup was to be taken in the middle of a run"
    finally:
        running.kill()
        running.wait()


def auth(home):
    return json.loads((home / "auth.json").read_text())


def points(run):
    """Every metric of a run with its history's length."""
    from mlflow import MlflowClient

    client = MlflowClient(servers.tracking())
    return {name: len(client.get_metric_history(run, name)) for name in client.get_run(run).data.metrics}


def leaf(tree, stage):
    """The run that made a stage's artifact."""
    if tree["artifact"].startswith(stage + ":"):
        return tree["run"]
    return next((run for above in tree["inputs"] if (run := leaf(above, stage))), "")


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_everything_lost_and_restored_is_all_hits_with_the_same_lineage(
    kind, new_postgres, infra, script, tiny_recipe, tmp_path, monkeypatch
):
    home, store = tmp_path / "home", tmp_path / "store"
    urls = [new_postgres()[0] for _ in range(2)] if kind == "postgresql" else ["", ""]
    monkeypatch.setenv("GPTLOOM_STORE", str(store))
    with up(urls[0], store):
        first = gptloom("run", tiny_recipe, "--json")
        tree = gptloom("lineage", "models:/gptloom@challenger", "--json")
        curves = points(leaf(tree, "pretrain"))
        with a_long_run(tiny_recipe, store):
            if kind == "postgresql":
                monkeypatch.setenv("GPTLOOM_DATABASE", urls[0])
            password = make_url(urls[0]).password if kind == "postgresql" else auth(home)["password"]
            assert backup_watched(infra, tmp_path / "backup", str(password)) > 2
    home.rename(tmp_path / "lost home")
    store.rename(tmp_path / "lost store")
    if kind == "postgresql":
        monkeypatch.setenv("GPTLOOM_DATABASE", urls[1])
    done = script("restore.sh", tmp_path / "backup")
    assert done.returncode == 0, done.stderr
    monkeypatch.delenv("GPTLOOM_DATABASE", raising=False)
    with up(urls[1], store):
        again = gptloom("run", tiny_recipe, "--json")
        assert {s["cache"] for s in again["stages"]} == {"hit", "absent"}
        assert [s["digest"] for s in again["stages"]] == [s["digest"] for s in first["stages"]]
        assert gptloom("lineage", "models:/gptloom@challenger", "--json") == tree
        assert points(leaf(tree, "pretrain")) == curves
        said = gptloom("sync")
        assert re.match(r"[1-9]\d* runs delivered", said), f"the run that was killed in the middle: {said}"
