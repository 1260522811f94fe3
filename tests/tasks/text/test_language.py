"""The language of documents: known ones are told apart, by the middle alone, and each document by itself."""

from functools import cache

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from tasks.text.language import SLICE_BYTES, identify, middle, unknown, verdict
from tasks.text.scan import plain

SAMPLES = {
    "en": "The cat sat on the mat and looked at the dog that was asleep in the garden of the house.",
    "es": "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía un hidalgo.",
    "fr": "Le chat est assis sur le tapis et regarde le chien qui dort dans le jardin de la maison.",
    "de": "Die Katze sitzt auf der Matte und schaut den Hund an, der im Garten des Hauses schläft.",
    "ru": "Кошка сидит на коврике и смотрит на собаку, которая спит в саду возле дома.",
    "zh": "我能吞下玻璃而不伤身体。猫坐在垫子上，看着在花园里睡觉的狗。",
}


def found(texts: list[str]) -> list[tuple[str, float]]:
    return identify(plain(pa.chunked_array([texts], pa.string())))


def test_languages_are_told_apart_and_alone_as_in_a_batch():
    together = found(list(SAMPLES.values()))
    assert [language for language, _ in together] == list(SAMPLES)
    assert all(score > 0.7 for _, score in together), together
    assert together == [found([text])[0] for text in SAMPLES.values()]


def test_only_the_middle_is_read_in_whole_characters():
    text = SAMPLES["en"] * 50 + SAMPLES["ru"] * 50 + SAMPLES["en"] * 50
    assert found([text])[0][0] == "ru"
    piece = middle(("é" * 5_000).encode())
    assert SLICE_BYTES - 2 <= len(piece.encode()) <= SLICE_BYTES
    assert set(piece) == {"é"}
    assert middle(b"short") == "short"


@cache
def py3langid() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*SAMPLES.values(), "LA CASA ", "Ђорђе воли ", "e\u0301t\u00e9 ", "12 "])
                         | st.text(max_size=20), max_size=8).map("".join), max_size=5))  # fmt: skip
def test_languages_and_scores_are_those_of_py3langid(texts: list[str]):
    for text, (language, score) in zip(texts, found(texts), strict=True):
        ranked = py3langid().rank(middle(text.encode()).encode())
        assert score == pytest.approx(ranked[0][1], abs=3e-4)  # py3langid's float32 is 1e-4 off
        assert language in {
            name for name, other in ranked if other > ranked[0][1] - 1e-4
        }  # equal ones but for rounding


def test_an_empty_document_has_no_sure_language():
    assert found([""])[0][1] < 0.1


def test_a_verdict_names_what_was_wrong():
    assert verdict("fr", 0.9, ("en", "es"), 0.5) == ("languages", 0.9, None)
    assert verdict("en", 0.4, ("en", "es"), 0.5) == ("min_language_score", 0.4, None)
    assert verdict("en", 0.5, ("en", "es"), 0.5) is None
    assert unknown(["en", "xx", "es"]) == ["xx"]
