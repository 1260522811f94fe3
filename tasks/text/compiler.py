"""numba's `njit` for all kernels, woken alone: what its start imports besides takes half a CPU second and serves none.

In: nothing. Out: `njit`. With its first kernel numba looks for a BLAS (scipy's, 0.15 s; others' kernels find it later
all the same) and calls all packages that extend it (awkward, which gigatoken brings, 0.35 s), in each process anew.
Both go by names inside of numba 0.68: where another version has them no more, it starts as slowly as by itself.
"""

import gc
import importlib
from contextlib import suppress

from numba import njit as njit


def _no_blas() -> None:
    raise ImportError("not at the start")


with suppress(ImportError, AttributeError):
    from numba.core import entrypoints
    from numba.np import linalg

    entrypoints._already_initialized, asked = True, linalg.ensure_blas
    linalg.ensure_blas = _no_blas  # ty: ignore[invalid-assignment]
    importlib.import_module("numba.np.arraymath")  # which asks for it
    linalg.ensure_blas = asked
gc.freeze()  # numba's 60,000 objects stay, so nobody need look through them, when the process ends least of all: 0.2 s
