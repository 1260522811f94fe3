"""How a run is carried out, as opposed to what it makes: workers, device, threads, and lines for the person who waits.

In: the recipe's `runtime`, outside every key. Out: `runtime()`, `say()` and `progress()` for any stage body, and what
a stage keeps open while it runs (its workers).
"""

import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from threading import Event
from typing import Any, Literal, TypeVar

from pydantic import Field

from tasks.artifacts import Config

T = TypeVar("T")
LOG = logging.getLogger("gptloom")
Engine = Literal["serial", "threads", "processes", "dask"]


class Runtime(Config):
    """Means, not ends: none of these changes the bytes of a data stage or enters a key."""

    engine: Literal["auto", Engine] = "auto"
    """Who works for the data stages; auto: threads where the work leaves Python (kernels, Arrow), else processes."""
    workers: int = Field(os.cpu_count() or 1, ge=1)
    """How many threads or processes do; a Dask cluster brings its own."""
    dask: str = ""
    """Address of a Dask scheduler, as tcp://head:8786; empty: `workers` processes here while a stage runs."""
    threads: int = Field(os.cpu_count() or 1, ge=1)
    """Threads of the trainer on a CPU; another number gives other last bits (recorded as numerics)."""
    processes: int = Field(0, ge=0)
    """Processes that train together, each on its GPU or with its share of the threads; 0: one a GPU, one on a CPU."""
    shard: Literal["auto", "on", "off"] = "auto"
    """Whether each of them holds only a part of the weights; auto: where all would leave less than half of a GPU."""
    fast: bool = True
    """Use gigatoken, where `gptloom[fast]` brought it, while its ids and merges are the references'; false: never."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training and generation run; auto takes the GPU where there is one."""
    retries: int = Field(1, ge=0)
    """How often Prefect tries a stage again after a failure of the machine: disk, network, a worker out of memory."""
    timeout_min: float | None = Field(None, gt=0)
    """Minutes after which Prefect ends a stage; a training stage goes on from its checkpoint in the next run."""


_runtime: ContextVar[Runtime | None] = ContextVar("runtime", default=None)
_stage: ContextVar[str] = ContextVar("stage", default="gptloom")
_kept: ContextVar["Kept | None"] = ContextVar("kept", default=None)
_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)
_end: ContextVar[Event | None] = ContextVar("end", default=None)


class Stopped(Exception):
    """The stage has ended, so nobody waits for this thread's work."""


class Kept:
    """What a stage opens once and keeps until it ends."""

    def __init__(self) -> None:
        self.stack, self._open = ExitStack(), dict[Any, Any]()

    def get(self, name: Any, make: Callable[[], AbstractContextManager[T]]) -> T:
        """What is open under a name; made at first."""
        if name not in self._open:
            self._open[name] = self.stack.enter_context(make())
        return self._open[name]


def runtime() -> Runtime:
    """The runtime of the stage at work; the defaults outside of a run."""
    return _runtime.get() or Runtime()


@contextmanager
def running(stage: str, means: Runtime) -> Generator[None]:
    """Name the stage at work and its means for `say` and `runtime`."""
    kept = Kept()
    tokens = _stage.set(stage), _runtime.set(means), _kept.set(kept)
    try:
        with kept.stack:
            yield
    finally:
        _stage.reset(tokens[0])
        _runtime.reset(tokens[1])
        _kept.reset(tokens[2])


def stage_at_work() -> str:
    """Its name."""
    return _stage.get()


def kept() -> Kept | None:
    """What the stage at work keeps open; None outside of a run."""
    return _kept.get()


@contextmanager
def hearing() -> Generator[list[str]]:
    """Collect what is said instead of showing it, as in a worker whose lines nobody would see; no progress is told."""
    heard = list[str]()
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)


def until(end: Event) -> None:
    """Let `progress` raise Stopped in this context once the event is set: threads cannot be ended otherwise."""
    _end.set(end)


def say(line: str) -> None:
    """One line for the person who waits (stderr, and the Prefect run's log where there is one)."""
    if (heard := _heard.get()) is not None:
        heard.append(line)
    else:
        LOG.info("%s: %s", _stage.get(), line)


def progress(items: Iterable[T], unit: str, total: int | None = None, every_s: float = 5.0) -> Iterator[T]:
    """Pass items through; every few seconds say how many are done, how fast, and how long the rest takes."""
    start, shown, end = time.monotonic(), time.monotonic(), _end.get()
    for done, item in enumerate(items, 1):
        if end and end.is_set():
            raise Stopped
        yield item
        now = time.monotonic()
        if now - shown >= every_s and done != total and _heard.get() is None:
            shown, rate = now, done / (now - start)
            left = f" of {total:,}, {(total - done) / rate:.0f} s left" if total else ""
            say(f"{done:,} {unit}{left} ({rate:,.0f} {unit}/s)")
