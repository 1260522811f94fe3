"""MinHash signatures over word n-grams, bit for bit those of datasketch 2 (`affine32`), by one numba kernel.

In: a text column, `permutations` as datasketch draws them. Out: per document its signature and a hash of its words.
Method: Broder 1997; shingle hashes roll over the scanner's word hashes, so an n-gram costs two multiplications; each
permutation runs over blocks of shingles, which the compiler turns into vector code: 256 of them cost a fifth of the
whole. A document of fewer words than an n-gram is one shingle; one without words is known by its bytes alone.
`MinHash(256, seed=1, scheme="affine32", hashvalues=row)` makes any row one of datasketch's.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numba import uint32, uint64

from tasks.text.compiler import njit
from tasks.text.scan import FNV, GOLD, KINDS, MIX, hashed, lowered, room, words

# D documents, K permutations, W words
BLOCK, LANES, SPREAD = 256, 32, np.uint32(0x9E3779B1)


class Signed(NamedTuple):
    """What dedup knows of D documents."""

    signatures_DK: np.ndarray
    """uint32: the least of each permutation over the shingles."""
    content_D: np.ndarray
    """uint64: hash of all words in their order; of the bytes where there is no word."""


def permutations(count: int, seed: int = 1) -> np.ndarray:
    """(2, count) uint32: a and b of h -> a * h + b mod 2^32, a odd, drawn as datasketch draws them."""
    draw = np.random.RandomState(seed)
    a_K = draw.randint(0, 1 << 31, count, np.uint32) * np.uint32(2) + np.uint32(1)
    return np.stack([a_K, draw.randint(0, 1 << 32, count, np.uint32)])


def bands(threshold: float, count: int, missed: float = 0.9) -> tuple[int, int]:
    """(bands, rows) that err least at a threshold, a missed pair weighing `missed` and a false one the rest.

    A pair of similarity s shares a key with probability 1 - (1 - s^rows)^bands; the two areas of error beside the
    threshold are what datasketch's MinHashLSH weighs too. Candidates are verified, so by default misses weigh more.
    """

    def error(bands: int, rows: int) -> float:
        shared = 1 - (1 - grid**rows) ** bands
        return float(np.where(grid < threshold, (1 - missed) * shared, missed * (1 - shared)).sum())

    grid = (np.arange(2_000) + 0.5) / 2_000
    return min(((b, r) for b in range(2, count + 1) for r in range(1, count // b + 1)), key=lambda pair: error(*pair))


def sign(column: pa.ChunkedArray, permutations_2K: np.ndarray, ngram: int) -> Signed:
    """Sign each text of a column over its n-grams of words."""
    texts, count = lowered(column), len(column)
    made = np.empty((count, permutations_2K.shape[1]), np.uint32), np.empty(count, np.uint64)
    _sign(texts.data, texts.ends_D1, *permutations_2K, ngram, KINDS, *room(texts), *made)
    return Signed(*made)


def sketch(signatures_DK: np.ndarray) -> np.ndarray:
    """A byte of each number of a signature, which is all that dedup keeps (b-bit minwise hashing, Li and Koenig 2010).

    Mixed first: the low byte of a * h + b knows but the low byte of h, so one in 256 of all documents of one shingle
    would be like any other of them.
    """
    return (signatures_DK * SPREAD >> np.uint32(24)).astype(np.uint8)


@njit(inline="always")
def fmix32(x):
    """MurmurHash3's finalizer, which datasketch puts before its permutations. numba widens products: cast each."""
    x = uint32((x ^ (x >> uint32(16))) * uint32(0x85EBCA6B))
    x = uint32((x ^ (x >> uint32(13))) * uint32(0xC2B2AE35))
    return uint32(x ^ (x >> uint32(16)))


@njit(inline="always")
def lower(block, fill, a_K, b_K, least_K):
    """Take each permutation's least over a block, filled up with its first shingle to whole vectors."""
    whole = (fill + LANES - 1) // LANES * LANES
    block[fill:whole] = block[0]
    for k in range(a_K.shape[0]):
        a, b, least = a_K[k], b_K[k], least_K[k]
        for q in range(whole):
            least = min(least, uint32(a * block[q] + b))
        least_K[k] = least


@njit(cache=True, nogil=True, boundscheck=False)
def _sign(data, ends_D1, a_K, b_K, ngram, kinds, hashes_W, starts_W, chars_W, signatures_DK, content_D):
    top = uint64(1)
    for _ in range(ngram):
        top *= GOLD
    block = np.empty(BLOCK, np.uint32)
    for doc in range(ends_D1.shape[0] - 1):
        least_K = signatures_DK[doc]
        least_K[:] = uint32(0xFFFFFFFF)
        count = words(data, ends_D1[doc], ends_D1[doc + 1], kinds, hashes_W, starts_W, chars_W)
        roll, same, fill = uint64(0), FNV, 0
        for w in range(count):
            same = (same ^ hashes_W[w]) * GOLD
            same ^= same >> uint64(31)
            roll = roll * GOLD + hashes_W[w]
            if w >= ngram:
                roll -= hashes_W[w - ngram] * top
            if w >= ngram - 1 or w == count - 1:
                x = (roll ^ (roll >> uint64(33))) * MIX
                block[fill] = fmix32(uint32((x ^ (x >> uint64(33))) >> uint64(32)))
                fill += 1
            if fill == BLOCK or w == count - 1:
                lower(block, fill, a_K, b_K, least_K)
                fill = 0
        if count == 0:
            same = hashed(data, uint64(ends_D1[doc]), uint64(ends_D1[doc + 1]), FNV)
            for k in range(least_K.shape[0]):
                least_K[k] = uint32((same * (uint64(k) * GOLD + MIX)) >> uint64(32))
        content_D[doc] = same
