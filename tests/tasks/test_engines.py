"""Ingest, filter and dedup by every engine: the same digests, whatever dies on the way; finished parts stay."""

import json
import os
import pydoc_data.topics
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.dedup import Dedup, dedup
from tasks.filter import Filter, filter
from tasks.ingest import Ingest, ingest
from tasks.runtime import Runtime
from tasks.stage import Session, using
from tasks.store import Store

FILES = 7


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Python's reference in seven files of three formats; each holds a part of the next one's text too."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [line for topic in pydoc_data.topics.topics.values() for line in topic.split("\n\n") if len(line) > 40]
    rows = ["\n\n".join(lines[at : at + 4]) for at in range(0, len(lines), 4)]
    each = len(rows) // FILES
    for number in range(FILES - 2):
        mine = rows[number * each : (number + 1) * each + each // 4]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in mine))
    short = [line for line in lines if len(line) < 200][:700] * 7
    pq.write_table(pa.table({"text": short}), folder / "5.parquet")  # more rows than one row group takes
    (folder / "6.txt").write_text("\n\n".join(lines[-200:]))
    return folder


def digests(texts: Path, store: Path, means: Runtime) -> list[str]:
    """What the three stages make, each with all of its parts missing."""
    with using(Session(Store(store), means)) as session:
        corpus = ingest(Ingest(sources=(str(texts),)))
        dedup(Dedup(max_drop_share=1), filter(Filter(max_drop_share=1), corpus))
        assert [session.results[name].metrics.get("data/parts_reused", 0) for name in ("ingest", "filter")] == [0, 0]
    return [session.results[name].digest for name in ("ingest", "filter", "dedup")]


@pytest.fixture(scope="module")
def expected(texts, tmp_path_factory) -> list[str]:
    """What one thread makes."""
    store = tmp_path_factory.mktemp("serial")
    made = digests(texts, store, Runtime(engine="serial", workers=1))
    (part,) = (p for p in store.glob("ingest/*/0001/part-*5.parquet"))
    assert pq.read_metadata(part).num_row_groups > 1
    return made


@pytest.mark.parametrize("workers", [2, 3, 5], ids=["whole parts", "whole parts of three", "row groups"])
def test_threads_give_the_same_digests(workers, texts, expected, tmp_path):
    assert digests(texts, tmp_path / "store", Runtime(engine="threads", workers=workers)) == expected


@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_processes_and_dask_give_the_same_digests_though_a_worker_is_killed(engine, texts, expected, request, tmp_path):
    address = request.getfixturevalue("cluster") if engine == "dask" else ""
    with Killer(tmp_path / "store") as killer:
        found = digests(texts, tmp_path / "store", Runtime(engine=engine, workers=2, dask=address))
    assert killer.killed, "no worker was seen at work"
    assert found == expected


class Killer(threading.Thread):
    """Kills one worker by SIGKILL when the first part of a stage is there."""

    def __init__(self, store: Path):
        super().__init__(daemon=True)
        self.parts, self.killed, self.over = store / "parts", 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.002):
            with suppress(psutil.Error):  # one ended while it was looked at
                family = psutil.Process().children(recursive=True)
                workers = [process for process in family if "spawn_main" in " ".join(process.cmdline())]
                if len(workers) >= 2 and list(self.parts.glob("ingest/[0-9a-f]*")):
                    self.killed = workers[0].pid
                    return workers[0].kill()

    def __enter__(self) -> "Killer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


RUN = """
import sys
from tasks.ingest import Ingest, ingest
from tasks.runtime import Runtime
from tasks.stage import Session, using
from tasks.store import Store
with using(Session(Store(__import__("pathlib").Path(sys.argv[1])), Runtime(engine=sys.argv[2], workers=2))):
    ingest(Ingest(sources=(sys.argv[3],)))
"""


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_parts_that_were_finished_stay_after_a_kill(engine, texts, expected, tmp_path):
    env = {**os.environ, "GPTLOOM_FAILPOINT": "part renamed:4", "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", RUN, str(tmp_path), engine, str(texts)], env=env, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("ingest/*/current"))
    with using(Session(Store(tmp_path), Runtime(engine=engine, workers=2))):
        made = ingest(Ingest(sources=(str(texts),)))
    assert made.digest == expected[0]
    assert 4 <= made.metrics["data/parts_reused"] < FILES


def test_workers_of_a_killed_run_go_and_what_they_finished_stays(texts, expected, tmp_path):
    run = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path), "processes", str(texts)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("parts/ingest/[0-9a-f]*")) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    assert not psutil.wait_procs(workers, timeout=10)[1]
    finished = len(list(tmp_path.glob("parts/ingest/[0-9a-f]*")))
    with using(Session(Store(tmp_path), Runtime(workers=1))):
        made = ingest(Ingest(sources=(str(texts),)))
    assert made.digest == expected[0]
    assert made.metrics["data/parts_reused"] == finished >= 1
