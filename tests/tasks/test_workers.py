"""Work over processes: in order, the same for any number, and gone with the parent."""

import operator
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import psutil
import pytest

from tasks.runtime import Runtime, running
from tasks.workers import spread


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_order_for_any_number_of_workers(workers):
    with running("x", Runtime(workers=workers)):
        assert list(spread(partial(operator.mul, 3), range(20))) == [(n, 3 * n) for n in range(20)]


def test_a_single_batch_needs_no_process():
    assert list(spread(lambda n: os.getpid(), [1])) == [(1, os.getpid())]
    assert list(spread(len, [])) == []


def test_a_worker_that_dies_is_an_error_and_not_a_hang():
    with running("x", Runtime(workers=2)), pytest.raises(BrokenProcessPool):
        list(spread(os._exit, [1, 1, 1]))


def test_workers_end_with_a_killed_parent():
    script = "import time; from tasks.workers import spread; list(spread(time.sleep, [60] * 4))"
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
