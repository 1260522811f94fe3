"""What the tests of engines give to workers, which import it by its name."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from tasks.corpus import Group
from tasks.runtime import progress, runtime, say, stage_at_work
from tasks.store import here
from tasks.workers import spread


def pid(_: Any) -> int:
    """Who works; slow enough that no worker does all."""
    time.sleep(0.05)
    return os.getpid()


def double(number: int) -> int:
    return 2 * number


def die_once(mark: Path, number: int) -> int:
    """Batch 3 kills its worker the first time."""
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return double(number)


def surroundings(number: int) -> tuple:
    """What a function finds in a worker."""
    say(f"line {number}")
    at = here()
    return stage_at_work(), at and at.stage, runtime().engine, list(spread(double, range(3)))


def rows(group: Group) -> tuple[int, int]:
    """Who read a row group, and its rows."""
    return pid(group), len(group.table(["text"]))


def fill(mark: Path, number: int, folder: Path) -> dict[str, int]:
    """A part; that of batch 3 kills its worker in the middle the first time."""
    (folder / "a.txt").write_text(f"{number}")
    return {"number": die_once(mark, number), "pid": pid(number)}


def parse(text: str, _: Path) -> dict[str, int]:
    """A part whose builder may fail."""
    return {"number": int(text)}


def fail_or_last(number: int) -> None:
    """The first batch fails, the others take a minute."""
    for _ in progress(range(600), "tenths of a second"):
        time.sleep(0.1)
        if number == 0:
            raise ValueError("in the first batch")
