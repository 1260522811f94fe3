"""What the text kernels do, said once more in plain, slow Python: the oracle of their tests."""

import itertools
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

FNV, PRIME, GOLD, MIX = 0xCBF29CE484222325, 0x100000001B3, 0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD
WHOLE = 2**64

# -- toxicity ---------------------------------------------------------------------------------------------------------


def toxic_rate(
    text: str, weights: Mapping[int, float], bias: float, listed: Iterable[tuple[str, ...]]
) -> tuple[list[float], list[int]]:
    """(score of each line's worst stretch, listed entries in each line) of a text in lower case."""
    listed = set(listed)
    scores, counts = [], []
    for line in text.split("\n"):
        found = list(toxic_stretches(line, 64))
        sums = [bias + math.fsum(weights[f] for f in features) / math.sqrt(len(features) + 40) for _, features in found]
        scores.append(max(sums, default=-1e9))
        counts.append(sum(len([e for e in listed if tuple(words[at : at + len(e)]) == e])
                          for words, _ in found for at in range(len(words))))  # fmt: skip
    return scores, counts


def toxic_stretches(line: str, most: int) -> Iterator[tuple[list[str], list[int]]]:
    """(words, features) of each `most` words: the words, pairs of neighbours, triples of letters between blanks."""
    found = _words(line)
    for first in range(0, len(found), most):
        words = [word for word, _ in found[first : first + most]]
        runs = "".join(
            word if glued and at else " " + word for at, (word, glued) in enumerate(found[first : first + most])
        )
        triples = [f"\0 {run} "[at : at + 3] for run in runs.split() for at in range(len(run) + 1)]
        hashes = [0, *(_spread(_fnv(word)) for word in words)]
        pairs = [a * MIX % WHOLE ^ b for a, b in itertools.pairwise(hashes)]
        packed = [(ord(a) << 42 | ord(b) << 21 | ord(c)) % 2**63 for a, b, c in triples]
        yield words, [x * GOLD % WHOLE >> 46 for x in (*hashes[1:], *pairs, *packed)]


def _words(line: str) -> list[tuple[str, bool]]:
    """Words, kana and Han characters one by one, each with whether nothing parts it from the one before."""
    found: list[tuple[str, bool]] = []
    for at, char in enumerate(line):
        if not (_alone(char) or _inside(char)):
            continue
        glued = at > 0 and (_alone(line[at - 1]) or _inside(line[at - 1]))
        if glued and _inside(char) and _inside(line[at - 1]):
            found[-1] = found[-1][0] + char, found[-1][1]
        else:
            found.append((char, glued))
    return found


def _inside(char: str) -> bool:
    return not _alone(char) and (char == "_" or unicodedata.category(char)[0] in "LMN")


def _alone(char: str) -> bool:
    return any(low <= ord(char) < high for low, high in
               ((0x3040, 0x3100), (0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x40000)))  # fmt: skip


def _fnv(word: str) -> int:
    h = FNV
    for byte in word.encode():
        h = (h ^ byte) * PRIME % WHOLE
    return h


def _spread(h: int) -> int:
    h = (h ^ h >> 32) * MIX % WHOLE
    return h ^ h >> 29


# -- words and shingles -----------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """The words of a text that is in lower case already."""
    return [word for word, _ in _words(text)]


def word_hash(word: str) -> int:
    """The hash of one word."""
    return _spread(_fnv(word))


def shingles(text: str, ngram: int) -> list[int]:
    """32-bit hashes of each `ngram` words in a row, of all words where there are fewer; `text` is put in lower case."""
    hashes = [word_hash(word) for word in words(lowered(text))]
    spans = [hashes[at : at + ngram] for at in range(max(1, len(hashes) - ngram + 1))] if hashes else []
    return [_shingle(span) for span in spans]


def _shingle(hashes: list[int]) -> int:
    roll = 0
    for one in hashes:
        roll = (roll * GOLD + one) % WHOLE
    x = (roll ^ roll >> 33) * MIX % WHOLE
    return (x ^ x >> 33) >> 32


def lowered(text: str) -> str:
    """Arrow's lower case, character by character, which is not Python's for `İ` and a final `Σ`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.utf8_lower(pa.scalar(text)).as_py()
