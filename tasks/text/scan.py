"""The scanner under all text kernels: the words of a document, straight from Arrow's bytes, at hundreds of MB a second.

In: a text column. Out: `Texts`, its bytes in lower case (by Arrow, `İ` and `Σ` included) and where each document lies;
`words`, a numba kernel that other kernels call: each word's hash, where it begins, its length.
A word is a run of letters, digits, marks and `_` by Unicode's categories; kana and Han characters are words one by one.
Kernels release the GIL and are compiled once a machine. tests/tasks/text/twins.py says the same in plain, slow Python.
"""

import unicodedata
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import uint32, uint64

from tasks.text.compiler import njit

# D documents, W words of the longest document
SEPARATOR, WORD, SINGLE = 0, 1, 2
GOLD, FNV, PRIME, MIX = (
    np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xCBF29CE484222325, 0x100000001B3, 0xFF51AFD7ED558CCD)
)
ALONE = ((0x3040, 0x3100), (0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x40000))
"""Kana and Han, which no blanks part."""


def _kinds() -> np.ndarray:
    inside = [unicodedata.category(char)[0] in "LMN" for char in map(chr, range(0x20000))]
    kinds = np.array([*inside, SINGLE, SEPARATOR], np.uint8)
    kinds[ord("_")] = WORD
    for low, high in ALONE[:-1]:
        kinds[low:high] = SINGLE
    return kinds


KINDS = _kinds()
"""What each character is; the last two entries stand for planes 2 and 3, and for all planes above."""


class Texts(NamedTuple):
    """D documents back to back."""

    data: np.ndarray
    """UTF-8 bytes, uint8."""
    ends_D1: np.ndarray
    """int64: document d is data[ends[d]:ends[d + 1]]."""

    @property
    def longest(self) -> int:
        """Bytes of the longest document, which bounds its words."""
        return int(np.diff(self.ends_D1).max(initial=0))


def lowered(column: pa.ChunkedArray) -> Texts:
    """A column of strings in lower case. Not one byte longer is promised: `İ` becomes two characters."""
    return plain(pc.utf8_lower(column))  # ty: ignore[missing-attribute]


def plain(column: pa.ChunkedArray) -> Texts:
    """A column of strings as it is, without a copy of the text where it is one chunk."""
    chunks = column.cast(pa.large_string())
    alone = chunks.num_chunks == 1 and len(chunks) > 0  # combine_chunks copies even one chunk; none may have no ends
    array = chunks.chunk(0) if alone else chunks.combine_chunks()
    _, offsets, data = array.buffers()
    return Texts(_seen(data or b"", np.uint8), _seen(offsets, np.int64, len(array) + 1, 8 * array.offset))


def _seen(buffer: pa.Buffer | bytes, *how: Any) -> np.ndarray:
    """A buffer's numbers, never to be written: some buffers may be, and numba compiles each kernel for both kinds."""
    numbers = np.frombuffer(buffer, *how)
    numbers.flags.writeable = False
    return numbers


@njit(inline="always")
def character(data, i):
    """(code point, its bytes) at a place of valid UTF-8."""
    c = uint32(data[i])
    if c < 0x80:
        return c, 1
    if c < 0xE0:
        return (c & 31) << 6 | data[i + 1] & 63, 2
    if c < 0xF0:
        return (c & 15) << 12 | (data[i + 1] & 63) << 6 | data[i + 2] & 63, 3
    return (c & 7) << 18 | (data[i + 1] & 63) << 12 | (data[i + 2] & 63) << 6 | data[i + 3] & 63, 4


@njit(inline="always")
def kind(kinds, code):
    """SEPARATOR, WORD or SINGLE."""
    return kinds[code] if code < 0x20000 else kinds[0x20000 + (code >= 0x40000)]


@njit(inline="always")
def mixed(h):
    """A word's running hash with its bits spread."""
    h ^= h >> uint64(32)
    h *= MIX
    return h ^ (h >> uint64(29))


@njit(inline="always")
def hashed(data, i, stop, h):
    """A word's running hash (FNV-1a) after more of its bytes."""
    while i < stop:
        h = (h ^ uint64(data[i])) * PRIME
        i += uint64(1)
    return h


@njit(inline="always")
def heard(data, i, stop, h, code):
    """The running hash after one character; a final sigma counts as a sigma, which is what Arrow makes of a capital."""
    if code == 0x3C2:
        return ((h ^ uint64(0xCF)) * PRIME ^ uint64(0x83)) * PRIME
    return hashed(data, i, stop, h)


@njit(cache=True, nogil=True, boundscheck=False)
def words(data, begin, end, kinds, hashes_W, starts_W, chars_W):
    """Fill in each word's hash, first byte and characters; return how many there are.

    Places are unsigned, or numba looks at each whether it counts from the end, which takes 1.4 times as long.
    """
    n, i, end = 0, uint64(begin), uint64(end)
    while i < end:
        code, size = character(data, i)
        what, stop = kind(kinds, code), i + uint64(size)
        if what == SEPARATOR:
            i = stop
            continue
        h, chars, starts_W[n] = heard(data, i, stop, FNV, code), 1, i
        i = stop
        while what == WORD and i < end:
            c = data[i]
            if c < 0x80:  # apart from the rest: 447 MB a CPU second instead of 373
                if kinds[c] != WORD:
                    break
                h, chars, i = (h ^ uint64(c)) * PRIME, chars + 1, i + uint64(1)
                continue
            code, size = character(data, i)
            if kind(kinds, code) != WORD:
                break
            stop = i + uint64(size)
            h, chars, i = heard(data, i, stop, h, code), chars + 1, stop
        hashes_W[n], chars_W[n] = mixed(h), chars
        n += 1
    return n


def room(texts: Texts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scratch for `words`: hashes (uint64), starts (int64), characters (int32) of the longest document's words."""
    count = texts.longest // 2 + 2  # a word of one byte needs a separator; a kana or Han character has three
    return np.empty(count, np.uint64), np.empty(count, np.int64), np.empty(count, np.int32)


def word_hash(word: str) -> int:
    """The hash that `words` gives a word which is one word."""
    texts = lowered(pa.chunked_array([[word]]))
    hashes, starts, chars = room(texts)
    assert words(texts.data, 0, int(texts.ends_D1[1]), KINDS, hashes, starts, chars) == 1, f"{word!r} is not one word"
    return int(hashes[0])
