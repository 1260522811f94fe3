"""Filter rules on texts whose numbers can be worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.filter import Filter
from tasks.text.rules import RULES, lexicon, read, verdict
from tasks.text.words import language, words

LIMITS = {name: getattr(Filter(), name) for name in RULES}
PROSE = "The cat sat on the mat and looked at the dog that was in the garden of the house with a ball.\n"
LONG = "".join(PROSE.replace("cat", name) for name in ("horse", "mouse", "sparrow", "badger", "fox"))
SPANISH = (
    "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo de los de"
)


def rule(text: str, **changed: float | None) -> str | None:
    broken = verdict(read(text, lexicon(["darn", "two birds", "s&m"])), LIMITS | changed)
    return broken[0] if broken else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LONG, None),
        (PROSE, "min_words"),
        (LONG + "a b " * 400, "min_mean_word"),
        (LONG + "incomprehensibilities " * 100, "max_mean_word"),
        (LONG + "1234 " * 60, "min_alphabetic"),
        (LONG + "# " * 60, "max_symbols"),
        (LONG + "wait...\nso...\nstop...\n", "max_ellipsis_lines"),
        (LONG + "- one\n* two\n• three\n" * 20, "max_bullet_lines"),
        (LONG + "The same line of text again and again.\n" * 20, "max_repeated"),
        (LONG + "Oh darn", None),
        (LONG.replace("dog", "class of darned undarn"), None),
    ],
)
def test_each_rule_drops_what_it_is_for(text, expected):
    changed = {"max_repeated": None} if expected in ("max_bullet_lines",) else {}
    assert rule(text, **changed) == expected


def test_a_rule_that_is_null_is_off_and_the_limit_is_the_number_itself():
    assert rule(PROSE, min_words=None) is None
    count = len(words(PROSE))
    assert rule(PROSE, min_words=count) is None
    assert rule(PROSE, min_words=count + 1) == "min_words"


def test_listed_words_count_once_whole_and_per_thousand_words():
    assert rule(LONG + "darn darn darn", max_listed=0) == "max_listed"
    assert rule(LONG + "two birds and darn", max_listed=1) == "max_listed"
    assert rule(LONG + "DARN", max_listed=1) is None
    assert rule(LONG + "birds two; darned", max_listed=0) is None
    assert rule(LONG * 12 + "two birds, darn", max_listed=1, max_repeated=None) is None, "2 in over 1,000 words"


def test_an_entry_without_a_real_word_is_left_out():
    assert lexicon(["s&m", "", "🖕", "2 girls 1 cup", "Cabrón"]) == {"2": ["2 girls 1 cup"], "cabrón": ["cabrón"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [(LONG, "en"), (SPANISH, "es"), ("", ""), ("我能吞下玻璃而不伤身体。" * 9, ""), ("x = foo(bar)", "")],
)
def test_the_language_is_that_of_the_stop_words(text, expected):
    assert language(words(text)) == expected


def test_word_rules_do_not_judge_other_languages():
    assert rule("我能吞下玻璃而不伤身体。") is None
    assert rule("это не ", min_words=100) is None


def test_kana_and_han_are_words_one_by_one():
    assert words("日本語 text かな Ünder_score") == ["日", "本", "語", "text", "か", "な", "ünder_score"]


@given(st.text(max_size=300))
def test_any_text_gets_a_verdict(text):
    assert rule(text) in {None, *RULES}
