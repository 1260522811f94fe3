"""One function over many batches: here, on threads, on processes or on a Dask cluster, as `runtime.engine` says.

In: a function at the top of a light module (workers import it afresh), and batches.
Out: (batch, result) in the order of the batches, so the same bytes for any engine and any number of workers.
A worker that dies costs its batches another try, so a function may run twice: what it writes must be the same again.
"""

import importlib.metadata
import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from itertools import chain, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from gpt.errors import UserError
from tasks.runtime import Engine, Runtime, hearing, kept, running, runtime, say, stage_at_work, until
from tasks.store import Building, building, here

A = TypeVar("A")
B = TypeVar("B")
TRIES, SILENT_S = 3, 10.0
MUST_MATCH = ("gptloom", "numpy", "pyarrow")


def spread(function: Callable[[A], B], batches: Iterable[A], *, gil: bool = False) -> Iterator[tuple[A, B]]:
    """Yield (batch, function(batch)). A single batch is done here: starting processes costs about a second.

    `gil` says that the function is mostly plain Python, which gains nothing from threads: `auto` takes processes then.
    Inside of a worker all is serial.
    """
    means, stream = runtime(), iter(batches)
    first, engine = list(islice(stream, 2)), chosen(means, gil)
    if len(first) < 2 or engine == "serial":
        yield from ((batch, function(batch)) for batch in chain(first, stream))
        return
    call = partial(_work, stage_at_work(), means.model_copy(update={"engine": "serial"}), here(), function)
    with _crew(engine, means) as crew:
        yield from _in_order(crew, call, chain(first, stream))


def chosen(means: Runtime, gil: bool = False) -> Engine:
    """The engine that will work. One worker is none beside this process, but that of a cluster."""
    engine = means.engine if means.engine != "auto" else "processes" if gil else "threads"
    return "serial" if means.workers == 1 and engine != "dask" else engine


def _in_order(crew: "Threads | Dask", call: Callable, stream: Iterator[A]) -> Iterator[tuple[A, Any]]:
    """At most `crew.room` batches are under way; what a dead worker had is given to the living."""
    waiting, losses = deque[tuple[A, Any]](), 0
    try:
        while True:
            waiting.extend((batch, crew.submit(call, batch)) for batch in islice(stream, crew.room - len(waiting)))
            if not waiting:
                return
            try:
                result, said = _awaited(crew, waiting[0][1])
            except BrokenExecutor as error:
                if (losses := losses + 1) > TRIES or not crew.renew():
                    raise
                say(f"a worker died ({str(error).partition('.')[0]}); what it had is done again")
                waiting = deque((batch, f if _is_well(f) else crew.submit(call, batch)) for batch, f in waiting)
                continue
            losses, batch = 0, waiting.popleft()[0]
            for line in said:
                say(line)
            yield batch, result
    finally:
        for _, future in waiting:
            with suppress(Exception):  # of a cluster that is gone
                future.cancel()


def _awaited(crew: "Threads | Dask", future: Any) -> Any:
    """The result; a line where it takes long."""
    while True:
        try:
            return crew.result(future, SILENT_S)
        except TimeoutError:
            if future.done():  # the function raised it, or it came this moment
                return crew.result(future, None)
            say("workers are busy")


def _is_well(future: Future) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


@contextmanager
def _crew(engine: Engine, means: Runtime) -> Generator["Threads | Dask"]:
    """Workers start once and stay while the stage runs; outside of one, as long as one `spread`."""
    if (keeping := kept()) is not None:
        yield keeping.get(engine, lambda: closing(CREWS[engine](means)))
    else:
        with closing(CREWS[engine](means)) as crew:
            yield crew


class Threads:
    """Threads of this process."""

    def __init__(self, means: Runtime):
        self.workers, self.room = means.workers, 2 * means.workers
        self.over, self.pool = threading.Event(), self.start()

    def start(self) -> Executor:
        """As many as there are to be."""
        return ThreadPoolExecutor(self.workers)

    def submit(self, call: Callable, batch: Any) -> Future:
        """Begin when one is free. The context goes along: Prefect's and ours."""
        context = copy_context()
        context.run(until, self.over)
        return self.pool.submit(context.run, call, batch)

    def result(self, future: Future, wait_s: float | None) -> Any:
        """What came out. BrokenExecutor: a worker died."""
        return future.result(wait_s)

    def renew(self) -> bool:
        """Begin anew with living workers; whether that may help."""
        self.pool.shutdown(wait=False)
        self.pool = self.start()
        return True

    def close(self) -> None:
        """End what is under way, where the stage failed, and forget the rest."""
        self.over.set()
        self.pool.shutdown(cancel_futures=True)


class Processes(Threads):
    """Processes that die with this one."""

    def start(self) -> Executor:
        """They come when they are needed, each in a second."""
        context = multiprocessing.get_context("spawn")
        self.theirs, self.ours = context.Pipe(duplex=False)
        return ProcessPoolExecutor(self.workers, context, _die_with, (self.theirs,))

    def submit(self, call: Callable, batch: Any) -> Future:
        """Begin when one is free; where one has died meanwhile, the result says so."""
        try:
            return self.pool.submit(call, batch)
        except BrokenExecutor as error:
            broken = Future()
            broken.set_exception(error)
            return broken

    def close(self) -> None:
        """The same, whatever they do."""
        self.ours.close()
        super().close()


class Dask:
    """A cluster, or our own on this machine; its scheduler gives what a dead worker had to others, three times over."""

    def __init__(self, means: Runtime):
        try:
            from distributed import Client, KilledWorker, LocalCluster
        except ImportError as error:
            raise UserError("runtime.engine=dask needs Dask, which is not here; pip install 'gptloom[dask]'") from error
        logging.getLogger("distributed").setLevel(logging.ERROR)  # its import has set it to info
        self.lost, self.cluster = (KilledWorker, CancelledError), None
        if not means.dask:
            # TLS: who reaches a scheduler may run code. No limit: Dask counts mapped files as memory.
            own = {"security": True, "memory_limit": 0, "silence_logs": logging.ERROR}
            pages = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
            self.cluster = LocalCluster(n_workers=means.workers, threads_per_worker=1, **own, **pages)
        try:
            self.client = Client(self.cluster or means.dask, timeout=20, set_as_default=False)
            self.client.wait_for_workers(1, timeout=60)
            self.room = 2 * sum(self.client.nthreads().values())
        except (OSError, ValueError) as error:
            what = f"runtime.dask={means.dask!r}: no Dask scheduler with workers there ({type(error).__name__})"
            raise UserError(f"{what}; start them (docs/scaling.md), or leave it empty") from error
        self._check(means.dask or "runtime.dask")

    def _check(self, address: str) -> None:
        """Workers have our code and libraries and see our store; else no bytes could be the same."""
        root = at.store.root if (at := here()) else Path.cwd()
        try:
            found = self.client.run(_equipment, root)
        except Exception as error:  # whatever unpickling a function of ours may raise there
            what = f"{address}: a worker cannot run gptloom ({type(error).__name__}: {error})".partition("\n")[0]
            raise UserError(f"{what}; install it there as it is here") from error
        ours = _equipment(root)
        for name, theirs in ((name, e) for name, e in found.items() if e != ours):
            odd = next(key for key in ours if theirs[key] != ours[key])
            what = f"{address}: worker {name} has {odd} {theirs[odd]}, and here it is {ours[odd]}"
            raise UserError(f"{what}; give it the same libraries and the store's file system")

    def submit(self, call: Callable, batch: Any) -> Any:
        """Begin when a worker is free; never taken for an earlier call that looks the same."""
        return self.client.submit(call, batch, pure=False)

    def result(self, future: Any, wait_s: float | None) -> Any:
        """What came out. BrokenExecutor: workers died on it again and again, or the scheduler is gone."""
        try:
            return future.result(wait_s)
        except self.lost as error:
            raise BrokenExecutor(f"{type(error).__name__}: {error}".partition("\n")[0]) from error

    def renew(self) -> bool:
        """The scheduler has tried already."""
        return False

    def close(self) -> None:
        """Leave the cluster; end our own."""
        self.client.close()
        if self.cluster:
            self.cluster.close()


CREWS = {"threads": Threads, "processes": Processes, "dask": Dask}


# -- in a worker ------------------------------------------------------------------------------------------------------


def _work(stage: str, means: Runtime, at: Building | None, function: Callable[[A], B], batch: A) -> tuple[B, list[str]]:
    """The result, and what was said meanwhile. The stage is at work here as it is where it was called."""
    inside = building(at.store, at.stage, at.version) if at else nullcontext()
    with hearing() as said, running(stage, means), inside:
        return function(batch), said


def _equipment(root: Path) -> dict[str, str]:
    """What must be the same everywhere."""
    versions = {name: importlib.metadata.version(name) for name in MUST_MATCH}
    return versions | {f"the folder {root}": "there" if root.is_dir() else "missing"}


def _die_with(pipe: Connection) -> None:
    """Its other end closes when the stage ends, or this process's parent: else its workers would wait for ever."""
    threading.Thread(target=lambda: (pipe.poll(None), os._exit(1)), daemon=True).start()
