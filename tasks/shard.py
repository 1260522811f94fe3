"""Encode documents into one stream of tokens per split, `<|endoftext|>` at its head and after each document.

In: Corpus, Tokenizer. Out: Shards: `train-*.bin`, `val-*.bin` (llm.c), `index.parquet` (where each document lies), `shards.json`.
Method: nanoGPT's prepare.py, plus a validation split by a hash of the document id, which neither order nor growth moves.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
FEW = 100  # documents: below this a split by document is too coarse
INDEX = pa.schema(
    [("id", pa.string()), ("split", pa.string()), ("shard", pa.string()), ("offset", pa.int64())]
    + [("tokens", pa.int64()), ("bytes", pa.int64()), ("source", pa.string())]
)


class Shard(Config):
    """How the stream is divided into training and validation."""

    split: Literal["document", "tail"] = "document"
    """document: by a hash of its id; tail: the last characters of the corpus (always so below 100 documents)."""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    """Share held out for validation: of the documents, or of the characters under tail."""


@stage(Shards, version="1")
def shard(out: Path, config: Shard, corpus: Corpus, tokenizer: Tokenizer) -> Metrics:
    """Encode the corpus into token shards with a validation split; one shard per corpus part and split."""
    made, parts = tokenizer.load(), corpus.parts
    cuts = _cuts(config, parts)
    built = []
    for number, (path, cut) in enumerate(zip(parts, cuts, strict=True)):
        rule = config.val_fraction if cut is None else {"cut": cut}
        identity = [file_digest(path), made.digest, rule, number == 0]
        built.append(
            part(identity, lambda folder, p=path, c=cut, n=number: _encode(folder, config, made, p, c, n == 0))
        )
    splits = {split: _publish(out, split, built) for split in SPLITS}
    if empty := [split for split in SPLITS if not splits[split]["documents"]]:
        raise UserError(
            f"shard.val_fraction={config.val_fraction} leaves nothing for {empty[0]}; change it or the split"
        )
    _join_indices(out / "index.parquet", [folder for folder, _ in built])
    head = {"tokenizer": made.digest, "vocab_size": made.vocab_size, "dtype": np.dtype(_dtype(made)).name}
    (out / "shards.json").write_text(json.dumps({**head, "splits": splits}, indent=1), encoding="utf-8")
    tokens, size = (sum(splits[split][what] for split in SPLITS) for what in ("tokens", "bytes"))
    each = {f"data/{split}_tokens": float(splits[split]["tokens"]) for split in SPLITS}
    return {"data/tokens": tokens, **each, "data/bytes_per_token": size / tokens}


def documents(parts: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    """(id, text, source) of each document in order, a thousand in memory at a time."""
    for path in parts:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(1000, columns=["id", "text", "source"]):
                yield from zip(*(batch[name].to_pylist() for name in ("id", "text", "source")), strict=True)


def lot(name: str) -> float:
    """A number in [0, 1) that a name always draws: what falls below a fraction is held out."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


def _cuts(config: Shard, parts: list[Path]) -> list[int | None]:
    """For each part None (split by document), or how many of its characters belong to training."""
    if config.split == "document":
        count = sum(pq.read_metadata(path).num_rows for path in parts)
        if count >= FEW:
            return [None] * len(parts)
        say(f"{count} documents are fewer than {FEW}: the last {config.val_fraction:.0%} of the text is validation")
    sizes = [sum(len(text) for _, text, _ in documents([path])) for path in parts]
    starts, border = np.cumsum([0, *sizes]), int(sum(sizes) * (1 - config.val_fraction))
    return [int(np.clip(border - start, 0, size)) for start, size in zip(starts, sizes, strict=False)]


def _dtype(made: Loaded) -> type[np.unsignedinteger]:
    return np.uint16 if made.vocab_size <= 2**16 else np.uint32


def _encode(folder: Path, config: Shard, made: Loaded, source: Path, cut: int | None, first: bool) -> dict:
    """One part of the corpus as a stream per split (the head of the whole stream where it is the first), and its index."""
    streams: dict[str, list[np.ndarray]] = {split: [np.full(int(first), made.eot, _dtype(made))] for split in SPLITS}
    ends, rows = dict.fromkeys(SPLITS, int(first)), []
    total = pq.read_metadata(source).num_rows
    for name, text, origin in progress(documents([source]), "documents", total):
        for split, piece in _pieces(name, text, cut, config.val_fraction):
            tokens = np.array([*made.encode(piece), made.eot], _dtype(made))
            rows.append([name, split, "", ends[split], len(tokens), len(piece.encode()), origin])
            streams[split].append(tokens)
            ends[split] += len(tokens)
        cut = None if cut is None else max(0, cut - len(text))
    for split in SPLITS:
        if ends[split]:
            write_shard(folder / f"{split}.bin", np.concatenate(streams[split]))
    index = pa.table(list(zip(*rows, strict=True)) or [[]] * len(INDEX), schema=INDEX)
    pq.write_table(index, folder / "index.parquet", write_page_checksum=True)
    return {split: _count(index.filter(pc.field("split") == split), ends[split]) for split in SPLITS}


def _pieces(name: str, text: str, cut: int | None, val_fraction: float) -> Iterator[tuple[str, str]]:
    """(split, text) of one document: whole to one split, or cut in two where training ends."""
    if cut is None:
        yield ("val" if lot(name) < val_fraction else "train"), text
    else:
        yield from ((split, piece) for split, piece in zip(SPLITS, (text[:cut], text[cut:]), strict=True) if piece)


def _count(index: pa.Table, tokens: int) -> dict[str, int]:
    return {"tokens": tokens, "bytes": pc.sum(index["bytes"]).as_py() or 0, "documents": len(index)}


def _publish(out: Path, split: str, built: list[tuple[Path, dict]]) -> dict:
    """Link a split's shards into the artifact, numbered as the corpus parts are; say what they hold together."""
    files = {f"{split}-{n:05d}.bin": folder / f"{split}.bin" for n, (folder, _) in enumerate(built)}
    files = {name: path for name, path in files.items() if path.exists()}
    for name, path in files.items():
        link(path, out / name)
    totals = {what: sum(facts[split][what] for _, facts in built) for what in ("tokens", "bytes", "documents")}
    return {"files": list(files), **totals}


def _join_indices(path: Path, folders: list[Path]) -> None:
    with pq.ParquetWriter(path, INDEX, write_page_checksum=True) as writer:
        for number, folder in enumerate(folders):
            rows = pq.read_table(folder / "index.parquet", page_checksum_verification=True)
            names = pc.binary_join_element_wise(rows["split"], f"{number:05d}.bin", "-")
            writer.write_table(rows.set_column(INDEX.get_field_index("shard"), "shard", names))
