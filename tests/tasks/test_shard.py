"""The shard stage: one stream per split, nothing lost, every document findable, parts shared between artifacts."""

import hashlib
import json
import logging
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt.data import read_shard
from gpt.errors import UserError
from gpt.tokenizer import LETTERS, reserve
from gpt.tokenizer import Tokenizer as Loaded
from tasks import mixing, units
from tasks.artifacts import Corpus, Shards, Tokenizer
from tasks.corpus import documents
from tasks.encoders import Differs, engines
from tasks.runtime import Runtime, running
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


def as_llm_c(file: Path) -> list[int]:
    """A reader of its own, from llm.c's published layout: 256 int32 words (magic, version, count, zeros), then ids."""
    raw = file.read_bytes()
    magic, version, count, *rest = struct.unpack_from("<256i", raw)
    letter, size = {(20240520, 1): ("H", 2), (20240801, 7): ("I", 4)}[magic, version]
    assert not any(rest)
    assert len(raw) == 1024 + size * count
    return list(struct.unpack_from(f"<{count}{letter}", raw, 1024))


def contents(folder: Path) -> dict[str, str]:
    """What every engine and any number of workers must make alike."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


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
        assert [token for file in shards.files(split) for token in as_llm_c(file)] == expected
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


@pytest.mark.parametrize("wrongly", [False, True])
def test_parts_that_come_or_go_while_others_are_made_do_no_harm(tmp_path, vocabulary, monkeypatch, wrongly):
    documents_ = corpus(tmp_path / "corpus", [named(TEXTS, letter) for letter in "abc"])
    with using(Session(Store(tmp_path / "store"))):
        first = shard(Shard(), documents_.model_copy(update={"digest": "1"}), vocabulary)
        if wrongly:
            shutil.rmtree(next((tmp_path / "store/parts/shard").iterdir()))
        monkeypatch.setattr("tasks.shard.has_part", lambda identity: wrongly)
        again = shard(Shard(), documents_.model_copy(update={"digest": "2"}), vocabulary)
    assert (again.digest, again.metrics["data/parts_reused"]) == (first.digest, 2 if wrongly else 3)
    assert not (again.path / "units").exists()


def test_large_vocabularies_take_four_bytes_a_token(tmp_path):
    ranks = {bytes([byte]): rank for rank, byte in enumerate(LETTERS)}
    ranks |= {bytes([a, b]): 256 + 256 * a + b for a in range(256) for b in range(256)}
    (tmp_path / "tokenizer").mkdir()
    Loaded(ranks, "gpt2", reserve(ranks)).save(tmp_path / "tokenizer")
    big = Tokenizer(stage="tokenizer", key="k", digest="t", path=tmp_path / "tokenizer")
    shards = build(tmp_path / "out", Shard(), corpus(tmp_path / "corpus", [named(TEXTS)]), big)
    assert tokens(shards, "train").dtype == np.uint32
    facts, stream = json.loads((shards.path / "shards.json").read_text()), as_llm_c(shards.files("train")[0])
    assert stream == tokens(shards, "train").tolist()
    assert stream.count(65_792) == facts["splits"]["train"]["documents"] + 1
    assert facts["dtype"] == "uint32"
    assert tokens(shards, "train")[0] == big.load().eot == 65_792
    assert inspect(shards.files("val")[0])["highest"] == 65_792


def test_documents_are_mixed_within_their_part_and_none_is_lost(tmp_path, vocabulary):
    parts = [named(TEXTS), named(TEXTS[:70], "e")]
    shards = build(tmp_path / "out", Shard(), corpus(tmp_path / "corpus", parts), vocabulary)
    index = pq.read_table(shards.path / "index.parquet").to_pylist()
    for split in ("train", "val"):
        rows = [row for row in index if row["split"] == split]
        assert [row["shard"] for row in rows] == sorted(row["shard"] for row in rows)
        for number, part in enumerate(parts):
            mine = [row for row in rows if row["shard"] == f"{split}-{number:05d}-0000.bin"]
            assert [row["id"] for row in mine] != [name for name, _ in part if name in {row["id"] for row in mine}]
            assert all(part[row["row"]][0] == row["id"] for row in mine)
            starts = np.cumsum([int(number == 0), *(row["tokens"] for row in mine)])
            assert [row["offset"] for row in mine] == starts[:-1].tolist()
    assert sorted(row["id"] for row in index) == sorted(name for part in parts for name, _ in part)


def test_a_large_part_is_cut_into_files_between_documents(tmp_path, vocabulary, monkeypatch):
    documents_ = corpus(tmp_path / "corpus", [named([*TEXTS, "long " * 500]), named(TEXTS[:60], "e")])
    whole = build(tmp_path / "whole", Shard(), documents_, vocabulary)
    monkeypatch.setattr(mixing, "SHARD_TOKENS", 1000)
    cut = build(tmp_path / "cut", Shard(), documents_, vocabulary)
    for split in ("train", "val"):
        assert tokens(cut, split).tolist() == tokens(whole, split).tolist()
        assert all(as_llm_c(file)[-1] == 256 for file in cut.files(split))
    sizes = [len(read_shard(file)) for split in ("train", "val") for file in cut.files(split)]
    assert [size for size in sizes if size > 1000] == [2501], "a document is never cut"
    assert len(sizes) > 8
    rows = pq.read_table(cut.path / "index.parquet", filters=[("split", "=", "train")]).to_pylist()
    for row in rows[::9]:
        ids = read_shard(cut.path / row["shard"])[row["offset"] : row["offset"] + row["tokens"]]
        assert vocabulary.load().decode(ids[:-1]).startswith(("Document", "long"))
    stream = "".join(text(cut.path, "train", vocabulary.load()))
    assert stream == vocabulary.load().decode(tokens(whole, "train"))


@pytest.mark.parametrize("split", ["document", "tail"])
def test_workers_and_engines_change_no_byte(tmp_path, vocabulary, monkeypatch, split):
    monkeypatch.setattr(units, "UNIT_BYTES", 1000)
    monkeypatch.setattr("tasks.shard.FAST_BYTES", 0)
    documents_, made = corpus(tmp_path / "corpus", [named(TEXTS)] * 2), {}
    rows = pq.read_table(documents_.parts[0])
    for path in documents_.parts:
        pq.write_table(rows, path, row_group_size=40)
    ways = {
        "tiktoken": Runtime(workers=1, fast=False),
        "two workers": Runtime(workers=2, fast=False),
        "threads": Runtime(engine="threads", workers=3, fast=False),
        "fast": Runtime(workers=1),
        "fast threads": Runtime(engine="threads", workers=3),
    }
    for name, means in ways.items():
        with running("shard", means):
            shards = build(tmp_path / name, Shard(split=split, val_fraction=0.2), documents_, vocabulary)
        made[name] = contents(shards.path)
        (who,) = {engine for part in json.loads((shards.path / "logs/encoders.json").read_text()) for engine in part}
        if means.fast and engines(vocabulary.path, True)[1]:
            assert who.startswith("gigatoken")
        else:
            assert who.startswith("tiktoken")
    assert all(contents == made["tiktoken"] for contents in made.values())


def test_a_unit_whose_ids_differ_is_encoded_by_tiktoken_and_it_is_said(tmp_path, vocabulary, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    documents_ = corpus(tmp_path / "corpus", [named(TEXTS), named(TEXTS, "e")])
    right = build(tmp_path / "right", Shard(), documents_, vocabulary)
    reference = engines(vocabulary.path, False)[0]

    class Wrong:
        name = "wrong 1"

        def watch(self, head):
            return self

        def encode_batch(self, texts):
            if any(b"Document 149" in text for text in texts):
                raise Differs("wrong 1 has other ids")
            return reference.encode_batch(texts)

    monkeypatch.setattr(units, "engines", lambda *_: (reference, Wrong(), ""))
    shards = build(tmp_path / "out", Shard(), documents_, vocabulary)
    assert contents(shards.path) == contents(right.path)
    assert caplog.text.count("tiktoken encodes: wrong 1 has other ids") == 1


def test_a_part_of_which_nothing_stayed_adds_nothing(tmp_path, vocabulary):
    documents_ = corpus(tmp_path / "corpus", [[], named(TEXTS), []])
    pq.ParquetWriter(documents_.parts[2], pq.read_schema(documents_.parts[0])).close()  # no row group either
    shards = build(tmp_path / "out", Shard(), documents_, vocabulary)
    assert [token for file in shards.files("train") for token in as_llm_c(file)].count(256) == 1 + sum(
        lot(f"d{n}") >= 0.05 for n in range(150)
    )


SLOW_ENGINE = """
import sys, time
from pathlib import Path
from tasks import encoders, units
from tasks.artifacts import Corpus, Tokenizer
from tasks.shard import Shard, shard
from tasks.stage import Session, using
from tasks.runtime import Runtime
from tasks.store import Store
units.UNIT_BYTES = 1000
real = encoders.Tiktoken.encode_batch
encoders.Tiktoken.encode_batch = lambda self, texts: (time.sleep(0.3), real(self, texts))[1]
root = Path(sys.argv[1])
corpus = Corpus(stage="dedup", key="k", digest="c", path=root / "corpus")
words = Tokenizer(stage="tokenizer", key="k", digest="t", path=root / "tokenizer")
with using(Session(Store(root / "store"), Runtime(workers=1))):
    print(shard(Shard(), corpus, words).digest)
"""


def test_a_run_that_is_killed_in_the_middle_is_finished_by_the_next(tmp_path, vocabulary):
    documents_ = corpus(tmp_path / "corpus", [named(TEXTS, letter) for letter in "abc"])
    for path in documents_.parts:
        pq.write_table(pq.read_table(path), path, row_group_size=50)
    killed = subprocess.Popen([sys.executable, "-c", SLOW_ENGINE, str(tmp_path)], stdout=subprocess.PIPE)
    parts, halves = tmp_path / "store/parts/shard", tmp_path / "store/shard"
    deadline = time.monotonic() + 60
    while not (list(parts.glob("[0-9a-f]*")) and list(halves.glob("*/work/units/00001-*"))):
        assert killed.poll() is None, "it was over before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list(halves.glob("*/current")), "killed in the middle"
    with using(Session(Store(tmp_path / "store"))):
        again = shard(Shard(), documents_.model_copy(update={"digest": "c"}), vocabulary)
    with using(Session(Store(tmp_path / "elsewhere"))):
        calm = shard(Shard(), documents_.model_copy(update={"digest": "c"}), vocabulary)
    assert (again.digest, contents(again.path).keys()) == (calm.digest, contents(calm.path).keys())
    assert again.metrics["data/parts_reused"] >= 1


def test_a_flipped_byte_is_refused_in_one_line(tmp_path, vocabulary):
    with using(Session(Store(tmp_path / "store"))):
        shards = shard(Shard(), corpus(tmp_path / "corpus", [named(TEXTS)]), vocabulary)
    file = shards.files("train")[0]
    for at in (1, 5, 9, 2000):
        raw = bytearray(file.read_bytes())
        raw[at] ^= 4
        alone, beside = tmp_path / f"alone-{at}.bin", tmp_path / f"beside-{at}"
        alone.write_bytes(raw)
        shutil.copytree(shards.path, beside)
        (beside / file.name).unlink()
        (beside / file.name).write_bytes(raw)
        with pytest.raises(UserError, match=r"is damaged: its sha256 is not the one in shards\.json"):
            inspect(beside / file.name)
        if at < 1024:
            with pytest.raises(UserError, match=r"no whole llm\.c shard|magic \d+, which nothing has"):
                inspect(alone)
    file.write_bytes(raw)
    with pytest.raises(UserError, match="its files were damaged and are now in quarantine"):
        Store(tmp_path / "store").find("shard")


def test_files_of_other_makers_are_told_apart_and_counted(tmp_path):
    ids = np.arange(700, dtype=np.uint16)
    ids.tofile(tmp_path / "train.bin")
    assert inspect(tmp_path / "train.bin") == {"format": "nanoGPT", "dtype": "uint16", "tokens": 700, "highest": 699}
    ids.astype(np.uint32).tofile(tmp_path / "a.ds")
    np.array([300, 700], "<u8").tofile(tmp_path / "a.ds.index")
    found = {"tokens": 700, "documents": 2, "highest": 699}
    assert inspect(tmp_path / "a.ds") == {"format": "datatrove", "dtype": "uint32", **found}
    ids.tofile(tmp_path / "m.bin")
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 2, 3)
    body = struct.pack("<2i2q3q", 300, 400, 0, 600, 0, 1, 2)
    (tmp_path / "m.idx").write_bytes(head + body)
    assert inspect(tmp_path / "m.bin") == {"format": "Megatron", "dtype": "uint16", **found}
    for name in ("train.bin", "a.ds", "m.bin"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"?")
        with pytest.raises(UserError, match=r"has [\d,]+ bytes, not 700 tokens of"):
            inspect(tmp_path / name)
    (tmp_path / "m.idx").write_bytes(head + body[:-1])
    with pytest.raises(UserError, match="no whole Megatron index"):
        inspect(tmp_path / "m.bin")


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
