"""Everything the quality rules measure, counted in one pass over a row group's words and lines.

In: texts in lower case (tasks/text/scan.py). Out: `Counts`, of which tasks/text/rules.py makes shares.
Counted is what Gopher (Rae et al. 2021, appendix A), C4 (Raffel et al. 2020) and FineWeb (Penedo et al. 2024) judge by.
"""

from typing import NamedTuple

import numpy as np
from numba import uint8, uint32, uint64

from tasks.text.compiler import njit
from tasks.text.ngrams import mask_of, repeated, slot
from tasks.text.overlap import within
from tasks.text.scan import FNV, KINDS, SEPARATOR, SINGLE, WORD, Texts, character, hashed, kind, mixed, room, words
from tasks.text.words import COMMON, STOP_WORDS

# D documents, W words of the longest, L lines of the longest, S slots of a hash table (a power of two)
BULLETS, DASHES = "•‣●◦·▪", "-*"  # a dash is a bullet where a blank follows
TERMINALS = ".!?。！？｡．؟۔।॥։‼‽⁇⁈⁉"
CLOSERS = "\"'”’»)]」』"
BLANKS = [chr(code) for code in range(0x10000) if chr(code).isspace() and code != 10]
HEADS = "-./\\@~^|"
"""Marks that belong to the word which they precede (--help, .5, /etc): alone a run of them counts once."""
LONGEST_WORD, LINE_WORDS, SHORT_LINE = 1_000, 5, 30
"""C4 passes over lines with a longer word (characters) or fewer words; FineWeb calls lines up to this short."""

BLANK, BULLET, DASH, TERMINAL, CLOSER, HEAD = 1, 2, 4, 8, 16, 32
TRAITS = np.zeros(0x10000, np.uint8)
"""What lines look at in a character, as bits."""
for _bit, _characters in (
    (BLANK, BLANKS),
    (BULLET, BULLETS),
    (DASH, DASHES),
    (TERMINAL, TERMINALS),
    (CLOSER, CLOSERS),
    (HEAD, HEADS),
):
    TRAITS[[*map(ord, _characters)]] |= _bit

CUES = ("lorem", "ipsum", "javascript", "terms", "of", "use", "uses", "privacy", "cookie", "policy", "cookies")
LOREM, IPSUM, JAVASCRIPT, TERMS, OF, USE, USES, PRIVACY, COOKIE, POLICY, COOKIES = range(1, len(CUES) + 1)
"""Words of which C4's phrases are made."""
IS_ENGLISH, IS_SPANISH, CUE_SHIFT, EN_SHIFT, ES_SHIFT = 1, 2, 2, 6, 14
"""A known word's bits: among which language's commonest, which cue, which of a rule's 8 English, 16 Spanish ones."""


class Counts(NamedTuple):
    """int64 (D) each: what there is of it in each document."""

    words: np.ndarray
    chars: np.ndarray
    """Characters of the document."""
    pieces: np.ndarray
    """Words as people count them: don't, f(x), --help and 1e-5 are one, well-known and a=b are two."""
    piece_chars: np.ndarray
    alphabetic: np.ndarray
    """Pieces with a letter."""
    symbols: np.ndarray
    """Marks that belong to no piece."""
    hashes: np.ndarray
    """The character #."""
    ellipses: np.ndarray
    newlines: np.ndarray
    lines: np.ndarray
    """Lines that are not blank; what follows leaves blanks at their ends out."""
    line_chars: np.ndarray
    bullet_lines: np.ndarray
    ellipsis_lines: np.ndarray
    ended_lines: np.ndarray
    """Lines that end in a sentence's mark."""
    short_lines: np.ndarray
    dup_lines: np.ndarray
    """Lines that stood before in the document."""
    dup_line_chars: np.ndarray
    paragraphs: np.ndarray
    """Lines without a blank one between them."""
    dup_paragraphs: np.ndarray
    dup_paragraph_chars: np.ndarray
    braces: np.ndarray
    """The character {."""
    lorem: np.ndarray
    """The words lorem ipsum."""
    policy_lines: np.ndarray
    """Lines that speak of javascript, cookies, terms of use."""
    sentences: np.ndarray
    """Sentences in the lines that C4 would keep."""
    english: np.ndarray
    """Words among the commonest ones of English."""
    spanish: np.ndarray
    en_stops: np.ndarray
    """Distinct words of Gopher's list."""
    es_stops: np.ndarray
    overlap: np.ndarray
    """Places where one of the given 13-grams stands."""
    top_2gram: np.ndarray
    """Characters of the commonest n-gram, all its places together; 0 where none comes twice."""
    top_3gram: np.ndarray
    top_4gram: np.ndarray
    dup_5gram: np.ndarray
    """Characters of n-grams that stood before."""
    dup_6gram: np.ndarray
    dup_7gram: np.ndarray
    dup_8gram: np.ndarray
    dup_9gram: np.ndarray
    dup_10gram: np.ndarray


(
    WORDS, CHARS, PIECES, PIECE_CHARS, ALPHABETIC, SYMBOLS, HASHES, ELLIPSES, NEWLINES, LINES, LINE_CHARS, BULLET_LINES,
    ELLIPSIS_LINES, ENDED_LINES, SHORT_LINES, DUP_LINES, DUP_LINE_CHARS, PARAGRAPHS, DUP_PARAGRAPHS,
    DUP_PARAGRAPH_CHARS, BRACES, LOREM_IPSUM, POLICY_LINES, SENTENCES, IN_ENGLISH, IN_SPANISH, EN_STOPS, ES_STOPS,
    OVERLAP, NGRAMS,
) = range(30)  # fmt: skip
"""Places of the counts; n-grams are the last ones."""


def counted(texts: Texts, grams_S: np.ndarray) -> Counts:
    """The counts of each document; `grams_S` is a table of 13-grams to look for (tasks/text/overlap.py), or empty."""
    out_DF = np.zeros((len(texts.ends_D1) - 1, len(Counts._fields)), np.int64)
    size = 1 << max(4, (texts.longest + 2).bit_length())  # two slots a word or line, which have two bytes at least
    tables = np.zeros(size, np.uint64), np.zeros(size, np.int32)
    rows = [np.zeros(size // 2, kind) for kind in (np.uint64, np.int64, np.int64, np.int64)]
    _count(texts.data, texts.ends_D1, KINDS, TRAITS, *KNOWN, grams_S, *room(texts), *tables, *rows, out_DF)
    return Counts(*out_DF.T)


def _known() -> tuple[np.ndarray, np.ndarray]:
    """An open hash table of the words that matter: (keys, bits)."""
    bits: dict[str, int] = {}
    for shift, listed in ((EN_SHIFT, STOP_WORDS["en"]), (ES_SHIFT, STOP_WORDS["es"])):
        bits |= {word: bits.get(word, 0) | 1 << shift + place for place, word in enumerate(listed)}
    for mark, listed in ((IS_ENGLISH, COMMON["en"]), (IS_SPANISH, COMMON["es"])):
        bits |= {word: bits.get(word, 0) | mark for word in listed}
    bits |= {word: bits.get(word, 0) | place << CUE_SHIFT for place, word in enumerate(CUES, 1)}
    keys, marks = np.zeros(1024, np.uint64), np.zeros(1024, np.uint32)
    data = np.frombuffer(" ".join(bits).encode(), np.uint8)  # one word is one word: checked by the tests
    texts = Texts(data, np.array([0, len(data)]))
    hashes, *others = room(texts)
    for h, mark in zip(hashes[: words(data, 0, len(data), KINDS, hashes, *others)], bits.values(), strict=True):
        at = int(h) & 1023
        while keys[at]:
            at = at + 1 & 1023
        keys[at], marks[at] = h, mark
    return keys, marks


KNOWN = _known()


# -- the kernel -------------------------------------------------------------------------------------------------------


@njit(inline="always")
def _known_bits(h, keys, marks):
    at = h & uint64(1023)
    while keys[at] != 0 and keys[at] != h:
        at = (at + uint64(1)) & uint64(1023)
    return marks[at] if keys[at] == h else uint32(0)


@njit(cache=True, nogil=True, boundscheck=False)
def _count(
    data, ends_D1, kinds, traits, keys, marks, grams_S, hashes_W, starts_W, chars_W, table_S, seen_S, rolled_W, sums_W,
    places_W, slots_W, out_DF,
):  # fmt: skip
    """Fill in the counts of each document."""
    for d in range(out_DF.shape[0]):
        out, begin, end = out_DF[d], uint64(ends_D1[d]), uint64(ends_D1[d + 1])
        n = words(data, begin, end, kinds, hashes_W, starts_W, chars_W)
        _words(n, hashes_W, chars_W, keys, marks, sums_W, slots_W, out)
        _pieces(data, begin, end, kinds, traits, out)
        _lines(data, begin, end, traits, n, starts_W, chars_W, slots_W, table_S, rolled_W, places_W, out)
        if grams_S.shape[0]:
            out[OVERLAP] = within(hashes_W, n, grams_S)
        repeated(n, hashes_W, sums_W, table_S, seen_S, rolled_W, places_W, slots_W, out[NGRAMS:])


@njit(cache=True, nogil=True, boundscheck=False)
def _words(n, hashes_W, chars_W, keys, marks, sums_W, cues_W, out):
    """What words tell; leaves the characters before each in `sums_W` and which cue it is in `cues_W`."""
    sums_W[0], found = 0, uint32(0)
    for w in range(n):
        sums_W[w + 1] = sums_W[w] + chars_W[w]
        bits = _known_bits(hashes_W[w], keys, marks)
        out[IN_ENGLISH] += bits & IS_ENGLISH != 0
        out[IN_SPANISH] += bits & IS_SPANISH != 0
        cues_W[w] = (bits >> CUE_SHIFT) & 15
        found |= bits
    for bit in range(EN_SHIFT, ES_SHIFT + 16):
        out[EN_STOPS if bit < ES_SHIFT else ES_STOPS] += (found >> bit) & 1
    out[WORDS] = n


@njit(cache=True, nogil=True, boundscheck=False)
def _pieces(data, i, end, kinds, traits, out):
    """Words as people count them, and the marks that stand alone: what lies between blanks, character by character."""
    before, previous, mark = uint32(0), uint32(0), uint32(0)  # the word's last character, the one before, a mark
    stuck, spelt, loose, gap = 0, False, 0, 0  # marks at its head; has it a letter; marks behind it, in all
    pieces, chars, alphabetic, symbols = 0, 0, 0, 0
    while i < end:
        code, step = character(data, i)
        i += uint64(step)
        trait = traits[code] if code < 0x10000 else uint8(0)
        what = SEPARATOR if trait & BLANK or code == 10 else kind(kinds, code)
        if trait & BLANK or code == 10:
            symbols += loose
            before, stuck, loose, gap = uint32(0), 0, 0, 0
        elif what != SEPARATOR:
            parted = what == WORD and gap == 1 and _parts(mark, before, code)
            if before == 0 or parted or what == SINGLE:
                symbols += 1 if parted else loose if what == SINGLE else -stuck
                pieces, gap, spelt = pieces + 1, 0, False
            letter = 97 <= code <= 122 or code > 127
            chars += 1 + gap
            alphabetic += letter and not spelt
            before, spelt = code if what == WORD else uint32(0), letter or spelt
            stuck, loose, gap = 0, 0, 0
        elif before:
            loose += not trait & HEAD or (code == 46 and previous != 46)
            gap, mark = gap + 1, code
        elif not stuck:
            symbols += 1
            stuck = int(trait & HEAD != 0)
        previous = code
    out[PIECES], out[PIECE_CHARS], out[ALPHABETIC], out[SYMBOLS] = pieces, chars, alphabetic, symbols + loose


@njit(inline="always")
def _parts(mark, before, code):
    """Whether a mark between two characters of words parts them."""
    digits = (48 <= before <= 57) + (48 <= code <= 57)
    if mark in (44, 45, 0x2013, 0x2014):  # comma and dashes
        return digits == 0 or (digits == 2 and mark == 45)
    if mark in (42, 43, 94):  # * + ^
        return digits == 2
    return mark in (47, 58, 60, 61, 62) and not 48 <= code <= 57  # / : < = >


@njit(cache=True, nogil=True, boundscheck=False)
def _lines(data, begin, end, traits, n, starts_W, chars_W, cues_W, table_S, paragraphs_W, sizes_W, out):
    """What lines and paragraphs tell."""
    least, newlines, after = 1, 0, 10
    for i in range(begin, end):
        c = data[uint64(i)]
        least += after == 10 and c != 10
        newlines += c == 10
        after = c
    out[NEWLINES] = newlines
    mask = mask_of(least)
    table_S[: mask + uint64(1)] = 0
    i, w, paragraph, size, parts = begin, 0, FNV, 0, 0
    while i < end:
        i, h, chars, sentences = _line(data, i, end, traits, out)
        first_w, longest, policy = w, 0, False
        while w < n and uint64(starts_W[w]) < i:
            longest = max(longest, chars_W[w])
            policy |= _cue(first_w, w, cues_W, out)
            w += 1
        out[POLICY_LINES] += policy
        if w - first_w >= LINE_WORDS and longest <= LONGEST_WORD and not policy:
            out[SENTENCES] += sentences
        if chars:
            at = slot(table_S, h, mask)
            out[DUP_LINES] += table_S[at] == h
            out[DUP_LINE_CHARS] += chars if table_S[at] == h else 0
            table_S[at] = h
            paragraph, size = mixed(paragraph ^ h), size + chars
        elif size:
            paragraphs_W[parts], sizes_W[parts] = paragraph | uint64(1), size
            parts, paragraph, size = parts + 1, FNV, 0
    if size:
        paragraphs_W[parts], sizes_W[parts] = paragraph | uint64(1), size
        parts += 1
    out[PARAGRAPHS] = parts
    mask = mask_of(parts)
    table_S[: mask + uint64(1)] = 0
    for p in range(parts):
        at = slot(table_S, paragraphs_W[p], mask)
        out[DUP_PARAGRAPHS] += table_S[at] != 0
        out[DUP_PARAGRAPH_CHARS] += sizes_W[p] if table_S[at] else 0
        table_S[at] = paragraphs_W[p]


@njit(cache=True, nogil=True, boundscheck=False)
def _line(data, i, end, traits, out):
    """Read a line: (where the next begins, its hash, its characters without blanks at the ends, C4's sentences)."""
    h, kept, chars, inner, opening = FNV, FNV, 0, 0, uint32(0)
    last, dots, tail, sentences, ended, mark = uint32(0), 0, 0, 0, False, 0
    size, ellipses, hashes, braces, bullet = 0, 0, 0, 0, False
    while i < end:
        code, step = character(data, i)
        stop = i + uint64(step)
        size += 1
        if code == 10:
            i = stop
            break
        trait = traits[code] if code < 0x10000 else uint8(0)
        if code == 46:
            dots += 1
            ellipses += dots % 3 == 0
        else:
            dots = 0
            ellipses += code == 0x2026
        hashes += code == 35
        braces += code == 123
        if trait & BLANK:
            sentences, ended = sentences + ended, False
            if chars:
                h, inner = hashed(data, i, stop, h), inner + 1
        else:
            ended = trait & TERMINAL != 0 or (ended and trait & CLOSER != 0)
            h, inner = hashed(data, i, stop, h), inner + 1
            if chars == 0:
                opening, bullet = uint32(trait), trait & BULLET != 0
            elif chars == 1:
                bullet |= inner > 2 and opening & DASH != 0
            kept, chars, last, mark, tail = h, inner, code, trait, dots
        i = stop
    out[CHARS] += size
    out[ELLIPSES] += ellipses
    out[HASHES] += hashes
    out[BRACES] += braces
    out[BULLET_LINES] += bullet
    if chars:
        ellipsis = last == 0x2026 or tail >= 3
        out[LINES] += 1
        out[LINE_CHARS] += chars
        out[ELLIPSIS_LINES] += ellipsis
        out[ENDED_LINES] += mark & TERMINAL != 0
        out[SHORT_LINES] += chars <= SHORT_LINE
        if ellipsis or not (mark & TERMINAL or last == 34 or last == 39 or last == 0x201D):
            sentences = 0  # C4 drops the line
        else:
            sentences = max(1, sentences + ended)
    return i, mixed(kept) | uint64(1), chars, sentences


@njit(inline="always")
def _cue(first_w, w, cues_W, out):
    """Whether a phrase of C4's ends with this word of a line; counts lorem ipsum."""
    here = cues_W[w]
    if here == 0:
        return False
    before = cues_W[w - 1] if w > first_w else 0
    first = cues_W[w - 2] if w > first_w + 1 else 0
    out[LOREM_IPSUM] += here == IPSUM and before == LOREM
    if here == COOKIES:
        return before in (USE, USES) or (before == OF and first == USE)
    if here == USE:
        return before == OF and first == TERMS
    return here == JAVASCRIPT or (here == POLICY and before in (PRIVACY, COOKIE))
