"""Filter rules on texts whose numbers can be worked out by hand."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.filter import Filter, defaults, rules
from tasks.text.presets import PRESETS
from tasks.text.quality import counted
from tasks.text.rules import RULES, judge, spoken
from tasks.text.scan import lowered
from tasks.text.words import words

PROSE = "The cat sat on the mat and looked at the dog that was in the garden of the house with a ball.\n"
LONG = "".join(PROSE.replace("cat", name) for name in ("horse", "mouse", "sparrow", "badger", "fox"))
SPANISH = (
    "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo de los de"
)


def rule(text: str, **settings: object) -> str | None:
    (broken,) = judge(counts(text), Filter(**settings).limits())
    return broken[0] if broken else None


def counts(text: str):
    return counted(lowered(pa.chunked_array([[text]], pa.string())), np.zeros(0, np.uint64))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LONG, None),
        (PROSE, "min_words"),
        (LONG + "a b " * 400, "min_mean_word"),
        (LONG + "incomprehensibilities " * 300, "max_mean_word"),
        (LONG + "1234 " * 200, "min_alphabetic"),
        (LONG + "word# " * 60, "max_symbols"),
        (LONG + "wait...\nso...\nstop...\n", "max_ellipsis_lines"),
        (LONG + "- one\n* two\n• three\n" * 20, "max_bullet_lines"),
        (LONG + "The same line of text again and again.\n" * 20, "max_dup_line_chars"),
    ],
)
def test_each_rule_drops_what_it_is_for(text, expected):
    assert rule(text) == expected


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        (PROSE * 3, {"max_dup_lines": 0.6}, "max_dup_lines"),
        ((PROSE + "\n") * 3, {"max_dup_paragraphs": 0.6}, "max_dup_paragraphs"),
        ((PROSE + "\n") * 3, {"max_dup_paragraph_chars": 0.6}, "max_dup_paragraph_chars"),
        (LONG + "of the " * 30, {"max_top_2gram": 0.2}, "max_top_2gram"),
        (PROSE * 3, {"max_dup_10gram": 0.4}, "max_dup_10gram"),
        (LONG, {"max_top_2gram": 0.2, "max_dup_10gram": 1}, None),
        (LONG.replace(".", ""), {"min_line_punct": 0.12}, "min_line_punct"),
        (LONG, {"max_short_lines": 0.67, "max_new_lines": 0.3, "min_line_punct": 1}, None),
        (LONG.replace(" ", "\n"), {"max_short_lines": 0.67}, "max_short_lines"),
        (LONG.replace(" ", "\n"), {"max_new_lines": 0.3}, "max_new_lines"),
        (LONG, {"min_sentences": 5}, None),
        (LONG, {"min_sentences": 6}, "min_sentences"),
        (LONG + "We use cookies here, as many do.\n", {"max_policy_lines": 0.1}, "max_policy_lines"),
        (LONG + "Lorem  ipsum", {"max_lorem": 0}, "max_lorem"),
        (LONG + "{", {"max_braces": 0}, "max_braces"),
    ],
)
def test_published_rules_drop_what_they_are_for(text, settings, expected):
    assert rule(text, max_dup_line_chars=None, **settings) == expected


def test_a_rule_that_is_null_is_off_and_the_limit_is_the_number_itself():
    assert rule(PROSE, min_words=None) is None
    assert rule(PROSE, min_words=20) == ("min_words" if len(words(PROSE)) < 20 else None)
    assert rule(PROSE, min_words=len(words(PROSE))) is None
    assert rule(PROSE, min_words=len(words(PROSE)) + 1) == "min_words"


@pytest.mark.parametrize(
    ("text", "expected"),
    [(LONG, 1), (SPANISH, 2), ("", 0), ("我能吞下玻璃而不伤身体。" * 9, 0), ("x = foo(bar)", 0)],
)
def test_the_language_is_that_of_the_common_words(text, expected):
    assert spoken(counts(text)).tolist() == [expected]


def test_word_rules_do_not_judge_other_languages():
    assert rule("我能吞下玻璃而不伤身体。") is None
    assert rule("это не ", min_words=100) == "min_words", "this rule was asked for in every language"


def test_limits_may_differ_in_one_language():
    assert rule(SPANISH) is None, "short paragraphs are usual in Spanish books"
    assert rule(SPANISH, by_language={"es": {"min_words": 30}}) == "min_words"
    assert rule(LONG, by_language={"es": {"max_braces": 0}, "en": {"min_words": 500}}) == "min_words"
    assert rule("это не ", by_language={"es": {"max_braces": 0}}) is None, "the preset's limits for others stay"


def test_presets_have_the_published_limits_and_what_is_set_goes_before_them():
    gopher, fineweb = Filter(preset="gopher").limits(), Filter(preset="fineweb").limits()
    assert (gopher["max_dup_5gram"], gopher["max_dup_10gram"]) == ((0.15, 0.15, 0.145), (0.1, 0.1, 0.099))
    assert (fineweb["min_line_punct"], fineweb["max_dup_line_chars"]) == ((0.12, 0.12, 0.182), (0.01, 0.01, 0.1))
    assert Filter(preset="c4").limits()["min_words"] == (None, None, None)
    changed = Filter(preset="gopher", max_dup_lines=None, min_words=20).limits()
    assert (changed["max_dup_lines"], changed["min_words"]) == ((None,) * 3, (20,) * 3)
    assert set(RULES) == set(rules())
    assert all(set(table) - {"by_language", "pii", "pii_kinds"} <= set(rules()) for table in PRESETS.values())


@pytest.mark.parametrize("preset", ["prose", *PRESETS])
def test_a_form_that_sends_every_setting_may_change_the_preset(preset):
    sent = Filter(min_words=7).model_dump() | {"preset": preset}
    assert Filter(**sent) == Filter(preset=preset, min_words=7)
    again = Filter(preset=preset, max_braces=9)
    assert Filter(**again.model_dump()) == again
    assert defaults(preset)["max_overlap"] == 0


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300), st.sampled_from(["prose", *PRESETS]))
def test_any_text_gets_a_verdict(text, preset):
    assert rule(text, preset=preset) in {None, *RULES}
