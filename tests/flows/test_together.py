"""Several runs at once on one worker: each key is built once, no database is locked, trainings take turns."""

import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml

from flows import servers

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]
BUILDS = "*/*/" + "[0-9]" * 4


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """Services on SQLite, for this test's home and store; Prefect tells of each request that it has to refuse."""
    monkeypatch.setenv("PREFECT_SERVER_LOG_RETRYABLE_ERRORS", "true")
    yield servers.up({"prefect": servers.free_port(0), "mlflow": servers.free_port(0)}, store=tmp_path / "store")
    servers.down()


def trainers(worker):
    """How many trainings are at work; a trainer's own child bears its name too until it becomes another program."""
    found = {}
    for process in psutil.Process(worker.pid).children(recursive=True):
        try:
            if "gpt.train" in process.cmdline():
                found[process.pid] = process.ppid()
        except psutil.Error:
            continue
    return sum(parent not in found for parent in found.values())


def test_two_pipelines_and_three_reruns_at_once_build_each_key_once(stack, prefect_api, tiny_recipe, tmp_path):
    prefect, store = prefect_api(stack["prefect"].url), tmp_path / "store"
    recipe = yaml.safe_load(Path(tiny_recipe).read_text())
    assert prefect.finished(prefect.start("pipeline", recipe=recipe)) == "Completed"
    before = set(store.glob(BUILDS))
    again = recipe | {"pretrain": recipe["pretrain"] | {"seed": 2}, "name": "two"}
    runs = [prefect.start("pipeline", recipe=again) for _ in range(2)]
    for stage in ("pretrain", "sft", "dedup"):
        changes = {"seed": 2} if stage != "dedup" else {"threshold": 0.8}
        runs.append(prefect.start(stage, recipe=str(tiny_recipe), changes=changes))
    together = 0
    while any(prefect.state(run)["type"] not in prefect.ENDS for run in runs):
        together = max(together, trainers(stack["worker"]))
        time.sleep(0.1)
    assert [prefect.state(run)["name"] for run in runs] == ["Completed"] * 5
    assert together == 1, "the limit `gpu` has one slot"
    made = set(store.glob(BUILDS)) - before
    assert Counter(path.parent for path in made).most_common(1)[0][1] == 1
    stages = Counter(path.parts[-3] for path in made)
    assert (stages["pretrain"], stages["sft"], stages["dedup"]) == (1, 2, 1)
    said = "".join(log.read_text() for log in (tmp_path / "home" / "logs").glob("*.log"))
    assert "locked" not in said
