"""Toxicity's kernel: what the plain twin says, on real texts and on any; phrases; lines and documents."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.errors import UserError
from tasks.text.scan import lowered
from tasks.text.toxicity import BITS, SILENT, Model, hashed_lines, load, phrases, rate
from tests.tasks.text import twins

WEIGHTS = np.random.default_rng(5).normal(size=1 << BITS).astype(np.float16).astype(np.float32)
MODEL = Model(WEIGHTS, -0.25, 1.0, 0.5)
LISTED = [("darn",), ("two", "birds"), ("two", "birds", "fly"), ("本",), ("dos", "pájaros")]
TABLE = phrases([" ".join(entry) for entry in LISTED if entry != ("本",)])
KNOWN = [entry for entry in LISTED if entry != ("本",)]


def column(*texts: str) -> pa.ChunkedArray:
    return pa.chunked_array([list(texts)], pa.string())


def twin(text: str) -> tuple[list[float], list[int]]:
    return twins.toxic_rate(lowered(column(text)).data.tobytes().decode(), WEIGHTS.astype(float), MODEL.bias, KNOWN)


def check(texts: list[str]) -> None:
    rating = rate(lowered(column(*texts)), MODEL, TABLE)
    expected = [twin(text) for text in texts]
    assert rating.scores_L.tolist() == [score for scores, _ in expected for score in scores]
    assert rating.listed_L.tolist() == [count for _, counts in expected for count in counts]
    assert np.diff(rating.firsts_D1).tolist() == [text.count("\n") + 1 for text in texts]


WORDS = st.sampled_from(
    ["darn", "two", "birds", "fly", "Dos", "PÁJAROS", "日本語", "\n", " ", ", ", "İ", "e\u0301", "a" * 70]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=60) | st.lists(WORDS, max_size=90).map("".join), min_size=1, max_size=4))
def test_scores_and_listed_entries_are_the_twins(texts):
    check(texts)


def test_real_documents_are_rated_as_the_twin_does():
    check(
        [str(np.__doc__), str(pytest.__doc__), str(np.einsum.__doc__), "word " * 63 + "x日\n" + "日" * 200, "", "\n\n"]
    )


def test_the_place_of_a_document_in_a_column_does_not_matter():
    texts = ["one line\ntwo birds", "", "darn\n\n", "x" * 300, "日本"]
    one_by_one = [rate(lowered(column(text)), MODEL, TABLE) for text in texts]
    cut = pa.chunked_array([["before", *texts[:2]], [*texts[2:], "after"]]).slice(1, len(texts))
    rating = rate(lowered(cut), MODEL, TABLE)
    assert rating.scores_L.tolist() == [score for one in one_by_one for score in one.scores_L]
    assert rating.per_document(rating.listed_L).tolist() == [1, 0, 1, 0, 0]
    assert len(rate(lowered(pa.chunked_array([], pa.string())), MODEL, TABLE).scores_L) == 0


def test_features_of_a_line_are_its_words_pairs_and_triples():
    ids, ends = hashed_lines(lowered(column("Two birds", "", "日本x " * 80)))
    for text, begin, end in zip(["two birds", "", "日本x " * 80], ends[:-1], ends[1:], strict=True):
        expected = [f for _, features in twins.toxic_stretches(text, 1 << 40) for f in features]
        assert sorted(ids[begin:end].tolist()) == sorted(expected)
    assert ends[1] == 2 + 2 + 4 + 6, "two words, two pairs, triples of letters and blanks"


def test_phrases_hit_as_whole_words_only_and_the_longest_includes_the_shorter():
    rating = rate(
        lowered(column("Darn. darned undarn DARN", "two birds fly", "two  birds, flying", "birds two")), MODEL, TABLE
    )
    assert rating.listed_L.tolist() == [2, 2, 1, 0]
    empty = phrases(["s&m", "🖕", ""])
    assert rate(lowered(column("s m s&m 🖕")), MODEL, empty).listed_L.tolist() == [0]


def test_a_long_line_counts_as_its_worst_stretch():
    bad = Model(np.zeros(1 << BITS, np.float32), 0.0, 1.0, 0.5)
    ids, _ = hashed_lines(lowered(column("nasty")))
    bad.weights_B[ids] = 64
    alone, hidden, silent = rate(
        lowered(column("nasty " + "calm " * 63, "nasty " + "calm " * 999, "... !")), bad, TABLE
    ).scores_L
    assert alone == hidden > 0.5
    assert silent == SILENT


def test_a_listed_word_lowers_the_score_that_flags_and_flags_nothing_alone():
    rating = rate(lowered(column("a\nb\nc\nd")), MODEL, TABLE)._replace(
        scores_L=np.array([1.0, 0.9, 0.5, 0.4]), listed_L=np.array([0, 0, 1, 9], np.int32)
    )
    assert rating.flagged(MODEL).tolist() == [True, False, True, False]


def test_a_model_is_read_back_as_it_was_and_other_folders_are_told(tmp_path):
    MODEL.save(tmp_path, {"figures": {}})
    again = load(tmp_path)
    assert (again.weights_B == MODEL.weights_B).all()
    assert again[1:] == MODEL[1:]
    assert (tmp_path / "model.safetensors").stat().st_size < 525_000
    (tmp_path / "model.json").write_text("{}")
    for bad in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="no toxicity model"):
            load(bad)
