"""MinHash signatures over word n-grams, bit for bit those of datasketch 2 (`affine32`), vectorised with numpy.

In: texts and datasketch's permutations. Out: per document a row of its signature and of an exact digest.
"""

import hashlib
import zlib

import numpy as np

from tasks.corpus import Group
from tasks.text.words import words

# D documents, K permutations, S shingles; a row has K + 4 words of 32 bits
GOLD, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD)
BLOCK = 4_096  # shingles at a time: 2 MB of products at 128 permutations, whatever the document's length


def sign(permutations_2K: np.ndarray, ngram: int, group: Group) -> np.ndarray:
    """Rows (D, K + 4) uint32 of a row group's `text`: the signature, then 128 bits of the text but for case and blanks."""
    rows = []
    for text in group.table(["text"])["text"].to_pylist():
        exact = hashlib.sha256(" ".join(text.lower().split()).encode()).digest()[:16]
        signature_K = signature(permutations_2K, shingles(words(text) or [text], ngram))
        rows.append(np.concatenate([signature_K, np.frombuffer(exact, "<u4")]))
    return np.stack(rows)


def shingles(words: list[str], ngram: int) -> np.ndarray:
    """uint32 hashes of the n-grams of words; of all words together where there are fewer than n."""
    hashes = np.array([zlib.crc32(word.encode()) for word in words], np.uint64)
    count = max(1, len(hashes) - ngram + 1)
    rolled = np.zeros(count, np.uint64)
    for place in range(len(hashes) - count + 1):
        rolled = rolled * GOLD + hashes[place : place + count]
    return (((rolled ^ (rolled >> np.uint64(33))) * MIX) >> np.uint64(32)).astype(np.uint32)


def signature(permutations_2K: np.ndarray, hashes_S: np.ndarray) -> np.ndarray:
    """The least of each permutation a * h + b mod 2^32 over the hashes, which MurmurHash3's finalizer mixes first."""
    a_K1, b_K1 = permutations_2K[:, :, None]
    mixed_S = (hashes_S ^ (hashes_S >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed_S = (mixed_S ^ (mixed_S >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    mixed_S ^= mixed_S >> np.uint32(16)
    blocks = (mixed_S[start : start + BLOCK] for start in range(0, len(mixed_S), BLOCK))
    return np.min([(a_K1 * block + b_K1).min(axis=1) for block in blocks], axis=0)
