"""Columns by their memory: what pa.array would make, and pandas stays out."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.columns import booleans, doubles, int64, strings

TEXTS = st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=9))


@settings(deadline=None)
@given(TEXTS, st.lists(st.none() | st.floats(allow_nan=False)), st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_columns_are_those_of_arrow(texts, numbers, wholes):
    assert strings(texts).equals(pa.array(texts, pa.string()))
    assert doubles(numbers).equals(pa.array(numbers, pa.float64()))
    assert int64(np.array(wholes, np.int64)).equals(pa.array(wholes, pa.int64()))


@settings(deadline=None)
@given(st.lists(st.booleans()))
def test_flags_filter_as_arrow_says(flags):
    assert booleans(np.array(flags, bool)).equals(pa.array(flags, pa.bool_()))


def test_dedup_wakes_no_pandas(tmp_path):
    code = """
import sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from tasks.artifacts import Corpus
from tasks.columns import strings
from tasks.corpus import DOCUMENT
from tasks.dedup import Dedup, dedup
from tasks.runtime import Runtime, running
work = Path(sys.argv[1])
texts = strings(["one two three four five six", "seven", "One, two three four five six"])
pq.write_table(pa.table([strings("abc"), texts, strings("sss")], DOCUMENT), work / "part-00000.parquet")
(work / "out").mkdir()
with running("dedup", Runtime(workers=2)):
    made = dedup.fn(work / "out", Dedup(), Corpus(stage="f", key="k", digest="d", path=work))
assert made["data/dropped/exact"] == 1, made
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
