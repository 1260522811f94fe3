"""The shard stage: one stream per split, nothing lost, every document findable, parts shared between artifacts."""

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt.data import read_shard
from gpt.errors import UserError
from gpt.tokenizer import LETTERS, reserve
from gpt.tokenizer import Tokenizer as Loaded
from tasks.artifacts import Corpus, Shards, Tokenizer
from tasks.corpus import documents
from tasks.shard import Shard, lot, shard
from tasks.shardfiles import inspect, show, text
from tasks.stage import Session, using
from tasks.store import Store

TEXTS = [f"Document {n}: ñandú {n * n}\n" + "<|endoftext|> is text here. " * (n % 3) for n in range(150)]


def corpus(folder: Path, parts: list[list[tuple[str, str]]]) -> Corpus:
    """Parts of (id, text); a fair stand-in for dedup's output, which has these columns."""
    folder.mkdir()
    for number, part in enumerate(parts):
        rows = [{"id": name, "text": body, "source": f"file{number}"} for name, body in part]
        schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string())])
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"part-{number:05d}.parquet")
    return Corpus(stage="dedup", key="k", digest=str(parts), path=folder)


def named(texts: list[str], prefix: str = "d") -> list[tuple[str, str]]:
    return [(f"{prefix}{n}", body) for n, body in enumerate(texts)]


def mixed(part: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(part, key=lambda row: lot(row[0]))


@pytest.fixture
def vocabulary(tmp_path) -> Tokenizer:
    """Bytes as tokens: 256 ranks and five specials."""
    ranks = {bytes([byte]): rank for rank, byte in enumerate(LETTERS)}
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    Loaded(ranks, "gpt2", reserve(ranks)).save(folder)
    return Tokenizer(stage="tokenizer", key="k", digest="t", path=folder)


def build(folder: Path, config: Shard, documents: Corpus, vocabulary: Tokenizer) -> Shards:
    folder.mkdir()
    metrics = shard.fn(folder, config, documents, vocabulary)
    return Shards(stage="shard", key="k", digest="s", path=folder, metrics=metrics)


def tokens(shards: Shards, split: str) -> np.ndarray:
    return np.concatenate([read_shard(file) for file in shards.files(split)])


def test_each_split_is_one_stream_with_an_end_of_text_at_its_head_and_after_each_document(tmp_path, vocabulary):
    parts = [named(TEXTS[:100]), named(TEXTS[100:], "e")]
    shards = build(tmp_path / "out", Shard(val_fraction=0.2), corpus(tmp_path / "corpus", parts), vocabulary)
    loaded = vocabulary.load()
    facts = json.loads((shards.path / "shards.json").read_text())
    assert (facts["tokenizer"], facts["vocab_size"], facts["dtype"]) == (loaded.digest, 261, "uint16")
    for split in ("train", "val"):
        mine = [body for part in parts for name, body in mixed(part) if (lot(name) < 0.2) == (split == "val")]
        expected = [loaded.eot, *(token for body in mine for token in [*loaded.encode(body), loaded.eot])]
        assert tokens(shards, split).tolist() == expected
        assert (tokens(shards, split) == loaded.eot).sum() == len(mine) + 1, "a text that spells it stays text"
        size = {"tokens": len(expected), "bytes": sum(len(body.encode()) for body in mine), "documents": len(mine)}
        assert facts["splits"][split] == {"files": [file.name for file in shards.files(split)], **size}
    assert 15 < facts["splits"]["val"]["documents"] < 45
    assert shards.metrics["data/tokens"] == sum(facts["splits"][split]["tokens"] for split in ("train", "val"))


def test_the_index_says_where_each_document_lies(tmp_path, vocabulary):
    parts = [named(TEXTS[:100]), named(TEXTS[100:], "e")]
    shards = build(tmp_path / "out", Shard(), corpus(tmp_path / "corpus", parts), vocabulary)
    index = pq.read_table(shards.path / "index.parquet").to_pylist()
    texts = {name: body for part in parts for name, body in part}
    assert sorted(row["id"] for row in index) == sorted(texts)
    for row in index:
        stream = read_shard(shards.path / row["shard"])
        ids = stream[row["offset"] : row["offset"] + row["tokens"]]
        assert vocabulary.load().decode(ids[:-1]) == texts[row["id"]]
        assert row["bytes"] == len(texts[row["id"]].encode())
        assert row["source"] == ("file0" if row["id"].startswith("d") else "file1")


def test_neither_order_nor_growth_moves_a_document_to_the_other_split(tmp_path, vocabulary):
    held = {}
    for name, rows in {"one": named(TEXTS), "reversed": named(TEXTS)[::-1], "more": named(TEXTS * 2)}.items():
        shards = build(
            tmp_path / name, Shard(val_fraction=0.2), corpus(tmp_path / f"{name}-corpus", [rows]), vocabulary
        )
        index = pq.read_table(shards.path / "index.parquet").to_pylist()
        held[name] = {row["id"] for row in index if row["split"] == "val"}
    assert held["one"] == held["reversed"] == held["more"] & {f"d{n}" for n in range(150)} != set()


@pytest.mark.parametrize(("parts", "train"), [(1, 900), (3, 900), (10, 900)])
def test_tail_keeps_the_last_characters_for_validation_wherever_parts_end(tmp_path, vocabulary, parts, train):
    whole = "".join(f"{n:04d}é" for n in range(200))
    step = 1000 // parts
    pieces = [whole[at : at + step] for at in range(0, step * (parts - 1), step)] + [whole[step * (parts - 1) :]]
    documents_ = corpus(tmp_path / "corpus", [[(f"d{n}", piece)] for n, piece in enumerate(pieces)])
    shards = build(tmp_path / "out", Shard(split="tail", val_fraction=0.1), documents_, vocabulary)
    plain = {split: "".join(text(shards.path, split, vocabulary.load())) for split in ("train", "val")}
    assert plain["train"].replace("<|endoftext|>", "") == whole[:train]
    assert plain["val"].replace("<|endoftext|>", "") == whole[train:]
    facts = json.loads((shards.path / "shards.json").read_text())["splits"]
    for split in ("train", "val"):
        assert plain[split].count("<|endoftext|>") == facts[split]["documents"] + 1


def test_few_documents_are_split_by_tail_and_it_is_said(tmp_path, vocabulary, caplog):
    caplog.set_level(logging.INFO)
    shards = build(tmp_path / "out", Shard(), corpus(tmp_path / "corpus", [named(TEXTS[:99])]), vocabulary)
    assert "99 documents are fewer than 100: the last 5% of the text is validation" in caplog.text
    held = [row["id"] for row in pq.read_table(shards.path / "index.parquet").to_pylist() if row["split"] == "val"]
    assert sorted(held) == [f"d{n}" for n in range(99 - len(held), 99)]


def test_a_split_without_documents_is_an_error_that_names_the_setting(tmp_path, vocabulary):
    with pytest.raises(UserError, match=r"shard\.val_fraction=1e-09 leaves val no document"):
        build(tmp_path / "out", Shard(val_fraction=1e-9), corpus(tmp_path / "corpus", [named(TEXTS)]), vocabulary)


def test_a_new_part_leaves_the_others_shared_and_equals_a_run_from_scratch(tmp_path, vocabulary):
    old, new = [named(TEXTS), named(TEXTS[:50], "e")], [named(TEXTS), named(TEXTS[:50], "e"), named(TEXTS[9:], "f")]
    with using(Session(Store(tmp_path / "store"))):
        first = shard(Shard(), corpus(tmp_path / "old", old), vocabulary)
        grown = shard(Shard(), corpus(tmp_path / "new", new), vocabulary)
    for file in (*first.files("train"), *first.files("val")):
        assert file.samefile(grown.path / file.name), f"{file.name} was written twice"
    with using(Session(Store(tmp_path / "elsewhere"))):
        fresh = shard(Shard(), corpus(tmp_path / "again", new), vocabulary)
    assert (grown.digest, len(grown.files("train"))) == (fresh.digest, 3)


def test_large_vocabularies_take_four_bytes_a_token(tmp_path):
    ranks = {bytes([byte]): rank for rank, byte in enumerate(LETTERS)}
    ranks |= {bytes([a, b]): 256 + 256 * a + b for a in range(256) for b in range(256)}
    (tmp_path / "tokenizer").mkdir()
    Loaded(ranks, "gpt2", reserve(ranks)).save(tmp_path / "tokenizer")
    big = Tokenizer(stage="tokenizer", key="k", digest="t", path=tmp_path / "tokenizer")
    shards = build(tmp_path / "out", Shard(), corpus(tmp_path / "corpus", [named(TEXTS)]), big)
    assert tokens(shards, "train").dtype == np.uint32
    assert tokens(shards, "train")[0] == big.load().eot == 65_792
    assert inspect(shards.files("val")[0])["highest"] == 65_792


def test_show_names_the_document_around_a_token(tmp_path, vocabulary):
    shards = build(tmp_path / "out", Shard(), corpus(tmp_path / "corpus", [named(TEXTS)]), vocabulary)
    loaded, index = vocabulary.load(), pq.read_table(shards.path / "index.parquet").to_pylist()
    row = [row for row in index if row["split"] == "train"][7]
    head, context = show(shards.path, "train", row["offset"] + 3, loaded, width=3).split("\n")
    place = f"document {row['id']} from file0 (row {row['row']} of corpus part 0), its token 3 of {row['tokens']}"
    assert place in head
    assert TEXTS[row["row"]].startswith("Document " + row["id"][1:])
    assert context == "Doc⟦u⟧men"
    assert show(shards.path, "train", 0, loaded, 4).endswith("the head of the stream\n⟦<|endoftext|>⟧Docu")
    last = len(tokens(shards, "val")) - 1
    assert show(shards.path, "val", last, loaded).endswith("⟦<|endoftext|>⟧")
    with pytest.raises(UserError, match=rf"offset {last + 1:,} lies outside of val"):
        show(shards.path, "val", last + 1, loaded)
    with pytest.raises(UserError, match="no shards of split 'test'"):
        show(shards.path, "test", 0, loaded)


def test_a_damaged_page_of_the_corpus_is_noticed(tmp_path):
    path = tmp_path / "part.parquet"
    table = pa.table({"id": ["a"], "text": ["x" * 5000 + "needle"], "source": ["s"]})
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"needle", b"noodle", 1))
    with pytest.raises(OSError, match=r"(?i)crc|corrupt"):
        list(documents([path]))


@pytest.mark.shared
def test_tinyshakespeare_is_cut_where_nanogpt_cuts_it(tmp_path, vocabulary, shared_data):
    whole = (shared_data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    documents_ = corpus(tmp_path / "corpus", [[("d", whole)]])
    shards = build(tmp_path / "out", Shard(split="tail", val_fraction=0.1), documents_, vocabulary)
    train = "".join(text(shards.path, "train", vocabulary.load()))
    assert train == f"<|endoftext|>{whole[: int(len(whole) * 0.9)]}<|endoftext|>"
    assert shards.metrics["data/val_tokens"] == 111_540 + 2
