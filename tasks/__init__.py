"""Stages, the store and tracking: one file a stage."""

import os

# numpy's BLAS, which hardly any stage asks, else begins each process with 0.15 s of waiting at full speed for work.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
