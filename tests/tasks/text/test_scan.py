"""The scanner: its words are the twin's, on any Unicode text."""

import subprocess
import sys
from itertools import pairwise

import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.text.scan import KINDS, lowered, plain, room, words
from tests.tasks.text import twins

TEXTS = st.text(
    st.sampled_from("aZ1_ .,-\n\tñÇßİΣ٣日本カｶ가ไำ\u0301\u200b😀𠀀𝔸") | st.characters(exclude_categories=["Cs"])
)


def scanned(texts: list[str]) -> list[list[tuple[int, int, int]]]:
    """(hash, first byte in its document, characters) of each word of each text."""
    found = lowered(pa.chunked_array([texts], pa.string()))
    hashes, starts, chars = room(found)
    ends, made = found.ends_D1.tolist(), []
    for begin, end in pairwise(ends):
        count = words(found.data, begin, end, KINDS, hashes, starts, chars)
        made.append([(int(h), int(s) - begin, int(c)) for h, s, c in zip(hashes[:count], starts, chars, strict=False)])
    return made


def test_a_kernel_starts_without_blas_and_without_what_others_add_to_numba() -> None:
    run = "import sys, tests.tasks.text.test_scan as t; t.scanned(['a word']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", run], check=True, capture_output=True, text=True).stdout.split()
    assert "numba" in loaded
    assert not {"awkward", "scipy.linalg"} & {*loaded}


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=4))
@example(["葛\U000e0100城 a\U000e0100b"])
def test_words_are_those_of_the_twin(texts):
    for text, found in zip(texts, scanned(texts), strict=True):
        lower = twins.lowered(text)
        expected = twins.words(lower)
        assert [(h, c) for h, _, c in found] == [(twins.word_hash(word), len(word)) for word in expected]
        data = lower.encode()
        assert all(data[s:].startswith(word.encode()) for (_, s, _), word in zip(found, expected, strict=True))


def test_kana_and_han_are_words_one_by_one_and_marks_belong_to_words():
    (found,) = scanned(["Ａ日本語x2 e\u0301a हिन्दी カタ"])
    assert [c for *_, c in found] == [1, 1, 1, 1, 2, 3, 6, 1, 1]


def test_a_slice_of_a_column_is_scanned_in_place():
    column = pa.chunked_array([["one two", "three", "four five"]], pa.large_string())
    texts = plain(column.slice(1, 2))
    assert bytes(texts.data[texts.ends_D1[0] : texts.ends_D1[1]]) == b"three"
    assert len(texts.ends_D1) == 3


def test_a_final_sigma_is_a_sigma():
    (small,), (large,) = scanned(["σίσυφος", "ΣΊΣΥΦΟΣ"])
    assert small == large
