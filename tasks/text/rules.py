"""Filter rules: each makes one number of a document's counts; a limit of its name says what is too low or too high.

In: counts (tasks/text/quality.py), limits. Out: for each document the first broken rule with its number, or None.
Sources: Gopher (Rae et al. 2021, appendix A), C4 (Raffel et al. 2020), FineWeb (Penedo et al. 2024, 2025).
A new rule is a line here, a field in Filter and, where it counts something new, a field in Counts.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tasks.text.quality import Counts
from tasks.text.words import languages

# D documents
Limit = float | None
Limits = Mapping[str, tuple[Limit, ...]]
"""Rule to the limits for documents of no known language and of each in COMMON; None switches it off."""
Verdict = tuple[str, float, None] | None
"""A broken rule and the number measured (no document is kept in its place), or None."""
Lexicon = Mapping[str, Sequence[str]]
"""First word to the listed phrases (words joined by blanks) that begin with it."""
Measure = Callable[[Counts], np.ndarray]


def share(part: str, whole: str) -> Measure:
    """A count as a share of another one; 0 where there is nothing."""
    return lambda counts: getattr(counts, part) / np.maximum(1, getattr(counts, whole))


def tokens(counts: Counts) -> np.ndarray:
    """Pieces of words and symbols: the published limits stand for texts that are split like this."""
    return np.maximum(1, counts.pieces + counts.symbols)


RULES: dict[str, Measure] = {
    "max_overlap": lambda counts: counts.overlap,
    "max_lorem": lambda counts: counts.lorem,
    "max_braces": lambda counts: counts.braces,
    "min_words": lambda counts: counts.pieces,
    "max_words": lambda counts: counts.pieces,
    "min_mean_word": share("piece_chars", "pieces"),
    "max_mean_word": share("piece_chars", "pieces"),
    "min_stop_words": lambda counts: np.choose(spoken(counts), (counts.en_stops, counts.en_stops, counts.es_stops)),
    "min_alphabetic": lambda counts: counts.alphabetic / tokens(counts),
    "max_symbols": lambda counts: np.maximum(counts.hashes, counts.ellipses) / tokens(counts),
    "max_bullet_lines": share("bullet_lines", "lines"),
    "max_ellipsis_lines": share("ellipsis_lines", "lines"),
    "max_dup_paragraphs": share("dup_paragraphs", "paragraphs"),
    "max_dup_paragraph_chars": share("dup_paragraph_chars", "line_chars"),
    "max_dup_lines": share("dup_lines", "lines"),
    "max_dup_line_chars": share("dup_line_chars", "line_chars"),
    **{f"max_top_{n}gram": share(f"top_{n}gram", "chars") for n in range(2, 5)},
    **{f"max_dup_{n}gram": share(f"dup_{n}gram", "chars") for n in range(5, 11)},
    "min_line_punct": share("ended_lines", "lines"),
    "max_short_lines": share("short_lines", "lines"),
    "max_new_lines": lambda counts: counts.newlines / tokens(counts),
    "max_policy_lines": share("policy_lines", "lines"),
    "min_sentences": lambda counts: counts.sentences,
}


def spoken(counts: Counts) -> np.ndarray:
    """The documents' languages: places in COMMON from 1, or 0."""
    return languages(counts.words, counts.english, counts.spanish)


def judge(counts: Counts, limits: Limits) -> list[Verdict]:
    """(rule, number, no kept id) of the first rule that each document breaks, in the order of RULES; None if none."""
    verdicts: list[Verdict] = [None] * len(counts.words)
    language_D = spoken(counts)
    for name, measure in RULES.items():
        limit_D = np.array(limits[name], float)[language_D]  # None becomes a NaN, which nothing breaks
        if not np.isnan(limit_D).all():
            number_D = measure(counts)
            for place in np.flatnonzero(number_D < limit_D if name.startswith("min_") else number_D > limit_D):
                verdicts[place] = verdicts[place] or (name, round(float(number_D[place]), 6), None)
    return verdicts
