"""Encode documents into one stream of tokens per split, `<|endoftext|>` at its head and after each document.

In: Corpus, Tokenizer. Out: Shards: `train-*.bin` and `val-*.bin` as llm.c's, `index.parquet`: where each document lies.
Method: nanoGPT's prepare.py; the validation split hashes the document id, so neither order nor growth moves a document.
Each corpus part has files of its own, which later artifacts share, and its documents are mixed once (tasks/mixing.py).
"""

import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from gpt.errors import UserError
from tasks.artifacts import Config, Corpus, Metrics, Shards, Tokenizer
from tasks.corpus import tables
from tasks.encoders import engines, loaded, narrowest
from tasks.files import file_digest, link
from tasks.mixing import INDEX, KEPT_AS, SPLITS, gather
from tasks.runtime import runtime, say
from tasks.stage import stage
from tasks.store import has_part, part
from tasks.units import Feed, Rule, text_bytes, units_of
from tasks.units import lot as lot

FEW = 100  # documents: below this, a split by document is too coarse
FAST_BYTES = 16 << 20  # of text: below this, the fast engine's start costs more than it saves


class Shard(Config):
    """How the stream is divided into training and validation."""

    split: Literal["document", "tail"] = "document"
    """document: by a hash of its id; tail: the last characters of the corpus (always so below 100 documents)."""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    """Share held out for validation: of the documents, or under tail of the characters."""


@stage(Shards, version="2")
def shard(out: Path, config: Shard, corpus: Corpus, tokenizer: Tokenizer) -> Metrics:
    """Encode the corpus into token shards with a validation split; each corpus part has shards of its own."""
    made, parts, rules = loaded(tokenizer.path), corpus.parts, _rules(config, corpus.parts)
    dtype = narrowest(made.vocab_size).name
    identities = [[file_digest(path), made.digest, rules[n], n == 0] for n, path in enumerate(parts)]
    feed = _feed(out / "units", identities, parts, rules, tokenizer=tokenizer.path, dtype=dtype)
    built = [part(identities[n], partial(_build, feed, n, made.eot)) for n in range(len(parts))]
    shutil.rmtree(out / "units")
    engines.cache_clear()  # where this process encoded, it has more to do than to keep a cache of words
    totals = {split: sum((Counter(facts[split]) for _, facts in built), Counter()) for split in SPLITS}
    if empty := [split for split in SPLITS if not totals[split]["documents"]]:
        raise UserError(f"shard.val_fraction={config.val_fraction} leaves {empty[0]} no document; change it")
    _publish(out, [folder for folder, _ in built])
    (out / "logs").mkdir(exist_ok=True)  # outside the content: every engine makes the same bytes
    (out / "logs" / "encoders.json").write_text(json.dumps([facts["encoders"] for _, facts in built]))
    splits = {split: {"files": sorted(p.name for p in out.glob(f"{split}-*.bin")), **totals[split]} for split in SPLITS}
    sums = {path.name: file_digest(path) for path in sorted(out.glob("*.bin"))}
    about = {"tokenizer": made.digest, "vocab_size": made.vocab_size, "dtype": dtype, "splits": splits, "sha256": sums}
    # Sorted, because a part's facts come in another order from the store than from their making.
    (out / "shards.json").write_text(json.dumps(about, indent=1, sort_keys=True))
    both, each = totals["train"] + totals["val"], {f"data/{split}_tokens": totals[split]["tokens"] for split in SPLITS}
    return {"data/tokens": both["tokens"], **each, "data/bytes_per_token": both["bytes"] / both["tokens"]}


def _rules(config: Shard, parts: list[Path]) -> list[Rule]:
    """For each part the share of its documents to hold out, or how many characters of each row group to train on."""
    if config.split == "document":
        count = sum(pq.read_metadata(path).num_rows for path in parts)
        if count >= FEW:
            return [config.val_fraction] * len(parts)
        say(f"{count} documents are fewer than {FEW}: the last {config.val_fraction:.0%} of the text is validation")
    sizes = [[sum(map(len, t["text"].to_pylist())) for t in tables(path, ["text"])] for path in parts]
    flat = np.array([*chain.from_iterable(sizes)], np.int64)
    starts, border = np.cumsum(flat) - flat, int(flat.sum() * (1 - config.val_fraction))
    train = np.clip(border - starts, 0, flat)
    return [each.tolist() for each in np.split(train, np.cumsum([len(groups) for groups in sizes])[:-1])]


def _feed(work: Path, identities: list[Any], parts: list[Path], rules: list[Rule], **settings: Any) -> Feed:
    """What encodes the parts that the store lacks, all of them by one set of workers."""
    work.mkdir()
    missing = [number for number, identity in enumerate(identities) if not has_part(identity)]
    size = sum(sum(text_bytes(parts[number])) for number in missing)
    fast = runtime().fast and size >= FAST_BYTES
    units = [units_of(n, path, work, rule=rules[n], fast=fast, **settings) for n, path in enumerate(parts)]
    return Feed(units, missing, size)


def _build(feed: Feed, number: int, eot: int, folder: Path) -> dict[str, Any]:
    """One corpus part as files for each split and their index; the first part brings the head of both streams."""
    encoded = feed.of(number)
    facts = gather(folder, feed.units[number], encoded, eot, head=number == 0)
    return {**facts, "encoders": Counter(one.engine for one in encoded)}


def _publish(out: Path, folders: list[Path]) -> None:
    """Link the parts' shards into the artifact, numbered as the corpus parts are, and join their indices."""
    with pq.ParquetWriter(out / "index.parquet", INDEX, **KEPT_AS) as writer:
        for number, folder in enumerate(folders):
            files = {file: out / file.name.replace("-", f"-{number:05d}-") for file in folder.glob("*.bin")}
            with ThreadPoolExecutor(runtime().workers) as readers:  # one that nobody has hashed yet is read
                [*readers.map(link, files, files.values())]
            for rows in tables(folder / "index.parquet"):
                names = pc.replace_substring(rows["shard"], "-", f"-{number:05d}-")  # ty: ignore[missing-attribute]
                writer.write_table(rows.set_column(INDEX.get_field_index("shard"), "shard", names))
