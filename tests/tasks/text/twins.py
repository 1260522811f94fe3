"""What the text kernels do, said once more in plain, slow Python: the oracle of their tests."""

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

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
    if _alone(char) or ord(char) >= 0x20000:  # above Han there are tags and variation selectors only
        return False
    return char == "_" or unicodedata.category(char)[0] in "LMN"


def _alone(char: str) -> bool:
    return any(low <= ord(char) < high for low, high in
               ((0x3040, 0x3100), (0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x40000)))  # fmt: skip


def _fnv(word: str) -> int:
    h = FNV
    for byte in word.replace("ς", "σ").encode():
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


# -- quality ----------------------------------------------------------------------------------------------------------

ENDS, CLOSING = ".!?。！？｡．؟۔।॥։‼‽⁇⁈⁉", "\"'”’»)]」』"
SENTENCE = re.compile(rf"[{ENDS}][{ENDS}{re.escape(CLOSING)}]*(?=\s|$)")
POLICIES = ("javascript", "terms of use", "privacy policy", "cookie policy", "use cookies", "uses cookies",
            "use of cookies")  # fmt: skip
COMMON = {
    "english": "the of and to in is that it for was as with be on by are this at from or have an which not",
    "spanish": "de la que el en y los del las se por un con una su para es al lo como más pero sus le",
    "en_stops": "the be to of and that have with",
    "es_stops": "de la en el y a que del los se por un con una las su",
}


def counts(text: str, grams: Iterable[tuple[str, ...]] = ()) -> dict[str, int]:
    """Every count of tasks/text/quality.py, by its name, of a text that is in lower case already."""
    found, lines = words(text), [line.strip() for line in text.split("\n")]
    full = [line for line in lines if line]
    again = [line for at, line in enumerate(full) if line in full[:at]]
    paragraphs = [tuple(run) for empty, run in itertools.groupby(lines, lambda line: not line) if not empty]
    twice = [lines for at, lines in enumerate(paragraphs) if lines in paragraphs[:at]]
    pieces, symbols = _pieces(text)
    return {
        "words": len(found),
        "chars": len(text),
        "pieces": len(pieces),
        "piece_chars": sum(map(len, pieces)),
        "alphabetic": sum(any("a" <= c <= "z" or (c > "\x7f" and _counts(c)) for c in piece) for piece in pieces),
        "symbols": symbols,
        "hashes": text.count("#"),
        "ellipses": text.count("...") + text.count("…"),
        "newlines": text.count("\n"),
        "lines": len(full),
        "line_chars": sum(map(len, full)),
        "bullet_lines": sum(line[0] in "•‣●◦·▪" or re.match(r"[-*]\s", line) is not None for line in full),
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in full),
        "ended_lines": sum(line[-1] in ENDS for line in full),
        "short_lines": sum(len(line) <= 30 for line in full),
        "dup_lines": len(again),
        "dup_line_chars": sum(map(len, again)),
        "paragraphs": len(paragraphs),
        "dup_paragraphs": len(twice),
        "dup_paragraph_chars": sum(len(line) for lines in twice for line in lines),
        "braces": text.count("{"),
        "lorem": sum(pair == ("lorem", "ipsum") for line in lines for pair in itertools.pairwise(words(line))),
        "policy_lines": sum(map(_policy, lines)),
        "sentences": sum(map(_sentences, full)),
        **{name: sum(w in COMMON[name].split() for w in found) for name in ("english", "spanish")},
        **{name: len(set(found) & set(COMMON[name].split())) for name in ("en_stops", "es_stops")},
        "overlap": sum(tuple(found[at : at + 13]) in set(grams) for at in range(len(found) - 12)),
        **{f"top_{n}gram": _top(found, n) for n in (2, 3, 4)},
        **{f"dup_{n}gram": _dup(found, n) for n in range(5, 11)},
    }


def _counts(char: str) -> bool:
    return _alone(char) or _inside(char)


def _pieces(text: str) -> tuple[list[str], int]:
    """Words as people count them, and how many marks belong to none."""
    pieces, symbols = list[str](), 0
    for chunk in text.split():
        kinds = [(char if _alone(char) else "w" if _inside(char) else "m", char) for char in chunk]
        runs = [(kind, "".join(c for _, c in run)) for kind, run in itertools.groupby(kinds, lambda pair: pair[0])]
        atoms = [(k, c) for k, run in runs for c in (run if k not in ("w", "m") else [run])]
        for at, (kind, run) in enumerate(atoms):
            before, after = (atoms[n][0] if 0 <= n < len(atoms) else "" for n in (at - 1, at + 1))
            if kind == "m" and before != "w":
                symbols += _head(run, after == "w")
            elif kind == "m" and (after != "w" or _parts(atoms[at - 1][1], run, atoms[at + 1][1])):
                symbols += 1 if after == "w" else len(re.findall(r"\.+|[^-./\\@~^|]", run))
            elif kind == "w" and at > 1 and before == "m" and atoms[at - 2][0] == "w":
                if _parts(atoms[at - 2][1], atoms[at - 1][1], run):
                    pieces.append(run)
                else:
                    pieces[-1] += atoms[at - 1][1] + run
            elif kind != "m":
                pieces.append(run)
    return pieces, symbols


def _head(run: str, of_word: bool) -> int:
    """Marks before a word: those from the first one that belongs to it are its own; with no word there they are one."""
    free = len(list(itertools.takewhile(lambda char: char not in "-./\\@~^|", run)))
    return free + (free < len(run) and not of_word)


def _parts(left: str, mark: str, right: str) -> bool:
    digits = [char in "0123456789" for char in (left[-1], right[0])]
    if mark in ("-", "–", "—", ","):
        return not any(digits) or (mark == "-" and all(digits))
    return all(digits) if mark in ("*", "+", "^") else mark in tuple("/:<=>") and not digits[1]


def _policy(line: str) -> bool:
    return any(f" {phrase} " in f" {' '.join(words(line))} " for phrase in POLICIES)


def _sentences(line: str) -> int:
    """Those that count for C4."""
    found = words(line)
    if len(found) < 5 or max(map(len, found)) > 1_000 or _policy(line):
        return 0
    if line.endswith(("...", "…")) or line[-1] not in ENDS + "\"'”":
        return 0
    return max(1, len(SENTENCE.findall(line)))


def _top(found: list[str], n: int) -> int:
    times = Counter(tuple(found[at : at + n]) for at in range(len(found) - n + 1))
    ranked = max(((count, len(" ".join(gram))) for gram, count in times.items()), default=(0, 0))
    return ranked[0] * ranked[1] if ranked[0] > 1 else 0


def _dup(found: list[str], n: int) -> int:
    seen, chars, at = set[tuple[str, ...]](), 0, 0
    while at <= len(found) - n:
        gram = tuple(found[at : at + n])
        chars += sum(map(len, gram)) if gram in seen else 0
        at += n if gram in seen else 1
        seen.add(gram)
    return chars


# -- personal data ----------------------------------------------------------------------------------------------------


def personal(text: str, kinds: Collection[str]) -> list[tuple[str, str]]:
    """(kind, what) of tasks/text/pii.py in order: each pattern over the whole text, the first kind wins a place."""
    from tasks.text.pii import CHECKS, KINDS, PATTERNS

    taken, found = set[int](), list[tuple[int, str, str]]()
    for kind, pattern, check in zip(KINDS, PATTERNS, CHECKS, strict=True):
        if kind not in kinds:
            continue
        anywhere = [pattern.match(text, at) for at in range(len(text))]  # what fails its check hides nothing
        for match in filter(None, anywhere if kind in ("phone", "iban") else pattern.finditer(text)):
            places = range(match.start(), match.start() + check(match.group()))
            if places and taken.isdisjoint(places):
                taken.update(places)
                found.append((match.start(), kind, text[places.start : places.stop]))
    return [(kind, what) for _, kind, what in sorted(found)]
