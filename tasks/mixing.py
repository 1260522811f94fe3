"""From encoded units to a part's files: its documents in the order of their lots, so that the stream is mixed once.

In: units' files of ids, their pieces (tasks/units.py). Out: `train-*.bin`, `val-*.bin` in llm.c's layout and the rows
of the index. What has been read of a unit's file is given back at once: the ids need the disk's room once, not twice,
and new pages of memory, which cost a virtual machine 3 ms a MB, are those given back.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpt.data import FORMATS
from tasks.columns import int64
from tasks.encoders import give_memory_back
from tasks.runtime import runtime
from tasks.units import WRITE_BYTES, Encoded, Unit, mixed

SPLITS = ("train", "val")
SHARD_TOKENS, BLOCK_TOKENS, INDEX_ROWS = 100_000_000, 1 << 20, 1 << 14
GIVE_BACK, BUFFERS = 16, 1024
"""After how many blocks what was read is given back; how many pieces one call may read (Linux's IOV_MAX)."""
PUNCH_HOLE, PAGE = 1 | 2, mmap.PAGESIZE  # and keep the size
TEXTS = [(name, pa.string()) for name in ("id", "split", "source", "shard")]
INDEX = pa.schema(TEXTS + [(name, pa.int64()) for name in ("row", "offset", "tokens", "bytes")])
KEPT_AS = {"compression": "zstd", "write_page_checksum": True, "use_dictionary": ["split", "source", "shard"]}
"""How an index is written: half of the time and of the bytes that it takes with ids and numbers in dictionaries."""


def gather(folder: Path, units: list[Unit], encoded: list[Encoded], eot: int, head: bool) -> dict[str, dict[str, int]]:
    """Write a part's files and its `index.parquet`, an end of text after each piece; remove the units' files.

    `head` puts one more at the beginning of both splits.
    """
    pieces, facts = np.concatenate([e.pieces for e in encoded]), {}
    begins = np.concatenate([np.cumsum(e.pieces["tokens"]) - e.pieces["tokens"] for e in encoded])
    places = np.stack([np.repeat(np.arange(len(units)), [len(e.pieces) for e in encoded]), begins])
    order = mixed(pieces)
    pieces, places = pieces[order], places[:, order]
    with pq.ParquetFile(units[0].path, read_dictionary=["source"], page_checksum_verification=True) as part:
        names = part.read(["id", "source"])  # not read_table, which imports pandas
    give_memory_back()
    with ExitStack() as stack:
        files = [stack.enter_context(unit.target.open("r+b")).fileno() for unit in units]
        index = stack.enter_context(pq.ParquetWriter(folder / "index.parquet", INDEX, **KEPT_AS))
        writers, written = stack.enter_context(ThreadPoolExecutor(runtime().workers)), []
        trained = int((~pieces["held"]).sum())
        for split, mine in zip(SPLITS, (slice(trained), slice(trained, None)), strict=True):
            ours, there = pieces[mine], places[:, mine]
            for number, some in enumerate(_stretches(ours["tokens"], SHARD_TOKENS, head)):
                rows, shard, first = ours[some], f"{split}-{number:04d}.bin", int(head and number == 0)
                what = files, there[:, some], rows["tokens"], eot, first
                written.append(writers.submit(write, folder / shard, units[0].dtype, *what))
                for table in _index(names, rows, split, shard, first):
                    index.write_table(table)
            tokens, size = int((ours["tokens"] + 1).sum()) + head, int(ours["bytes"].sum())
            facts[split] = {"tokens": tokens, "bytes": size, "documents": len(ours)}
        for file in written:
            file.result()
    for unit in units:
        unit.target.unlink()
    return facts


def _index(names: pa.Table, rows: np.ndarray, split: str, shard: str, first: int) -> Iterator[pa.Table]:
    """The index of one file, some rows at a time."""
    ends = np.cumsum(rows["tokens"] + 1) + first
    for start in range(0, len(rows), INDEX_ROWS):
        some, end = rows[start : start + INDEX_ROWS], ends[start : start + INDEX_ROWS]
        found, tokens = names.take(int64(some["row"])), some["tokens"] + 1
        texts = {"id": found["id"], "source": found["source"].cast(pa.string())}
        same = {"split": _same(split, len(some)), "shard": _same(shard, len(some))}
        places = {"row": some["row"], "offset": end - tokens, "tokens": tokens, "bytes": some["bytes"]}
        columns = texts | same | {name: int64(numbers) for name, numbers in places.items()}
        yield pa.table([columns[name] for name in INDEX.names], schema=INDEX)


def _same(value: str, count: int) -> pa.Array:
    """A column of one ASCII text."""
    ends = np.arange(count + 1, dtype=np.int32) * len(value)
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(value.encode() * count))


def write(
    path: Path, dtype: str, files: list[int], places: np.ndarray, tokens: np.ndarray, eot: int, first: int
) -> None:
    """One file of llm.c's layout: 256 int32 words (magic, version, count), then the tokens, some MiB at a time.

    Pieces are read into their places: mapped files would bring 64 KiB for each into memory (a usual one has 2.5 kB).
    """
    header, size, begun = np.zeros(256, np.int32), np.dtype(dtype).itemsize, 0
    header[:3] = *FORMATS[np.dtype(dtype)], first + tokens.sum() + len(tokens)
    pieces = np.stack([places[0], places[1] * size, tokens * size])
    with path.open("wb") as file:
        file.write(header.tobytes() + np.full(first, eot, dtype).tobytes())
        for number, some in enumerate(_stretches(tokens, BLOCK_TOKENS), 1):
            ends = np.cumsum(tokens[some] + 1)
            ids = np.empty(ends[-1], dtype)
            ids[ends - 1] = eot
            block = ids.data.cast("B")
            _fill(block, (ends - 1) * size, files, pieces[:, some])
            file.writelines(block[at : at + WRITE_BYTES] for at in range(0, len(block), WRITE_BYTES))
            if number % GIVE_BACK == 0:
                give_back(files, pieces[:, begun : some.stop])
                begun = some.stop


def _stretches(tokens: np.ndarray, most: int, head: bool = False) -> Iterator[slice]:
    """Pieces of at most so many tokens, each with its end of text; at least one. A head comes with or without any."""
    ends, start = np.cumsum(tokens + 1), 0
    while start < len(tokens) or (head and start == 0):
        begun = ends[start - 1] if start else -int(head)
        stop = max(start + 1, int(np.searchsorted(ends, begun + most, "right")))
        yield slice(start, stop)
        start = stop


def _spans(pieces: np.ndarray) -> list[np.ndarray]:
    """The numbers of those that follow each other in a file, file by file; pieces are [file, first byte, bytes]."""
    files, begins, sizes = pieces
    order = np.lexsort((begins, files))
    follows = (np.diff(files[order]) == 0) & (begins[order][1:] == (begins + sizes)[order][:-1])
    return np.split(order, np.flatnonzero(~follows) + 1)


def _fill(block: memoryview, ends: np.ndarray, files: list[int], pieces: np.ndarray) -> None:
    """Read pieces into a block of bytes, in which each ends where it is told. OSError: a file is too short."""
    starts = ends - pieces[2]
    for span in _spans(pieces):
        for some in np.split(span, range(BUFFERS, len(span), BUFFERS)):
            room = [block[a:b] for a, b in zip(starts[some].tolist(), ends[some].tolist(), strict=True)]
            if os.preadv(files[pieces[0, some[0]]], room, pieces[1, some[0]]) < pieces[2, some].sum():
                raise OSError("a file of encoded tokens has lost its end; run the stage again")


def give_back(files: list[int], pieces: np.ndarray) -> None:
    """Make holes where these pieces were, whole pages only, where the system can; the files keep their sizes."""
    if (punch := getattr(ctypes.CDLL(None), "fallocate", None)) is None:  # macOS
        return
    for span in _spans(pieces):
        start = -(-int(pieces[1, span[0]]) // PAGE) * PAGE
        length = int(pieces[1:, span[-1]].sum()) // PAGE * PAGE - start
        if length > 0:
            punch(files[pieces[0, span[0]]], PUNCH_HOLE, ctypes.c_int64(start), ctypes.c_int64(length))
