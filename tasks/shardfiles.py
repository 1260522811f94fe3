"""Look into files of tokens: the text around a token and where it comes from, a whole stream, what a file holds.

In: a Shards folder and its tokenizer, or any one file. Out: lines for a person; UserError for a file that is damaged.
"""

import json
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpt.data import FORMATS, Stream, read_shard
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer as Loaded
from tasks.files import hash_file

Found = tuple[str, np.ndarray, int | None]
"""A format's name, its tokens, its documents where the file tells."""
MEGATRON, KINDS = b"MMIDIDX\0\0", {4: np.dtype(np.int32), 8: np.dtype(np.uint16)}


def show(shards: Path, split: str, offset: int, tokenizer: Loaded, width: int = 60) -> str:
    """One token of a split's stream in ⟦ ⟧, `width` tokens around it, and the document, source and row it is from."""
    stream, index, starts = _open(shards, split)
    if not 0 <= offset < len(stream):
        raise UserError(f"offset {offset:,} lies outside of {split}: its {len(stream):,} tokens count from 0")
    at = min(offset, width)
    window = stream.read(offset - at, min(len(stream), offset + width + 1))
    before, token, after = map(tokenizer.decode, np.split(window, [at, at + 1]))
    place, number = "the head of the stream", int(np.searchsorted(starts, offset, "right")) - 1
    if number >= 0:
        (row,) = index.slice(number, 1).to_pylist()
        part = int(row["shard"].split("-")[1])
        where = f"from {row['source']} (row {row['row']:,} of corpus part {part})"
        place = f"document {row['id']} {where}, its token {offset - starts[number]:,} of {row['tokens']:,}"
    return f"{split} token {offset:,} of {len(stream):,} (id {window[at]}): {place}\n{before}⟦{token}⟧{after}"


def text(shards: Path, split: str, tokenizer: Loaded) -> Iterator[str]:
    """A split's whole stream, document by document: `<|endoftext|>` at its head and after each document."""
    stream, _, starts = _open(shards, split)
    yield tokenizer.decode(stream.read(0, 1))
    yield from (tokenizer.decode(stream.read(start, stop)) for start, stop in pairwise(starts))


def inspect(file: Path) -> dict[str, int | str]:
    """What one file holds: its format, dtype, tokens, documents where it tells, and the highest id.

    Knows llm.c's layout, which is ours, Megatron's and datatrove's with their indices, and nanoGPT's bare uint16.
    """
    beside = file.parent / "shards.json"
    sums = json.loads(beside.read_text()).get("sha256", {}) if beside.exists() else {}
    if sums.get(file.name, "") not in ("", hash_file(file)):
        raise UserError(f"{file} is damaged: its sha256 is not the one in {beside.name}; build it again")
    reader = next(read for fits, read in _READERS if fits(file))
    kind, tokens, documents = reader(file)
    counts = {"tokens": len(tokens)} | ({} if documents is None else {"documents": documents})
    return {"format": kind, "dtype": tokens.dtype.name, **counts, "highest": int(tokens.max(initial=0))}


def _llm_c(file: Path) -> Found:
    return "llm.c", read_shard(file), None


def _megatron(file: Path) -> Found:
    """The index: 9 bytes of magic, version, dtype, counts of sequences and documents, then each sequence's length."""
    index = file.with_suffix(".idx").read_bytes()
    kind, sequences, documents = struct.unpack("<17xBqq", index[:34].ljust(34, b"\0"))
    if index[:9] != MEGATRON or kind not in KINDS or len(index) != 34 + 12 * sequences + 8 * documents:
        raise UserError(f"{file.with_suffix('.idx')} is no whole Megatron index (magic, dtype or size); build it again")
    lengths = np.frombuffer(index, "<i4", sequences, 34)
    tokens = _bare(file.with_suffix(".bin"), KINDS[kind], int(lengths.sum(dtype=np.int64)))
    return "Megatron", tokens, documents - 1  # it counts the borders


def _datatrove(file: Path) -> Found:
    """The index: where each document ends, uint64."""
    ends = np.fromfile(f"{file}.index", "<u8")
    count = int(ends[-1]) if len(ends) else 0
    dtype = np.dtype(np.uint32 if file.stat().st_size == 4 * count else np.uint16)
    return "datatrove", _bare(file, dtype, count), len(ends)


def _nanogpt(file: Path) -> Found:
    """No header, so nothing but its size can be wrong; a header of ours with another magic would be noise in it."""
    head = np.fromfile(file, np.int32, 256)
    if len(head) == 256 and head[0] and not head[3:].any():
        raise UserError(f"{file} has llm.c's header with magic {head[0]}, which nothing has; build it again")
    return "nanoGPT", _bare(file, np.dtype(np.uint16), file.stat().st_size // 2), None


def _bare(file: Path, dtype: np.dtype, count: int) -> np.ndarray:
    size = file.stat().st_size
    if size != count * dtype.itemsize:
        raise UserError(f"{file} has {size:,} bytes, not {count:,} tokens of {dtype.itemsize}; build it again")
    return np.memmap(file, dtype, "r") if size else np.zeros(0, dtype)


def _known(file: Path) -> bool:
    return any(magic == np.fromfile(file, np.int32, 1).sum() for magic, _ in FORMATS.values())


_READERS: list[tuple[Callable[[Path], bool], Callable[[Path], Found]]] = [
    (_known, _llm_c),
    (lambda file: file.with_suffix(".idx").exists(), _megatron),
    (lambda file: Path(f"{file}.index").exists(), _datatrove),
    (lambda file: True, _nanogpt),
]


def _open(shards: Path, split: str) -> tuple[Stream, pa.Table, np.ndarray]:
    """The split's stream, its index rows, and where each document starts: they follow each other without gaps."""
    stream = Stream(sorted(shards.glob(f"{split}-*.bin")))
    if not len(stream):
        raise UserError(f"{shards} has no shards of split {split!r}; name a Shards folder and train or val")
    index = pq.read_table(shards / "index.parquet", filters=[("split", "=", split)])
    return stream, index, np.cumsum([1, *index["tokens"].to_numpy()])
