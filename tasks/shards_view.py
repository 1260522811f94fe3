"""Look into token shards: the text around a token and its document, a whole split as text, the facts of one file.

In: a Shards folder and its tokenizer, or one llm.c file. Out: text and numbers for a terminal.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gpt.data import Stream, read_shard
from gpt.errors import UserError
from gpt.tokenizer import EOT, Tokenizer


def show(shards: Path, split: str, offset: int, tokenizer: Tokenizer, width: int = 60) -> str:
    """The text around one token of a split's stream, the token in ⟦ ⟧, and the document and source it comes from."""
    stream, rows, starts = _open(shards, split)
    if not 0 <= offset < len(stream):
        raise UserError(f"offset {offset:,} lies outside of {split}: its {len(stream):,} tokens count from 0")
    start = max(0, offset - width)
    window = stream.read(start, min(len(stream), offset + width + 1))
    at = offset - start
    pieces = (tokenizer.decode(ids) for ids in (window[:at], window[at : at + 1], window[at + 1 :]))
    number = int(np.searchsorted(starts, offset, side="right")) - 1
    where = "the head of the stream"
    if number >= 0:
        row = rows[number]
        where = f"document {row['id']} from {row['source']}, its token {offset - starts[number]:,} of {row['tokens']:,}"
    return f"{split} token {offset:,} of {len(stream):,} (id {window[at]}): {where}\n" + "{}⟦{}⟧{}".format(*pieces)


def text(shards: Path, split: str, tokenizer: Tokenizer) -> Iterator[str]:
    """A split's whole stream, document by document: `<|endoftext|>` at its head and after each document."""
    stream, rows, starts = _open(shards, split)
    yield EOT
    for row, start in zip(rows, starts, strict=False):
        yield tokenizer.decode(stream.read(start, start + row["tokens"]))


def inspect(file: Path) -> dict[str, Any]:
    """What one shard file holds: its dtype, how many tokens, the lowest and the highest id."""
    tokens = read_shard(file)
    span = {"lowest": int(tokens.min()), "highest": int(tokens.max())} if len(tokens) else {}
    return {"file": file.name, "dtype": tokens.dtype.name, "tokens": len(tokens), **span}


def _open(shards: Path, split: str) -> tuple[Stream, list[dict[str, Any]], np.ndarray]:
    """The split's stream, its index rows, and where each document starts (documents follow each other without gaps)."""
    stream = Stream(sorted(shards.glob(f"{split}-*.bin")))
    if not len(stream):
        raise UserError(f"{shards} has no shards of split {split!r}; name a Shards folder and train or val")
    rows = pq.read_table(shards / "index.parquet", filters=[("split", "=", split)]).to_pylist()
    return stream, rows, np.cumsum([1, *(row["tokens"] for row in rows)])
