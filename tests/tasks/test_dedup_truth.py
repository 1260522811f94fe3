"""Dedup on real text with injected near-duplicates, judged by the exact truth about every pair of documents."""

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Corpus
from tasks.dedup import Dedup, dedup
from tasks.runtime import Runtime, running

BENCH = Path(__file__).parents[1] / "bench"
THRESHOLD = 0.7


class Judged(NamedTuple):
    """A corpus, what dedup made of it, and how well."""

    folder: Path
    out: Path
    quality: dict


@pytest.fixture(scope="module")
def scripts():
    """tests/bench as modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import curated
        import dedup as bench

        yield curated, bench
        for name in ("curated", "dedup"):
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def judged(scripts, tmp_path_factory) -> Judged:
    curated, bench = scripts
    folder, out = (tmp_path_factory.mktemp(name) for name in ("curated", "out"))
    curated.curate(folder, mb=10)
    with running("dedup", Runtime(workers=1)):
        given = Corpus(stage="filter", key="k", digest="d", path=folder / "corpus")
        dedup.fn(out, Dedup(threshold=THRESHOLD, max_drop_share=1), given)
    bench.quality(folder, folder, str(out))
    return Judged(folder, out, json.loads((folder / "quality.json").read_text()))


def truth(folder: Path) -> dict[tuple[int, int], float]:
    pairs = pq.read_table(folder / "truth.parquet").to_pylist()
    return {(pair["a"], pair["b"]): pair["jaccard"] for pair in pairs}


def rows(folder: Path, *columns: str) -> list[dict]:
    tables = [pq.read_table(path, columns=list(columns)) for path in sorted(folder.glob("part-*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.slow
def test_the_truth_is_what_comparing_every_pair_gives(scripts, tmp_path):
    curated, _ = scripts
    draw = curated.random.Random(4)
    texts = curated.take(300_000, curated.pieces(4))
    texts += [text for text, _, _ in curated.injected(texts, draw)] + ["", "one", "One!", "two three"]
    words = [curated.WORD.findall(text.lower()) for text in texts]
    grams = [{tuple(found[n : n + 5]) for n in range(max(1, len(found) - 4))} if found else set() for found in words]
    every = {
        (a, b): len(grams[a] & grams[b]) / len(grams[a] | grams[b] or {0})
        for a, b in combinations(range(len(texts)), 2)
    }
    curated.pq.write_table(curated.truth(texts), tmp_path / "truth.parquet")
    assert truth(tmp_path) == {pair: value for pair, value in every.items() if value >= 0.5}


@pytest.mark.slow
def test_of_nearly_every_pair_that_is_alike_one_goes(judged):
    recall = {least: judged.quality[f"recall {least}"] for least in (0.9, 0.8, 0.7)}
    assert min(recall[0.9], recall[0.8]) >= 0.99, recall
    assert recall[0.7] >= 0.90, recall


@pytest.mark.slow
def test_hardly_a_document_goes_that_is_like_nothing_which_stays(judged):
    chain = {least: judged.quality[f"chain {least}"] for least in (0.7, 0.5)}
    assert chain[0.7] <= 0.05, chain
    assert chain[0.5] <= 0.001, chain


@pytest.mark.slow
def test_capitals_accents_marks_kana_han_and_short_texts_hide_no_copy(judged):
    stays, alike = {int(row["id"]) for row in rows(judged.out, "id")}, truth(judged.folder)
    copies = pq.read_table(judged.folder / "copies.parquet").to_pylist()
    missed, seen = [], set()
    for copy in copies:
        pair = tuple(sorted((copy["copy"], copy["original"])))
        if not copy["kind"].startswith("words") and alike.get(pair, 0) >= 0.85:
            seen.add(copy["kind"])
            missed += [(copy["kind"], alike[pair])] if stays.issuperset(pair) else []
    assert not missed
    assert {"exact", "upper case, accents", "other marks", "case, commas, blanks", "ten words or less"} <= seen


@pytest.mark.slow
def test_each_removed_document_names_one_that_stays_and_is_like_it(judged):
    stays, alike = {row["id"] for row in rows(judged.out, "id")}, truth(judged.folder)
    dropped = rows(judged.out / "dropped", "id", "kept_id", "score", "reason")
    assert len(dropped) == judged.quality["removed"]
    assert {row["reason"] for row in dropped} == {"exact", "near"}
    for row in dropped:
        assert row["kept_id"] in stays, row
        assert row["kept_id"] < row["id"], "an earlier one stays"
        assert row["score"] >= THRESHOLD, row
        assert alike.get((int(row["kept_id"]), int(row["id"])), 0) > THRESHOLD - 0.15, row


def test_short_texts_of_different_words_all_stay(tmp_path):
    """A byte of a signature that knew but a byte of the shingle's hash took one in 256 of them for another."""
    texts = [" ".join(f"w{n}" for n in range(first, first + first % 6 + 1)) for first in range(3_000)]
    rows = [{"id": f"{n:08d}", "text": text, "source": "s"} for n, text in enumerate(texts)]
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "part-00000.parquet")
    with running("dedup", Runtime(workers=1)):
        given = Corpus(stage="filter", key="k", digest="d", path=tmp_path / "in")
        metrics = dedup.fn(tmp_path / "out", Dedup(max_drop_share=1), given)
    assert metrics["data/dropped"] == 0
