"""Encode documents into one stream of tokens per split, `<|endoftext|>` at its head and after each document.

In: Corpus, Tokenizer. Out: Shards of llm.c, `train-*.bin`, `val-*.bin`, and `index.parquet`: where each document lies.
Method: nanoGPT's prepare.py; the validation split hashes the document id, so neither order nor growth moves a document.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from gpt.data import write_shard
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer as Loaded
from tasks.artifacts import Config, Corpus, Metrics, Shards, Tokenizer
from tasks.runtime import progress, say
from tasks.stage import stage
from tasks.store import file_digest, link, part

SPLITS = ("train", "val")
FEW = 100
"""Documents below which a split by document is too coarse."""
INDEX = {"id": pa.string(), "split": pa.string(), "offset": pa.int64(), "tokens": pa.int64(), "bytes": pa.int64()}
INDEX |= {"source": pa.string(), "shard": pa.string()}


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
        built.append(part(identity, lambda folder, p=path, r=rule, n=number: _encode(folder, made, p, r, n == 0)))
    splits = {split: _publish(out, split, built) for split in SPLITS}
    if empty := [split for split in SPLITS if not splits[split]["documents"]]:
        raise UserError(f"shard.val_fraction={config.val_fraction} leaves {empty[0]} no document; change it")
    with pq.ParquetWriter(out / "index.parquet", pa.schema(INDEX), write_page_checksum=True) as writer:
        for number, (folder, _) in enumerate(built):
            rows = pq.read_table(folder / "index.parquet", page_checksum_verification=True)
            names = [f"{split}-{number:05d}.bin" for split in rows["split"].to_pylist()]
            writer.write_table(rows.append_column("shard", pa.array(names, pa.string())))
    head = {"tokenizer": made.digest, "vocab_size": made.vocab_size, "dtype": _dtype(made).name}
    (out / "shards.json").write_text(json.dumps({**head, "splits": splits}, indent=1), encoding="utf-8")
    tokens, size = (sum(splits[split][what] for split in SPLITS) for what in ("tokens", "bytes"))
    each = {f"data/{split}_tokens": splits[split]["tokens"] for split in SPLITS}
    return {"data/tokens": tokens, **each, "data/bytes_per_token": size / tokens}


def documents(parts: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    """(id, text, source) of each document in order, a thousand in memory at a time."""
    for path in parts:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(1000, columns=["id", "text", "source"]):
                yield from zip(*(batch[name].to_pylist() for name in ("id", "text", "source")), strict=True)


def lot(name: str) -> float:
    """A number in [0, 1) that a name always draws; what falls below a fraction is held out."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


def _rules(config: Shard, parts: list[Path]) -> list[float | int]:
    """For each part the share of documents to hold out (float), or how many of its characters are for training (int)."""
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


def _encode(folder: Path, made: Loaded, source: Path, rule: float | int, first: bool) -> dict[str, dict[str, int]]:
    """One corpus part as a stream for each split and their index; the first part brings the head of both streams."""
    streams = {split: [np.full(int(first), made.eot, _dtype(made))] for split in SPLITS}
    facts = {split: {"tokens": int(first), "bytes": 0, "documents": 0} for split in SPLITS}
    rows, start = [], 0
    for name, text, origin in progress(documents([source]), "documents", pq.read_metadata(source).num_rows):
        for split, piece in _pieces(name, text, rule, start):
            streams[split].append(np.array([*made.encode(piece), made.eot], _dtype(made)))
            size = {"tokens": len(streams[split][-1]), "bytes": len(piece.encode()), "documents": 1}
            rows.append({"id": name, "split": split, "offset": facts[split]["tokens"], **size, "source": origin})
            facts[split] = {what: facts[split][what] + size[what] for what in size}
        start += len(text)
    for split in SPLITS:
        if facts[split]["tokens"]:
            write_shard(folder / f"{split}.bin", np.concatenate(streams[split]))
    table = pa.Table.from_pylist(rows, pa.schema(list(INDEX.items())[:-1]))
    pq.write_table(table, folder / "index.parquet", write_page_checksum=True)
    return facts


def _pieces(name: str, text: str, rule: float | int, start: int) -> Iterator[tuple[str, str]]:
    """(split, text) of one document: whole to one split by its lot, or cut where training ends."""
    if isinstance(rule, float):
        yield "val" if lot(name) < rule else "train", text
    else:
        cut = max(0, rule - start)
        yield from ((split, piece) for split, piece in zip(SPLITS, (text[:cut], text[cut:]), strict=True) if piece)


def _publish(out: Path, split: str, built: list[tuple[Path, dict]]) -> dict:
    """Link a split's shards into the artifact, numbered as the corpus parts are; say what they hold together."""
    made = {f"{split}-{number:05d}.bin": folder / f"{split}.bin" for number, (folder, _) in enumerate(built)}
    files = {name: path for name, path in made.items() if path.exists()}
    for name, path in files.items():
        link(path, out / name)
    totals = {what: sum(facts[split][what] for _, facts in built) for what in ("tokens", "bytes", "documents")}
    return {"files": list(files), **totals}
