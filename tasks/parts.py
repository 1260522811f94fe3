"""Parts that know nothing of each other, built side by side; those that are finished stay after a kill.

In: for each part what identifies it and what builds it. Out: the parts in order, the same for any engine.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tasks.runtime import runtime
from tasks.store import has_part, here, part
from tasks.workers import chosen, spread

Job = tuple[Any, Callable[[Path], dict[str, Any]]]
"""What identifies a part (JSON), and what fills its folder and returns its facts."""
Part = tuple[Path, dict[str, Any]]
"""A part's folder in the store, and its facts."""
Tolerated = tuple[type[Exception], ...]


def built(
    jobs: Sequence[Job], *, gil: bool = False, counts: bool = True, tolerated: Tolerated = (), least: int = 0
) -> Iterator[Any]:
    """Each job's part, or the tolerated error of its builder.

    Where `least` are missing (two a worker; on a cluster two), workers build whole parts, each of them atomically in
    the store; else they are built here, one after the other, and a builder spreads its row groups.
    """
    means = runtime()
    least = least or 2 * (1 if chosen(means, gil) == "dask" else means.workers)
    missing = deque(job for job in jobs if not has_part(job[0]))
    missing = missing if len(missing) >= least else deque[Job]()
    ahead = spread(partial(_built, counts, tolerated), tuple(missing), gil=gil)
    for job in jobs:
        if not missing or missing[0] is not job:
            yield _built(counts, tolerated, job)
            continue
        missing.popleft()
        made = next(ahead)[1]
        if (at := here()) and chosen(means, gil) != "serial" and not isinstance(made, Exception):
            at.parts += counts  # a worker has counted for itself alone
        yield made


def _built(counts: bool, tolerated: Tolerated, job: Job) -> Part | Exception:
    try:
        return part(*job, counts=counts)
    except tolerated as error:
        return error
