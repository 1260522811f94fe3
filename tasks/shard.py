"""Encode documents into one stream of tokens per split, `<|endoftext|>` at its head and after each document.

In: Corpus, Tokenizer. Out: Shards: `train-*.bin` and `val-*.bin` as llm.c's, `index.parquet`: where each document lies.
Method: nanoGPT's prepare.py; the validation split hashes the document id, so neither order nor growth moves a document.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from gpt.data import Stream, read_shard, write_shard
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer as Loaded
from tasks.artifacts import Config, Corpus, Metrics, Shards, Tokenizer
from tasks.corpus import documents
from tasks.files import file_digest, link
from tasks.runtime import progress, say
from tasks.stage import stage
from tasks.store import part

SPLITS = ("train", "val")
FEW = 100  # documents: below this, a split by document is too coarse
PLACES = [(name, pa.string()) for name in ("id", "split", "source", "shard")]
INDEX = pa.schema(PLACES + [(name, pa.int64()) for name in ("offset", "tokens", "bytes")])


class Shard(Config):
    """How the stream is divided into training and validation."""

    split: Literal["document", "tail"] = "document"
    """document: by a hash of its id; tail: the last characters of the corpus (always so below 100 documents)."""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    """Share held out for validation: of the documents, or under tail of the characters."""


@stage(Shards, version="1")
def shard(out: Path, config: Shard, corpus: Corpus, tokenizer: Tokenizer) -> Metrics:
    """Encode the corpus into token shards with a validation split; one shard per corpus part and split."""
    made, built = tokenizer.load(), []
    for number, (path, rule) in enumerate(zip(corpus.parts, _rules(config, corpus.parts), strict=True)):
        identity = [file_digest(path), made.digest, rule, number == 0]
        built.append(part(identity, partial(_encode, made, path, rule, number == 0)))
    totals = {split: sum((Counter(facts[split]) for _, facts in built), Counter()) for split in SPLITS}
    if empty := [split for split in SPLITS if not totals[split]["documents"]]:
        raise UserError(f"shard.val_fraction={config.val_fraction} leaves {empty[0]} no document; change it")
    _publish(out, [folder for folder, _ in built])
    splits = {split: {"files": sorted(p.name for p in out.glob(f"{split}-*.bin")), **totals[split]} for split in SPLITS}
    about = {"tokenizer": made.digest, "vocab_size": made.vocab_size, "dtype": _dtype(made).name, "splits": splits}
    # Sorted, because a part's facts come in another order from the store than from their making.
    (out / "shards.json").write_text(json.dumps(about, indent=1, sort_keys=True))
    both, each = totals["train"] + totals["val"], {f"data/{split}_tokens": totals[split]["tokens"] for split in SPLITS}
    return {"data/tokens": both["tokens"], **each, "data/bytes_per_token": both["bytes"] / both["tokens"]}


def lot(name: str) -> float:
    """A number in [0, 1) that a name always draws; what falls below a fraction is held out."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


def _rules(config: Shard, parts: list[Path]) -> list[float | int]:
    """For each part the share of its documents to hold out (float) or how many characters are for training (int)."""
    if config.split == "document":
        count = sum(pq.read_metadata(path).num_rows for path in parts)
        if count >= FEW:
            return [config.val_fraction] * len(parts)
        say(f"{count} documents are fewer than {FEW}: the last {config.val_fraction:.0%} of the text is validation")
    sizes = [sum(len(text) for _, text, _ in documents([path])) for path in parts]
    starts, border = np.cumsum([0, *sizes]), int(sum(sizes) * (1 - config.val_fraction))
    return [int(np.clip(border - start, 0, size)) for start, size in zip(starts, sizes, strict=False)]


def _dtype(made: Loaded) -> np.dtype:
    return np.dtype(np.uint16 if made.vocab_size <= 2**16 else np.uint32)


def _encode(made: Loaded, source: Path, rule: float | int, first: bool, folder: Path) -> dict[str, Counter[str]]:
    """One corpus part as a stream for each split and their index; the first part brings the head of both streams."""
    streams = {split: [np.full(int(first), made.eot, _dtype(made))] for split in SPLITS}
    facts = {split: Counter(tokens=int(first), bytes=0, documents=0) for split in SPLITS}
    rows, start = [], 0
    for name, text, origin in progress(documents([source]), "documents", pq.read_metadata(source).num_rows):
        for split, piece in _pieces(name, text, rule, start):
            streams[split].append(np.array([*made.encode(piece), made.eot], _dtype(made)))
            size = {"tokens": len(streams[split][-1]), "bytes": len(piece.encode())}
            rows.append({"id": name, "split": split, "source": origin, "offset": facts[split]["tokens"], **size})
            facts[split].update(size, documents=1)
        start += len(text)
    for split in (split for split in SPLITS if facts[split]["tokens"]):
        write_shard(folder / f"{split}.bin", np.concatenate(streams[split]))
    pq.write_table(pa.Table.from_pylist(rows, INDEX), folder / "index.parquet", write_page_checksum=True)
    return facts


def _pieces(name: str, text: str, rule: float | int, start: int) -> list[tuple[str, str]]:
    """(split, text) of one document: whole to one split by its lot, or cut where training ends."""
    if isinstance(rule, float):
        return [("val" if lot(name) < rule else "train", text)]
    cut = max(0, rule - start)
    return [(split, piece) for split, piece in zip(SPLITS, (text[:cut], text[cut:]), strict=True) if piece]


def _publish(out: Path, folders: list[Path]) -> None:
    """Link the parts' shards into the artifact, numbered as the corpus parts are, and join their indices."""
    with pq.ParquetWriter(out / "index.parquet", INDEX, write_page_checksum=True) as writer:
        for number, folder in enumerate(folders):
            for file in folder.glob("*.bin"):
                link(file, out / f"{file.stem}-{number:05d}.bin")
            rows = pq.read_table(folder / "index.parquet", page_checksum_verification=True).to_pylist()
            named = [{**row, "shard": f"{row['split']}-{number:05d}.bin"} for row in rows]
            writer.write_table(pa.Table.from_pylist(named, INDEX))


def show(shards: Path, split: str, offset: int, tokenizer: Loaded, width: int = 60) -> str:
    """One token of a split's stream in ⟦ ⟧, `width` tokens around it, and the document and source it comes from."""
    stream, rows, starts = _open(shards, split)
    if not 0 <= offset < len(stream):
        raise UserError(f"offset {offset:,} lies outside of {split}: its {len(stream):,} tokens count from 0")
    at = min(offset, width)
    window = stream.read(offset - at, min(len(stream), offset + width + 1))
    before, token, after = map(tokenizer.decode, np.split(window, [at, at + 1]))
    place, number = "the head of the stream", np.searchsorted(starts, offset, "right") - 1
    if number >= 0:
        row, inside = rows[number], offset - starts[number]
        place = f"document {row['id']} from {row['source']}, its token {inside:,} of {row['tokens']:,}"
    return f"{split} token {offset:,} of {len(stream):,} (id {window[at]}): {place}\n{before}⟦{token}⟧{after}"


def text(shards: Path, split: str, tokenizer: Loaded) -> Iterator[str]:
    """A split's whole stream, document by document: `<|endoftext|>` at its head and after each document."""
    stream, rows, starts = _open(shards, split)
    yield tokenizer.decode(stream.read(0, 1))
    for row, start in zip(rows, starts, strict=False):
        yield tokenizer.decode(stream.read(start, start + row["tokens"]))


def inspect(file: Path) -> dict[str, int | str]:
    """What one shard file holds: dtype, number of tokens, and the highest id, from which its vocabulary can be told."""
    tokens = read_shard(file)
    return {"dtype": tokens.dtype.name, "tokens": len(tokens), "highest": int(tokens.max(initial=0))}


def _open(shards: Path, split: str) -> tuple[Stream, list[dict], np.ndarray]:
    """The split's stream, its index rows, and where each document starts: they follow each other without gaps."""
    stream = Stream(sorted(shards.glob(f"{split}-*.bin")))
    if not len(stream):
        raise UserError(f"{shards} has no shards of split {split!r}; name a Shards folder and train or val")
    rows = pq.read_table(shards / "index.parquet", filters=[("split", "=", split)]).to_pylist()
    return stream, rows, np.cumsum([1, *(row["tokens"] for row in rows)])
