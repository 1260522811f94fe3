"""Filter rules over one document: each measures one number, and a limit of the same name says what is too low or high.

In: a text, limits {name: number, or None for off}, a lexicon. Out: the first broken rule with its number, or None.
The measures are Gopher's (Rae et al. 2021, appendix A), with words as `\\w+`; rules on words hold only where the
language is detected, since other languages have other words. A new rule is one function here and one field of Filter.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from tasks.text.words import language, words

GOPHER_WORDS = {
    "en": frozenset("the be to of and that have with".split()),
    "es": frozenset("de la que el en y los con".split()),
}
BULLETS = ("•", "‣", "●", "◦", "·", "- ", "* ")
Lexicon = Mapping[str, Sequence[str]]
"""First word to the listed phrases (words joined by blanks) that begin with it."""


@dataclass(frozen=True)
class Document:
    """What rules look at; `lines` are stripped and not empty, `listed` are the distinct lexicon entries found."""

    text: str
    words: list[str]
    lines: list[str]
    language: str
    listed: frozenset[str]


def judge(limits: Mapping[str, float | None], lexicon: Lexicon, table: pa.Table) -> list[tuple[str, float] | None]:
    """The verdict on each row of a table with a `text` column."""
    return [verdict(read(text, lexicon), limits) for text in table["text"].to_pylist()]


def verdict(document: Document, limits: Mapping[str, float | None]) -> tuple[str, float] | None:
    """(rule, number) of the first rule that the document breaks, in the order of RULES; None if it breaks none."""
    for name, measure in RULES.items():
        limit = limits[name]
        if limit is None or (name in WORD_RULES and not document.language):
            continue
        number = measure(document)
        if number < limit if name.startswith("min_") else number > limit:
            return name, number
    return None


def read(text: str, lexicon: Lexicon) -> Document:
    """Split a text once for all rules."""
    found = words(text)
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    return Document(text, found, lines, language(found), _listed(found, lexicon))


def lexicon(entries: Iterable[str]) -> dict[str, list[str]]:
    """Index listed words and phrases by first word; entries without a word of two letters are left out (`s&m`)."""
    index: dict[str, list[str]] = {}
    for entry in sorted(set(entries)):
        parts = words(entry)
        if any(len(part) > 1 for part in parts):
            index.setdefault(parts[0], []).append(" ".join(parts))
    return index


def _listed(found: Sequence[str], lexicon: Lexicon) -> frozenset[str]:
    """Whole words only: `class` never hits for a word inside it (the Scunthorpe problem)."""
    phrases = [phrase for first in lexicon.keys() & set(found) for phrase in lexicon[first]]
    joined = f" {' '.join(found)} " if phrases else ""
    return frozenset(phrase for phrase in phrases if f" {phrase} " in joined)


def _mean_word(document: Document) -> float:
    return sum(map(len, document.words)) / max(1, len(document.words))


def _symbols(document: Document) -> float:
    symbols = document.text.count("#") + document.text.count("...") + document.text.count("…")
    return symbols / max(1, len(document.words))


def _alphabetic(document: Document) -> float:
    return 1 - sum(map(str.isdigit, document.words)) / max(1, len(document.words))


def _line_share(document: Document, fits: Callable[[str], bool]) -> float:
    return sum(map(fits, document.lines)) / max(1, len(document.lines))


def _repeated(document: Document) -> float:
    """Share of the characters that stand in lines seen before."""
    unique = sum(map(len, set(document.lines)))
    return 1 - unique / max(1, sum(map(len, document.lines)))


def _listed_rate(document: Document) -> float:
    """Distinct listed words per started thousand words, so that a book is not judged by one page."""
    return len(document.listed) / -(-max(1, len(document.words)) // 1_000)


RULES: dict[str, Callable[[Document], float]] = {
    "min_words": lambda document: len(document.words),
    "max_words": lambda document: len(document.words),
    "min_mean_word": _mean_word,
    "max_mean_word": _mean_word,
    "min_stop_words": lambda document: len(GOPHER_WORDS[document.language].intersection(document.words)),
    "min_alphabetic": _alphabetic,
    "max_symbols": _symbols,
    "max_bullet_lines": lambda document: _line_share(document, lambda line: line.startswith(BULLETS)),
    "max_ellipsis_lines": lambda document: _line_share(document, lambda line: line.endswith(("...", "…"))),
    "max_repeated": _repeated,
    "max_listed": _listed_rate,
}
WORD_RULES = frozenset({"min_words", "max_words", "min_mean_word", "max_mean_word", "min_stop_words"})
"""Rules whose limits are known for detected languages only."""
