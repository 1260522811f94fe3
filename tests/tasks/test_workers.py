"""Work over threads, processes and a Dask cluster: in order, the same for any, retried where a worker dies."""

import operator
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt.errors import UserError
from tasks.corpus import DOCUMENT, groups
from tasks.parts import built
from tasks.runtime import Runtime, hearing, running
from tasks.store import Store, building, part_figures
from tasks.workers import chosen, spread

sys.path.append(str(Path(__file__).parent))  # which workers of both kinds are told
import chores

WORKERS = ("threads", "processes", "dask")


@pytest.fixture
def means(request):
    """A runtime of two workers by the engine's name."""

    def means(engine: str) -> Runtime:
        address = request.getfixturevalue("cluster") if engine == "dask" else ""
        return Runtime(engine=engine, workers=2, dask=address)

    return means


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("engine", ["auto", "serial", "threads"])
def test_results_come_in_order_for_any_number_of_workers(engine, workers):
    with running("x", Runtime(engine=engine, workers=workers)):
        assert list(spread(partial(operator.mul, 3), range(20))) == [(n, 3 * n) for n in range(20)]


def test_a_single_batch_needs_no_worker():
    with running("x", Runtime(engine="dask", dask="tcp://127.0.0.1:9")):
        assert list(spread(lambda n: os.getpid(), [1])) == [(1, os.getpid())]
        assert list(spread(len, [])) == []


def test_auto_takes_threads_unless_the_function_holds_pythons_lock():
    assert [chosen(Runtime(workers=2), gil) for gil in (False, True)] == ["threads", "processes"]
    assert chosen(Runtime(engine="processes", workers=1)) == "serial"


@pytest.mark.parametrize("engine", WORKERS)
def test_a_worker_finds_the_stage_and_what_it_says_is_heard(engine, means, tmp_path):
    with hearing() as heard, running("sift", means(engine)), building(Store(tmp_path), "sift", "1"):
        found = [result for _, result in spread(chores.surroundings, range(3))]
    assert found == [("sift", "sift", "serial", [(0, 0), (1, 2), (2, 4)])] * 3
    assert heard == ["line 0", "line 1", "line 2"]


@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_both_workers_do_work_on_data_larger_than_one_batch(engine, means, tmp_path):
    table = pa.Table.from_pylist([{"id": str(n), "text": "x" * 100, "source": "s"} for n in range(1_000)], DOCUMENT)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    with running("x", means(engine)):
        found = [result for _, result in spread(chores.rows, groups(tmp_path / "a.parquet"))]
    assert [rows for _, rows in found] == [100] * 10
    assert len({pid for pid, _ in found} - {os.getpid()}) == 2


@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_a_killed_worker_costs_a_retry_and_not_the_result(engine, means, tmp_path):
    with running("x", means(engine)):
        found = list(spread(partial(chores.die_once, tmp_path / "mark"), range(12)))
    assert (tmp_path / "mark").exists()
    assert found == [(n, 2 * n) for n in range(12)]


def test_workers_start_once_for_a_stage_and_end_with_it():
    with running("x", Runtime(engine="processes", workers=2)):
        pids = [{pid for _, pid in spread(chores.pid, range(6))} for _ in range(2)]
    assert pids[0] == pids[1]
    assert not [pid for pid in pids[0] if psutil.pid_exists(pid)]


def test_a_dask_cluster_of_ones_own_starts_and_ends_with_the_stage(tmp_path):
    with running("x", Runtime(engine="dask", workers=2)):
        pids = {pid for _, pid in spread(chores.pid, range(8))}
        assert len(pids - {os.getpid()}) == 2
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_a_batch_on_which_workers_always_die_is_an_error_and_not_a_hang():
    with hearing() as heard, running("x", Runtime(engine="processes", workers=2)), pytest.raises(BrokenProcessPool):
        list(spread(os._exit, [1, 1, 1]))
    assert ["a worker died" in line for line in heard] == [True] * 3


def test_an_error_of_the_function_is_the_first_in_order(means):
    for engine in ("threads", "processes"):
        with running("x", means(engine)), pytest.raises(ValueError, match=r"literal for int.*'b'"):
            list(spread(int, ["1", "2", "b", "3", "c"]))


def test_a_cluster_that_is_away_or_has_other_libraries_is_told(cluster, monkeypatch):
    with running("x", Runtime(engine="dask", dask="nonsense://x")), pytest.raises(UserError, match=r"runtime\.dask"):
        list(spread(chores.double, range(3)))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")  # here and not in the workers
    with running("x", Runtime(engine="dask", dask=cluster)), pytest.raises(UserError, match="and here it is 0"):
        list(spread(chores.double, range(3)))


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_a_stage_that_fails_waits_for_no_worker(engine, means):
    start = time.monotonic()
    with pytest.raises(ValueError, match="in the first batch"), running("x", means(engine)):
        list(spread(chores.fail_or_last, range(6)))
    assert time.monotonic() - start < 25, "the others would take a minute"


def test_workers_end_with_a_killed_parent():
    script = """
import time
from tasks.runtime import Runtime, running
from tasks.workers import spread
with running("x", Runtime(engine="processes", workers=2)):
    list(spread(time.sleep, [60] * 4))
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 20
    while len(workers := psutil.Process(parent.pid).children(recursive=True)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.5)  # until they are set up
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    alive = psutil.wait_procs(workers, timeout=10)[1]
    assert not alive, f"{len(alive)} workers outlived their parent"


# -- whole parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", WORKERS)
def test_missing_parts_are_built_side_by_side_and_counted_once(engine, means, tmp_path):
    mark = tmp_path / "mark"
    if engine == "threads":
        mark.touch()  # it would kill us all
    jobs = [(["part", number], partial(chores.fill, mark, number)) for number in range(6)]
    with running("x", means(engine)), building(Store(tmp_path / "store"), "x", "1"):
        (tmp_path / "store").mkdir()
        alone = list(built(jobs[1:3], least=9))
        found = list(built(jobs))
        figures = part_figures()
    assert [facts["number"] for _, facts in found] == [0, 2, 4, 6, 8, 10]
    assert [folder.joinpath("a.txt").read_text() for folder, _ in found] == list("012345")
    assert found[1:3] == alone
    assert {facts["pid"] for _, facts in alone} == {os.getpid()}
    if engine != "threads":
        assert os.getpid() not in {facts["pid"] for _, facts in [found[0], *found[3:]]}
    assert figures == {"data/parts": 8, "data/parts_reused": 2}


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_a_tolerated_error_takes_the_place_of_its_part(engine, means, tmp_path):
    jobs = [(["part", text], partial(chores.parse, text)) for text in ("1", "x", "3", "y")]
    with running("x", means(engine)), building(Store(tmp_path), "x", "1"):
        found = list(built(jobs, tolerated=(ValueError,)))
        with pytest.raises(ValueError, match="'x'"):
            list(built(jobs))
    assert [type(made) for made in found] == [tuple, ValueError, tuple, ValueError]
