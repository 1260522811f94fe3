"""Words, and the language they are in, by plain counting.

In: text, or counts of common words. Out: words in lower case (kana and Han one by one); English, Spanish or another.
"""

import re

import numpy as np

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
COMMON = {
    "en": WORD.findall("the of and to in is that it for was as with be on by are this at from or have an which not"),
    "es": WORD.findall("de la que el en y los del las se por un con una su para es al lo como más pero sus le"),
}
"""The commonest words of the languages that are told apart by them."""
STOP_WORDS = {
    "en": WORD.findall("the be to of and that have with"),
    "es": WORD.findall("de la en el y a que del los se por un con una las su"),
}
"""Gopher's list, and for Spanish that of FineWeb-2 (configs/spa_Latn.yml)."""
LEAST_SHARE = 0.05
"""Common words among the words from which a language counts as detected; running text has 0.3 to 0.5, API lists 0.1."""


def words(text: str) -> list[str]:
    """The words of a text in order, in lower case."""
    return WORD.findall(text.lower())


def languages(words_D: np.ndarray, *common_D: np.ndarray) -> np.ndarray:
    """Number in COMMON, from 1, of the language with most common words, 0 below LEAST_SHARE; a kin's nearest."""
    counts_DC = np.stack(common_D, axis=1)
    return np.where(counts_DC.max(axis=1) > LEAST_SHARE * words_D, 1 + counts_DC.argmax(axis=1), 0)
