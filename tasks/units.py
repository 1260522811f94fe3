"""From a corpus part to its token files: row groups are encoded by any number of workers, then put into their order.

In: a parquet part, a rule that splits it. Out: `train-*.bin`, `val-*.bin` in llm.c's layout and the rows of the index.
A unit is a range of row groups with a file of its own, so its bytes do not depend on who encodes it, or when. The
documents then follow each other by a hash of their ids: mixed once, the same whatever else the corpus holds.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpt.data import FORMATS
from tasks.columns import int64
from tasks.encoders import Differs, Engine, engines
from tasks.runtime import progress, runtime, say
from tasks.workers import spread

T = TypeVar("T")
Rule = float | list[int]
"""The share of documents to hold out, or how many characters of each row group are for training."""
SPLITS = ("train", "val")
UNIT_BYTES, UNITS, SHARD_TOKENS, BLOCK_TOKENS, INDEX_ROWS = 8 << 20, 500, 100_000_000, 1 << 20, 1 << 14
PIECE = np.dtype([("row", "i8"), ("held", "?"), ("lot", "f8"), ("bytes", "i8"), ("tokens", "i8")])
"""A document, or one of the two pieces of one that is cut: its row in the corpus part, whether it is held out."""
TEXTS = [(name, pa.string()) for name in ("id", "split", "source", "shard")]
INDEX = pa.schema(TEXTS + [(name, pa.int64()) for name in ("row", "offset", "tokens", "bytes")])
KEPT_AS = {"compression": "zstd", "write_page_checksum": True, "use_dictionary": ["split", "source", "shard"]}
"""How an index is written: half of the time and of the bytes that it takes with ids and numbers in dictionaries."""


@dataclass(frozen=True)
class Unit:
    """What one worker encodes at a time, and where the tokens go."""

    part: int
    path: Path
    groups: range
    first_row: int
    rule: Rule
    tokenizer: Path
    fast: bool
    dtype: str
    target: Path


@dataclass(frozen=True)
class Encoded:
    """The pieces of a unit in the order of their tokens, who encoded them, and why it was not the fast engine."""

    pieces: np.ndarray
    engine: str
    note: str = ""


def lot(name: str) -> float:
    """A number in [0, 1) that a name always draws: what falls below a fraction is held out, the order is by it."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


def text_bytes(path: Path) -> list[int]:
    """About how many bytes of text each row group of a part has, from its metadata."""
    about = pq.read_metadata(path)
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    columns = [[group.column(n) for n in range(group.num_columns)] for group in groups]
    return [sum(c.total_uncompressed_size for c in each if c.path_in_schema == "text") for each in columns]


def units_of(part: int, path: Path, work: Path, **settings: Any) -> list[Unit]:
    """A part's units of about 8 MiB of text; larger ones where there would be too many, as all are open at once."""
    about, sizes, units, start, row, size = pq.read_metadata(path), text_bytes(path), list[Unit](), 0, 0, 0
    for number, group_bytes in enumerate(sizes, 1):
        size += group_bytes
        if size >= max(UNIT_BYTES, sum(sizes) / UNITS) or number == len(sizes):
            target = work / f"{part:05d}-{start:06d}"
            units.append(Unit(part, path, range(start, number), row, target=target, **settings))
            row += sum(about.row_group(group).num_rows for group in units[-1].groups)
            start, size = number, 0
    return units or [Unit(part, path, range(0), 0, target=work / f"{part:05d}-000000", **settings)]  # nothing stayed


class Feed:
    """The encoded units of the parts that are to be made; parts are asked for in their order."""

    def __init__(self, units: list[list[Unit]], wanted: list[int], size: int):
        self.units, self.wanted, self._said = units, wanted, set[str]()
        chosen = [unit for part in wanted for unit in units[part]]
        # Workers take a second to start, in which one process encodes a unit.
        encoded = spread(encode, chosen, gil=True) if size > UNIT_BYTES else ((unit, encode(unit)) for unit in chosen)
        self._stream = progress(encoded, "units of 8 MB", len(chosen))

    def of(self, part: int) -> list[Encoded]:
        """A part's units. One that nobody thought to miss, as it was found damaged, is encoded by itself."""
        mine = dropwhile(lambda pair: pair[0].part < part, self._stream)  # a twin may have made the part before
        alone = partial(spread, encode, self.units[part], gil=True)
        encoded = [result for _, result in (islice(mine, len(self.units[part])) if part in self.wanted else alone())]
        for note in dict.fromkeys(e.note for e in encoded if e.note and e.note not in self._said):
            self._said.add(note)
            say(f"tiktoken encodes: {note}")
        return encoded


# -- in a worker ------------------------------------------------------------------------------------------------------


def encode(unit: Unit) -> Encoded:
    """Write a unit's tokens; all of it by tiktoken where the fast engine's ids differ anywhere."""
    reference, fast, note = engines(unit.tokenizer, unit.fast)
    if fast:
        try:
            return _encode(unit, fast.watch(unit.groups.start == 0))
        except Differs as difference:
            note = str(difference)
    return replace(_encode(unit, reference), note=note)


def _encode(unit: Unit, engine: Engine) -> Encoded:
    pieces, row = [np.zeros(0, PIECE)], unit.first_row
    with unit.target.open("wb") as file:
        for group, (names, texts) in zip(unit.groups, ahead(_read(unit)), strict=True):
            if isinstance(unit.rule, list):
                found, texts = _cut(names, texts, unit.rule[group])
            else:
                found = _whole(names, texts, unit.rule)
            flat, found["tokens"] = engine.encode_batch(texts)
            file.write(flat.data)
            found["row"] += row
            row += len(names)
            pieces.append(found)
    return Encoded(np.concatenate(pieces), engine.name)


def _read(unit: Unit) -> Iterator[tuple[list[str], list[bytes]]]:
    """Ids, and texts as UTF-8, a row group at a time."""
    with pq.ParquetFile(unit.path, page_checksum_verification=True) as file:
        for group in unit.groups:
            yield _columns(file.read_row_group(group, ["id", "text"]))


def _columns(table: pa.Table) -> tuple[list[str], list[bytes]]:
    return table["id"].to_pylist(), table["text"].cast(pa.binary()).to_pylist()


def _whole(names: list[str], texts: list[bytes], held_out: float) -> np.ndarray:
    """Pieces of a row group whose documents stay whole."""
    pieces: np.ndarray = np.zeros(len(names), PIECE)
    pieces["row"], pieces["bytes"] = np.arange(len(names)), [len(text) for text in texts]
    pieces["lot"] = [lot(name) for name in names]
    pieces["held"] = pieces["lot"] < held_out
    return pieces


def _cut(names: list[str], texts: list[bytes], train: int) -> tuple[np.ndarray, list[bytes]]:
    """Pieces of a row group of which the first `train` characters are for training."""
    pieces, start = [], 0
    for row, (name, text) in enumerate(zip(names, map(bytes.decode, texts), strict=True)):
        cut = min(max(0, train - start), len(text))
        both = ((False, text[:cut].encode()), (True, text[cut:].encode()))
        pieces += [((row, held, lot(name), len(piece), 0), piece) for held, piece in both if piece]
        start += len(text)
    return np.array([piece for piece, _ in pieces], PIECE), [text for _, text in pieces]


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Items; a thread fetches the next one while this one is worked on."""
    stream, end = iter(items), object()
    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(next, stream, end)
        while (item := waiting.result()) is not end:
            waiting = reader.submit(next, stream, end)
            yield item  # ty: ignore[invalid-yield]


# -- in one process ---------------------------------------------------------------------------------------------------


def gather(folder: Path, units: list[Unit], encoded: list[Encoded], eot: int, head: bool) -> dict[str, dict[str, int]]:
    """Write a part's files and its `index.parquet`, an end of text after each piece; remove the units' files.

    `head` puts one more at the beginning of both splits.
    """
    pieces = np.concatenate([e.pieces for e in encoded])
    begins = np.concatenate([np.cumsum(e.pieces["tokens"]) - e.pieces["tokens"] for e in encoded])
    places = np.stack([np.repeat(np.arange(len(units)), [len(e.pieces) for e in encoded]), begins])
    with pq.ParquetFile(units[0].path, read_dictionary=["source"], page_checksum_verification=True) as part:
        names = part.read(["id", "source"])  # not read_table, which imports pandas
    order, facts = np.argsort(pieces["lot"], kind="stable"), {}
    with ExitStack() as stack:
        files = [stack.enter_context(unit.target.open("rb")).fileno() for unit in units]
        index = stack.enter_context(pq.ParquetWriter(folder / "index.parquet", INDEX, **KEPT_AS))
        writers, written = stack.enter_context(ThreadPoolExecutor(runtime().workers)), []
        for held, split in enumerate(SPLITS):
            mine = order[pieces["held"][order] == bool(held)]
            for number, chosen in enumerate(_shards(mine, pieces["tokens"], head)):
                first = int(head and number == 0)
                rows, shard = pieces[chosen], f"{split}-{number:04d}.bin"
                what = files, places[:, chosen], rows["tokens"], eot, first
                written.append(writers.submit(_write, folder / shard, units[0].dtype, *what))
                index.write_table(_rows(names, rows, split, shard, first), INDEX_ROWS)
            tokens, size = int((pieces["tokens"][mine] + 1).sum()) + head, int(pieces["bytes"][mine].sum())
            facts[split] = {"tokens": tokens, "bytes": size, "documents": len(mine)}
        for file in written:
            file.result()
    for unit in units:
        unit.target.unlink()
    return facts


def _shards(chosen: np.ndarray, tokens: np.ndarray, head: bool) -> Iterator[np.ndarray]:
    """The pieces of each file: as many as fit, at least one; the head of a stream comes with or without any."""
    ends, start = np.cumsum(tokens[chosen] + 1), 0
    while start < len(chosen) or (head and start == 0):
        begun = ends[start - 1] if start else -int(head)
        stop = max(start + 1, int(np.searchsorted(ends, begun + SHARD_TOKENS, "right")))
        yield chosen[start:stop]
        start = stop


def _rows(names: pa.Table, rows: np.ndarray, split: str, shard: str, first: int) -> pa.Table:
    """The index of one file."""
    found, tokens = names.take(int64(rows["row"])), rows["tokens"] + 1
    texts = {"id": found["id"], "source": found["source"].cast(pa.string())}
    same = {"split": _same(split, len(rows)), "shard": _same(shard, len(rows))}
    places = {"row": rows["row"], "offset": np.cumsum(tokens) - tokens + first, "tokens": tokens}
    places["bytes"] = rows["bytes"]
    columns = texts | same | {name: int64(numbers) for name, numbers in places.items()}
    return pa.table([columns[name] for name in INDEX.names], schema=INDEX)


def _same(value: str, count: int) -> pa.Array:
    """A column of one ASCII text."""
    ends = np.arange(count + 1, dtype=np.int32) * len(value)
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(value.encode() * count))


def _write(
    path: Path, dtype: str, files: list[int], places: np.ndarray, tokens: np.ndarray, eot: int, first: int
) -> None:
    """One file of llm.c's layout: 256 int32 words (magic, version, count), then the tokens, some MiB at a time.

    Documents are read one by one: mapped files would bring 64 KiB each into memory (2.5 kB is a usual document).
    """
    header, ends, start = np.zeros(256, np.int32), np.cumsum(tokens + 1), 0
    header[:3] = *FORMATS[np.dtype(dtype)], first + tokens.sum() + len(tokens)
    with path.open("wb") as file:
        file.write(header.tobytes() + np.full(first, eot, dtype).tobytes())
        while start < len(tokens):
            begun = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, begun + BLOCK_TOKENS, "right")))
            block = np.empty(int(ends[stop - 1]) - begun, dtype)
            block[ends[start:stop] - begun - 1] = eot
            _fill(block.data.cast("B"), block.itemsize, files, places[:, start:stop], tokens[start:stop])
            file.write(block.data)
            start = stop


def _fill(block: memoryview, size: int, files: list[int], places: np.ndarray, tokens: np.ndarray) -> None:
    """Read pieces one after the other into a block, one token left free after each."""
    at = 0
    for unit, begin, count in zip(*places.tolist(), (tokens * size).tolist(), strict=True):
        os.preadv(files[unit], [block[at : at + count]], begin * size)
        at += count + size
