"""The counting kernel: what the plain twin says, on real texts and on any; repeated n-grams among them."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.text import overlap
from tasks.text.quality import Counts, counted
from tasks.text.scan import lowered
from tests.tasks.text import twins

NONE = np.zeros(0, np.uint64)
PIECES = [
    *("the ", "cat", "Of", "\n", "\n\n", " ", "...", "…", ".", '?"', "# ", "- ", "* x", "• ", "{", "日本", "don't "),
    *(
        "f(x)",
        "a-b ",
        "a=b",
        "x,",
        "1-",
        "--",
        "\\",
        "/",
        "|",
        "+",
        "12 ",
        "_",
        "é",
        "İ",
        "ς",
        "lorem ipsum ",
        "javascript ",
        "terms of use ",
        "uses cookies ",
    ),
    *("\u00a0", "\u2028", "de la ", "one two three four five six. ", "so it goes and goes. "),
]


def check(*texts: str) -> Counts:
    found = counted(lowered(pa.chunked_array([list(texts)], pa.string())), NONE)
    for number, text in enumerate(texts):
        expected = twins.counts(twins.lowered(text))
        assert {name: int(values[number]) for name, values in found._asdict().items()} == expected, text[:500]
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), min_size=1, max_size=3))
def test_counts_are_those_of_the_plain_twin_on_anything_like_text(texts):
    check(*texts)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs"]), max_size=200))
def test_counts_are_those_of_the_plain_twin_on_any_text(text):  # words' characters end with plane 3 (scan.py)
    check(text)


def test_counts_are_those_of_the_plain_twin_on_real_texts(shared_data):
    book, plays = ((shared_data / name).read_text() for name in ("quijote.txt", "tinyshakespeare.txt"))
    check(book[:20_000], plays[:20_000], (shared_data.parent / "README.md").read_text())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=120).map(" ".join))
def test_repeated_ngrams_are_found_where_nearly_all_repeat(text):
    check(text)


def test_counts_do_not_depend_on_the_batch():
    texts = ["the cat sat. " * 9, "", "one\n" * 50, "word " * 3]
    together = counted(lowered(pa.chunked_array([texts])), NONE)
    for number, text in enumerate(texts):
        alone = counted(lowered(pa.chunked_array([[text]])), NONE)
        assert [int(values[number]) for values in together] == [int(values[0]) for values in alone]


def test_a_glued_word_is_one_and_hyphens_part():
    found = check("Don't call os.path.join(a) or well-known things, e.g. x=1 --now")
    assert int(found.pieces[0]) == 10
    assert int(found.symbols[0]) == 4, "the call's ), a hyphen, a comma, the full stop of e.g."


def test_overlap_counts_the_places_of_given_13_grams():
    exam = "What is the name of the river that flows through the old town of Prague in Bohemia?"
    table = overlap.table([exam, "too short to have any"])
    texts = ["x " + exam.upper() + " y", "the river that flows through the old town", "", exam.replace(" ", ", ") * 2]
    found = counted(lowered(pa.chunked_array([texts])), table).overlap.tolist()
    places = len(twins.words(twins.lowered(exam))) - 12
    assert found == [places, 0, 0, 2 * places]
