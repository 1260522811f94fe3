"""How a run is carried out, as opposed to what it makes: workers, device, threads, and lines for the person who waits.

In: the recipe's `runtime`, outside every key. Out: `runtime()`, `say()` and `progress()` for any stage body.
"""

import logging
import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeVar

from pydantic import Field

from tasks.artifacts import Config

T = TypeVar("T")
LOG = logging.getLogger("gptloom")


class Runtime(Config):
    """Means, not ends: none of these changes the bytes of a data stage or enters a key."""

    workers: int = Field(os.cpu_count() or 1, ge=1)
    """Worker processes of the data stages."""
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


def runtime() -> Runtime:
    """The runtime of the stage at work; the defaults outside of a run."""
    return _runtime.get() or Runtime()


@contextmanager
def running(stage: str, means: Runtime) -> Generator[None]:
    """Name the stage at work and its means for `say` and `runtime`."""
    tokens = _stage.set(stage), _runtime.set(means)
    try:
        yield
    finally:
        _stage.reset(tokens[0])
        _runtime.reset(tokens[1])


def say(line: str) -> None:
    """One line for the person who waits (stderr, and the Prefect run's log where there is one)."""
    LOG.info("%s: %s", _stage.get(), line)


def progress(items: Iterable[T], unit: str, total: int | None = None, every_s: float = 5.0) -> Iterator[T]:
    """Pass items through; every few seconds say how many are done, how fast, and how long the rest takes."""
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= every_s and done != total:
            shown, rate = now, done / (now - start)
            left = f" of {total:,}, {(total - done) / rate:.0f} s left" if total else ""
            say(f"{done:,} {unit}{left} ({rate:,.0f} {unit}/s)")
