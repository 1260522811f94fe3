"""One function over many batches, on as many processes as the run may use.

In: a function at the top of a light module (workers import it afresh), and batches.
Out: (batch, result) in the order of the batches, so the same bytes for any number of workers.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from typing import TypeVar

from tasks.runtime import runtime

A = TypeVar("A")
B = TypeVar("B")


def spread(function: Callable[[A], B], batches: Iterable[A]) -> Iterator[tuple[A, B]]:
    """Yield (batch, function(batch)). A single batch is done in this process: starting workers costs about a second."""
    workers, stream = runtime().workers, iter(batches)
    first = list(islice(stream, 2))
    if len(first) < 2 or workers == 1:
        yield from ((batch, function(batch)) for batch in chain(first, stream))
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _die_with_parent)
    try:
        submitted = ((batch, pool.submit(function, batch)) for batch in chain(first, stream))
        pending = deque(islice(submitted, 2 * workers))
        while pending:
            batch, future = pending.popleft()
            pending.extend(islice(submitted, 1))
            yield batch, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """Workers of a killed parent would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent, "this runs in workers only"
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
