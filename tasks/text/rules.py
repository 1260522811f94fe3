"""Filter rules over one document: each measures one number, and a limit of the same name says what is too low or high.

In: texts, limits {rule: number, or None for off}, a lexicon. Out: the first broken rule with its number, or None.
The measures are Gopher's (Rae et al. 2021, appendix A) with words as `\\w+`. A new rule is a line here and in Filter.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from tasks.corpus import Group
from tasks.text.words import STOP_WORDS, language, words

BULLETS = ("•", "‣", "●", "◦", "·", "- ", "* ")
Lexicon = Mapping[str, Sequence[str]]
"""First word to the listed phrases (words joined by blanks) that begin with it."""
Limits = Mapping[str, float | None]
"""Rule to limit; None switches it off."""
Verdict = tuple[str, float, None] | None
"""A broken rule and the number measured (no document is kept in its place), or None."""


class Document(NamedTuple):
    """What rules look at: `lines` stripped and not empty, `listed` the number of distinct lexicon entries in it."""

    text: str
    words: list[str]
    lines: list[str]
    language: str
    listed: int

    def per_word(self, count: float) -> float:
        """A count as a share of the words."""
        return count / max(1, len(self.words))

    def per_line(self, fits: Callable[[str], bool]) -> float:
        """The share of lines that fit."""
        return sum(map(fits, self.lines)) / max(1, len(self.lines))


RULES: dict[str, Callable[[Document], float]] = {
    "max_listed": lambda document: document.listed / -(-max(1, len(document.words)) // 1_000),
    "min_words": lambda document: len(document.words),
    "max_words": lambda document: len(document.words),
    "min_mean_word": lambda document: document.per_word(sum(map(len, document.words))),
    "max_mean_word": lambda document: document.per_word(sum(map(len, document.words))),
    "min_stop_words": lambda document: len(STOP_WORDS[document.language].intersection(document.words)),
    "min_alphabetic": lambda document: 1 - document.per_word(sum(map(str.isdigit, document.words))),
    "max_symbols": lambda document: document.per_word(sum(map(document.text.count, ("#", "...", "…")))),
    "max_bullet_lines": lambda document: document.per_line(lambda line: line.startswith(BULLETS)),
    "max_ellipsis_lines": lambda document: document.per_line(lambda line: line.endswith(("...", "…"))),
    "max_repeated": lambda document: 1 - sum(map(len, set(document.lines))) / max(1, sum(map(len, document.lines))),
}
WORD_RULES = tuple(RULES)[1:6]
"""Rules that hold only where the language is detected, since other languages have other words."""


def judge(limits: Limits, lexicon: Lexicon, group: Group) -> list[Verdict]:
    """The verdict on each row of a row group."""
    return [verdict(read(text, lexicon), limits) for text in group.table(["text"])["text"].to_pylist()]


def verdict(document: Document, limits: Limits) -> Verdict:
    """(rule, number, no kept id) of the first rule that the document breaks, in the order of RULES; None if none."""
    for name, measure in RULES.items():
        if (limit := limits[name]) is not None and (document.language or name not in WORD_RULES):
            number = measure(document)
            if number < limit if name.startswith("min_") else number > limit:
                return name, number, None
    return None


def read(text: str, lexicon: Lexicon) -> Document:
    """Split a text once for all rules. Listed are whole words only: no word hits for a part of it (Scunthorpe)."""
    found = words(text)
    phrases = [phrase for first in lexicon.keys() & set(found) for phrase in lexicon[first]]
    joined = f" {' '.join(found)} " if phrases else ""
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    return Document(text, found, lines, language(found), sum(f" {phrase} " in joined for phrase in phrases))


def lexicon(entries: Iterable[str]) -> dict[str, list[str]]:
    """Index listed words and phrases by first word; entries without a word of two letters are left out (`s&m`)."""
    index: dict[str, list[str]] = {}
    for entry in sorted({" ".join(words(entry)) for entry in entries}):
        if any(len(part) > 1 for part in entry.split()):
            index.setdefault(entry.split()[0], []).append(entry)
    return index
