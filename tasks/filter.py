"""Drop documents that are no good prose: quality rules per detected language, and word lists, behind one interface.

In: Corpus. Out: Corpus without them; `dropped/` names each with its rule, the number measured and an excerpt.
Method: Gopher's rules (Rae et al. 2021); thresholds looser where documentation, plays and books need it.
"""

import hashlib
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from gpt.errors import UserError
from tasks.artifacts import Corpus, Metrics
from tasks.corpus import Facts, Sieve, groups, place, settle, sift
from tasks.files import file_digest
from tasks.runtime import progress
from tasks.stage import stage
from tasks.text.rules import RULES, Lexicon, judge, lexicon
from tasks.workers import spread

LISTED = "fuck fucking motherfucker cunt whore slut faggot nigger nigga kike puta hijoputa gilipollas maricón zorra"
"""The built-in list: a floor, not a toxicity filter. Real lists come by `wordlists`."""


class Filter(Sieve):
    """A limit a rule; null switches the rule off."""

    min_words: int | None = 40
    """Fewest words (detected languages only). Gopher has 50."""
    max_words: int | None = 2_000_000
    """Most words (detected languages only). Gopher has 100,000, which forbids books."""
    min_mean_word: float | None = 3.0
    """Lowest mean word length in characters (detected languages only)."""
    max_mean_word: float | None = 10.0
    """Highest mean word length in characters (detected languages only)."""
    min_stop_words: int | None = 2
    """Fewest distinct words of the language's eight commonest (detected languages only)."""
    min_alphabetic: float | None = 0.8
    """Lowest share of words that are no numbers."""
    max_symbols: float | None = 0.1
    """Most `#` and ellipses per word."""
    max_bullet_lines: float | None = 0.9
    """Highest share of lines that begin with a bullet."""
    max_ellipsis_lines: float | None = 0.3
    """Highest share of lines that end with an ellipsis."""
    max_repeated: float | None = 0.3
    """Highest share of characters in lines that stood before in the document."""
    max_listed: float | None = 2.0
    """Most distinct listed words per started thousand words."""
    wordlists: tuple[str, ...] = ()
    """Files of unwanted words and phrases, one a line, matched as whole words; empty takes a small built-in list."""

    def outside(self) -> dict[str, list[str]]:
        """The word lists by content."""
        return {"wordlists": [hashlib.sha256(_read(name).encode()).hexdigest() for name in self.wordlists]}


@stage(Corpus, version="2")
def filter(out: Path, config: Filter, corpus: Corpus) -> Metrics:
    """Drop documents that break a quality rule or hold too many listed words, each with its reason."""
    words = lexicon([line for name in config.wordlists for line in _read(name).splitlines()] or LISTED.split())
    limits = {name: getattr(config, name) for name in RULES}
    parts = []
    for number, path in enumerate(progress(corpus.parts, "parts", len(corpus.parts))):
        parts.append(place(out, number, [file_digest(path), limits, words], partial(_build, path, limits, words)))
    return settle(out, "filter", parts, config.max_drop_share, "loosen filter.{reason} (null switches it off)")


def _build(path: Path, limits: dict[str, float | None], words: Lexicon, folder: Path) -> Facts:
    judged = progress(spread(partial(judge, limits, words), groups(path)), "row groups")
    return sift(folder, pq.read_schema(path), ((group.table(), verdicts) for group, verdicts in judged))


def _read(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"filter.wordlists: {name!r} is no UTF-8 text file ({error})"
        raise UserError(f"{what}; mend it or leave it out") from error
