"""Arrow columns from numpy arrays and lists by their memory: `pa.array` would import pandas, a quarter of a second of
CPU and 40 MB in every process.

In: values. Out: a column. None becomes null.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def int64(numbers: np.ndarray) -> pa.Array:
    """A column of whole numbers."""
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, _buffer(numbers.astype(np.int64, copy=False))])


def doubles(numbers: Sequence[float | None]) -> pa.Array:
    """A column of float64."""
    values = np.array([0.0 if number is None else number for number in numbers], np.float64)
    return pa.Array.from_buffers(pa.float64(), len(numbers), [_valid(numbers), _buffer(values)])


def booleans(flags: np.ndarray) -> pa.Array:
    """A column of bits, as a table is filtered by."""
    return pa.Array.from_buffers(pa.bool_(), len(flags), [None, _buffer(np.packbits(flags, bitorder="little"))])


def strings(texts: Sequence[str | None]) -> pa.Array:
    """A column of texts."""
    encoded = [b"" if text is None else text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(texts), [_valid(texts), _buffer(ends), pa.py_buffer(b"".join(encoded))]
    )


def _valid(values: Sequence) -> pa.Buffer | None:
    there = np.array([value is not None for value in values], bool)
    return None if there.all() else _buffer(np.packbits(there, bitorder="little"))


def _buffer(values: np.ndarray) -> pa.Buffer:
    return pa.py_buffer(np.ascontiguousarray(values))
