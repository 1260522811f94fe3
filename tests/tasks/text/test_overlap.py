"""Evaluation texts: every string of a file is found again, whatever its case and marks; nothing else is."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.text.overlap import NGRAM, grams, table, texts_of
from tasks.text.quality import counted
from tasks.text.scan import lowered
from tests.tasks.text import twins

WORDS = st.lists(st.sampled_from(["a", "b", "¿Qué?", "日本", "c-d"]), max_size=40).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=4), st.lists(WORDS, min_size=1, max_size=3))
def test_hits_are_those_of_a_set_of_tuples(exam, documents):
    known = {tuple(w[at : at + NGRAM]) for text in exam for w in [words(text)] for at in range(len(w) - NGRAM + 1)}
    slots = table(exam)
    assert np.count_nonzero(slots) == len(known) == len(grams([*exam, ""]))
    found = counted(lowered(pa.chunked_array([documents], pa.string())), slots).overlap.tolist()
    assert found == [twins.counts(twins.lowered(text), known)["overlap"] for text in documents]


def words(text: str) -> list[str]:
    return twins.words(twins.lowered(text))


ROWS = [{"q": "one", "choices": {"text": ["two", "three"], "n": [1, 2]}, "none": None}, {"q": "four"}]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.json", "a.txt"])
def test_every_string_of_a_file_is_taken(tmp_path, name):
    path, lines = tmp_path / name, "\n".join(map(json.dumps, ROWS)).encode()
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        whole = {"a.json": json.dumps(ROWS).encode(), "a.txt": b"one\n\ntwo\n\nthree\n\nfour"}.get(name, lines)
        path.write_bytes(gzip.compress(whole) if name.endswith("gz") else whole)
    assert list(texts_of(path)) == ["one", "two", "three", "four"]
