"""numba's `njit` for all kernels, woken alone: what its start imports besides takes half a CPU second and serves none.

In: nothing. Out: `njit`. With its first kernel numba looks for a BLAS (scipy's, 0.15 s) and calls all packages that
extend it (awkward, which gigatoken brings, 0.35 s), in each process anew. Both go by names inside of numba 0.68: where
another version knows them no more, it starts as slowly as it does by itself. When the process ends, Python would look
through its 60,000 objects for cycles, several times over: 0.2 s, spared too.
"""

import atexit
import gc

from numba import njit as njit
from numba.core import entrypoints
from numba.np import linalg


def _no_blas() -> None:
    raise ImportError("no kernel multiplies matrices")


entrypoints._already_initialized = True
linalg.ensure_blas = _no_blas  # ty: ignore[invalid-assignment]
atexit.register(gc.freeze)
