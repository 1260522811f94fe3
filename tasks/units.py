"""From a corpus part to token ids: its row groups are encoded by any number of workers.

In: parquet parts, rules that split them. Out: a file of ids for each unit, and what lies where (tasks/mixing.py).
A unit is a range of row groups with a file of its own, so its bytes do not depend on who encodes it, or when. The
documents of a row group follow each other by a hash of their ids, as those of the part will: a row group is then read
from its beginning to its end.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.encoders import Differs, Engine, engines
from tasks.runtime import progress, say
from tasks.workers import spread

T = TypeVar("T")
Rule = float | list[int]
"""The share of documents to hold out, or how many characters of each row group are for training."""
UNIT_BYTES, UNITS, WRITE_BYTES = 8 << 20, 500, 64 << 10
"""Written at a time: for more Linux takes larger pages, of which a hole would give nothing back (tasks/mixing.py)."""
PIECE = np.dtype([("row", "i8"), ("held", "?"), ("lot", "f8"), ("bytes", "i8"), ("tokens", "i8")])
"""A document, or one of the two pieces of one that is cut: its row in the corpus part, whether it is held out."""


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


def mixed(pieces: np.ndarray) -> np.ndarray:
    """The order of pieces in the stream: those for training first, each split by lot."""
    return np.lexsort((pieces["lot"], pieces["held"]))


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
    with unit.target.open("wb", WRITE_BYTES) as file:
        for group, (names, texts) in zip(unit.groups, ahead(_read(unit)), strict=True):
            if isinstance(unit.rule, list):
                found, texts = _cut(names, texts, unit.rule[group])
            else:
                found = _whole(names, texts, unit.rule)
            flat, found["tokens"] = engine.encode_batch(texts)
            found["row"] += row
            row += len(names)
            order, ends = mixed(found), np.cumsum(found["tokens"])
            # Only now, as neighbours share words: an encoder is 5 to 10 % faster with documents as they come.
            spans = zip((ends - found["tokens"])[order].tolist(), ends[order].tolist(), strict=True)
            file.writelines(flat.data[start:end] for start, end in spans)
            pieces.append(found[order])
    return Encoded(np.concatenate(pieces), engine.name)


def _read(unit: Unit) -> Iterator[tuple[list[str], list[bytes]]]:
    """Ids, and texts as UTF-8, a row group at a time."""
    with pq.ParquetFile(unit.path, page_checksum_verification=True) as file:
        for group in unit.groups:
            yield _columns(file.read_row_group(group, ["id", "text"], use_threads=False))


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
