"""Look into files of tokens: the text around a token and where it comes from, a whole stream, what a file holds.

In: a Shards folder and its tokenizer, or any one file. Out: lines for a person; UserError for a file that is damaged.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpt.data import Stream, read_shard
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer as Loaded


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
    """What one shard file holds: dtype, number of tokens, and the highest id, from which its vocabulary can be told."""
    tokens = read_shard(file)
    return {"dtype": tokens.dtype.name, "tokens": len(tokens), "highest": int(tokens.max(initial=0))}


def _open(shards: Path, split: str) -> tuple[Stream, pa.Table, np.ndarray]:
    """The split's stream, its index rows, and where each document starts: they follow each other without gaps."""
    stream = Stream(sorted(shards.glob(f"{split}-*.bin")))
    if not len(stream):
        raise UserError(f"{shards} has no shards of split {split!r}; name a Shards folder and train or val")
    index = pq.read_table(shards / "index.parquet", filters=[("split", "=", split)])
    return stream, index, np.cumsum([1, *index["tokens"].to_numpy()])
