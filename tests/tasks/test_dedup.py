"""Dedup: against exact truth, the same for any workers, and a corpus that grows gives what one run would."""

import functools
import json
import random
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.errors import UserError
from tasks import dedup as module
from tasks import likeness
from tasks.artifacts import Corpus
from tasks.corpus import DOCUMENT
from tasks.dedup import Dedup, dedup
from tasks.runtime import Runtime, running
from tasks.stage import Session, using
from tasks.store import Store
from tasks.text.words import words

DRAW = random.Random(0)
VOCABULARY = [f"w{n}" for n in range(3_000)]
BASE = [" ".join(DRAW.choices(VOCABULARY, k=200)) for _ in range(60)]


def edited(text: str, share: float) -> str:
    return " ".join(DRAW.choice(VOCABULARY) if DRAW.random() < share else word for word in text.split())


TEXTS = [
    text
    for base in BASE
    for text in (base, base.upper(), base.replace(" ", ", "), edited(base, 0.01), edited(base, 0.05), edited(base, 0.2))
]


def corpus(folder: Path, *parts: list[str], rows: int = 50) -> Corpus:
    folder.mkdir(parents=True)
    for number, texts in enumerate(parts):
        documents = [{"id": f"{number}-{n}", "text": text, "source": "s"} for n, text in enumerate(texts)]
        table = pa.Table.from_pylist(documents, DOCUMENT)
        pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=rows)
    return Corpus(stage="filter", key=folder.name, digest=folder.name, path=folder)


def run(out: Path, given: Corpus, **config: object) -> tuple[list[dict], list[dict]]:
    out.mkdir()
    with running("dedup", Runtime(workers=1)):
        dedup.fn(out, Dedup(**{"max_drop_share": 1, **config}), given)
    return rows(out), rows(out / "dropped")


def rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("part-*")) for row in pq.read_table(path).to_pylist()]


@functools.cache
def shingles(text: str) -> frozenset[tuple[str, ...]]:
    found = words(text)
    return frozenset(tuple(found[n : n + 5]) for n in range(max(1, len(found) - 4)))


def jaccard(one: str, two: str) -> float:
    return len(shingles(one) & shingles(two)) / len(shingles(one) | shingles(two))


def test_removed_are_like_what_stays_and_what_stays_is_not_alike(tmp_path):
    kept, dropped = run(tmp_path / "out", corpus(tmp_path / "in", TEXTS))
    text = {f"0-{n}": text for n, text in enumerate(TEXTS)}
    stays = {row["id"] for row in kept}
    assert len(kept) + len(dropped) == len(TEXTS)
    worst = min(jaccard(text[row["id"]], text[row["kept_id"]]) for row in dropped)
    assert worst > 0.6, f"a document went that is alike by {worst:.2f} only"
    assert all(row["kept_id"] in stays and row["score"] >= 0.7 for row in dropped)
    missed = [pair for pair in combinations(kept, 2) if jaccard(pair[0]["text"], pair[1]["text"]) > 0.8]
    assert not missed, f"{len(missed)} pairs above 0.8 stay"
    reasons = [row["reason"] for row in dropped if TEXTS[int(row["id"][2:])].isupper() or "," in row["detail"]]
    assert reasons == ["exact"] * 120


def test_a_document_that_is_like_a_removed_one_only_stays(tmp_path):
    """A, B like A, C like B but not like A: B goes, C stays (unverified components would remove C)."""
    base = " ".join(VOCABULARY[:400]).split()
    chain = [base, ["x"] * 50 + base[50:], ["x"] * 50 + base[50:350] + ["y"] * 50]
    texts = [" ".join(part) for part in chain]
    near = [jaccard(texts[a], texts[b]) for a, b in ((0, 1), (1, 2), (0, 2))]
    assert near[0] > 0.83
    assert near[1] > 0.83
    assert near[2] < 0.75, near
    kept, dropped = run(tmp_path / "out", corpus(tmp_path / "in", texts), threshold=0.8)
    assert [row["id"] for row in kept] == ["0-0", "0-2"]
    assert [(row["id"], row["kept_id"]) for row in dropped] == [("0-1", "0-0")]
    kept, dropped = run(tmp_path / "all", corpus(tmp_path / "again", texts), threshold=0.8, policy="components")
    assert [(row["id"], row["kept_id"]) for row in dropped] == [("0-1", "0-0"), ("0-2", "0-0")]


def test_the_longest_stays_where_it_is_asked_for(tmp_path):
    short = BASE[0]
    texts = [BASE[1], short, f"{short} and one more", short]
    kept, dropped = run(tmp_path / "out", corpus(tmp_path / "in", texts[:2], texts[2:]), prefer="longest")
    assert [row["id"] for row in kept] == ["0-0", "1-0"]
    assert {(row["id"], row["kept_id"]) for row in dropped} == {("0-1", "1-0"), ("1-1", "1-0")}


@settings(max_examples=8, deadline=None)
@given(cut=st.integers(1, len(TEXTS) - 1), group=st.integers(1, 100))
def test_parts_and_row_groups_give_what_one_part_gives(cut, group, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    one, _ = run(folder / "out1", corpus(folder / "in1", TEXTS))
    two, _ = run(folder / "out2", corpus(folder / "in2", TEXTS[:cut], TEXTS[cut:], rows=group))
    assert [row["text"] for row in one] == [row["text"] for row in two]


def test_a_second_run_over_the_result_drops_nothing(tmp_path):
    kept, _ = run(tmp_path / "out", corpus(tmp_path / "in", TEXTS))
    again = Corpus(stage="dedup", key="k", digest="d", path=tmp_path / "out")
    assert run(tmp_path / "again", again) == (kept, [])


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path):
    given = corpus(tmp_path / "in", TEXTS)
    run(tmp_path / "out1", given)
    (tmp_path / "out2").mkdir()
    with running("dedup", Runtime(workers=2)):
        dedup.fn(tmp_path / "out2", Dedup(max_drop_share=1), given)
    for name in ("part-00000.parquet", "dropped/part-00000.parquet", "report/examples.json"):
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes(), name


def test_a_grown_corpus_builds_its_new_part_only_and_equals_a_run_over_all(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(
        module, "_build", lambda path, *rest, build=module._build: built.append(path.name) or build(path, *rest)
    )
    config = Dedup(max_drop_share=1)
    with using(Session(Store(tmp_path / "store"), Runtime(workers=1))):
        dedup(config, corpus(tmp_path / "1", TEXTS[:100], TEXTS[100:200]))
        grown = dedup(config, corpus(tmp_path / "2", TEXTS[:100], TEXTS[100:200], TEXTS[200:]))
    assert built == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    afresh, _ = run(tmp_path / "out", corpus(tmp_path / "3", TEXTS[:100], TEXTS[100:200], TEXTS[200:]))
    assert rows(grown.path) == afresh


def test_many_refreshes_give_what_one_run_gives_though_runs_are_merged_on_the_way(tmp_path, monkeypatch):
    """Refreshes of one and of two parts, and above three runs one for all."""
    monkeypatch.setattr(likeness, "MOST_RUNS", 3)
    merged, real = [], likeness._merge
    monkeypatch.setattr(likeness, "_merge", lambda runs, *rest: merged.append(len(runs)) or real(runs, *rest))
    parts = [TEXTS[at : at + 30] for at in range(0, len(TEXTS), 30)]
    with using(Session(Store(tmp_path / "store"), Runtime(workers=1))):
        for count in (1, 3, 4, 6, 7, 8, 10, 11, 12):
            last = dedup(Dedup(max_drop_share=1), corpus(tmp_path / str(count), *parts[:count]))
    assert len(merged) >= 2
    whole = run(tmp_path / "out", corpus(tmp_path / "whole", *parts))
    assert (rows(last.path), rows(last.path / "dropped")) == whole


def test_behind_a_changed_part_all_are_judged_again_but_signed_only_once(tmp_path, monkeypatch):
    signed, judged = [], []
    for place, name, seen in ((likeness, "_sign", signed), (module, "_build", judged)):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda p, *a, real=real, seen=seen: seen.append(p.name) or real(p, *a))
    parts = [TEXTS[:90], TEXTS[90:180], TEXTS[180:270], TEXTS[270:]]
    config = Dedup(max_drop_share=1)
    with using(Session(Store(tmp_path / "store"), Runtime(workers=1))):
        dedup(config, corpus(tmp_path / "1", *parts))
        signed.clear()
        judged.clear()
        changed = [parts[0], TEXTS[:60], *parts[2:]]
        again = dedup(config, corpus(tmp_path / "2", *changed))
    assert signed == ["part-00001.parquet"]
    assert judged == ["part-00001.parquet", "part-00002.parquet", "part-00003.parquet"]
    assert (again.metrics["data/parts"], again.metrics["data/parts_reused"]) == (4, 1)
    assert rows(again.path) == run(tmp_path / "out", corpus(tmp_path / "3", *changed))[0]


def test_a_part_that_keeps_nothing_is_a_part_like_others(tmp_path):
    parts = [TEXTS[:6], TEXTS[:6], TEXTS[6:12]]
    with using(Session(Store(tmp_path / "store"), Runtime(workers=1))):
        dedup(Dedup(max_drop_share=1), corpus(tmp_path / "1", *parts[:2]))
        again = dedup(Dedup(max_drop_share=1), corpus(tmp_path / "2", *parts))
    assert [row["id"][0] for row in rows(again.path)].count("1") == 0
    assert (again.metrics["data/parts"], again.metrics["data/parts_reused"]) == (3, 2)


def test_texts_without_words_are_told_apart(tmp_path):
    kept, dropped = run(tmp_path / "out", corpus(tmp_path / "in", ["!!!", "???", "!!!", "a", "A ", "b"]))
    assert [row["text"] for row in kept] == ["!!!", "???", "a", "b"]
    assert {row["reason"] for row in dropped} == {"exact"}


def test_examples_show_what_was_kept(tmp_path):
    run(tmp_path / "out", corpus(tmp_path / "in", TEXTS))
    examples = json.loads((tmp_path / "out" / "report" / "examples.json").read_text())
    assert len(examples) == 20
    assert all(example["kept"].lower()[:2] == example["detail"].lower()[:2] for example in examples[:4])


def test_too_many_duplicates_stop_the_stage(tmp_path):
    with pytest.raises(UserError, match=r"exact 3\).*raise dedup\.threshold"):
        run(tmp_path / "out", corpus(tmp_path / "in", [BASE[0]] * 4), max_drop_share=0.5)
