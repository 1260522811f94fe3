"""MinHash signatures over word n-grams, bit for bit those of datasketch 2 (`affine32`), vectorised with numpy.

In: texts and datasketch's permutations. Out: a signature a document, and a digest of the text but for case and blanks.
"""

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tasks.text.words import words

# D documents, K permutations, S shingles
GOLD, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD)
EMPTY = np.uint32(0xFFFFFFFF)
"""Every value of the signature of a document without words; it is like no other."""
BLOCK = 4_096  # shingles at a time: 2 MB of products at 128 permutations, whatever the document's length


def sign(permutations_2K: np.ndarray, ngram: int, table: pa.Table) -> tuple[list[str], np.ndarray]:
    """(exact digests, signatures_DK uint32) of the rows of a table with a `text` column."""
    texts = table["text"].to_pylist()
    return [exact(text) for text in texts], np.stack([signature(permutations_2K, shingles(t, ngram)) for t in texts])


def exact(text: str) -> str:
    """The same for texts that differ in case and blanks only; 128 bits in hex."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:32]


def shingles(text: str, ngram: int) -> np.ndarray:
    """uint32 hashes of the word n-grams; of all words together where there are fewer than n."""
    hashes = np.array([zlib.crc32(word.encode()) for word in words(text)], np.uint64)
    n = min(ngram, len(hashes))
    rolled = np.zeros(len(hashes) - n + 1 if n else 0, np.uint64)
    for place in range(n):
        rolled = rolled * GOLD + hashes[place : len(hashes) - n + 1 + place]
    rolled = (rolled ^ (rolled >> np.uint64(33))) * MIX
    return (rolled >> np.uint64(32)).astype(np.uint32)


def signature(permutations_2K: np.ndarray, shingles_S: np.ndarray) -> np.ndarray:
    """The least of each permutation a * fmix32(h) + b mod 2^32 over the shingles."""
    a_K1, b_K1 = permutations_2K[:, :, None]
    mixed_S, least_K = _fmix32(shingles_S), np.full(len(a_K1), EMPTY)
    for start in range(0, len(mixed_S), BLOCK):
        least_K = np.minimum(least_K, (a_K1 * mixed_S[start : start + BLOCK] + b_K1).min(axis=1))
    return least_K


def _fmix32(hashes: np.ndarray) -> np.ndarray:
    """The finalizer of MurmurHash3 (public domain), datasketch's pre-mix."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))
