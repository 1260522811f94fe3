"""Sorted runs: the index of near-duplicates on disk, built, merged and searched band by band, no bucket in memory.

In: sketches, a byte of each number of a signature, document by document. Out: runs (`keys.npy`, uint64, and `docs.npy`,
uint32, both (bands, documents), each band sorted by key, equal keys by arrival), and pairs of documents that share a
key. A band's key is its rows' bytes, mixed: eight rows are eight bytes, so nothing but the sketch is kept of a
document, and unlike documents collide as seldom as by a hash of 64 bits. Keys are as good as random, so they are sorted
by distribution: by their first bits, then by insertion.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import uint64

from tasks.text.compiler import njit
from tasks.text.scan import MIX

# D documents of a run, U distinct keys, B bands, K permutations
REPRESENTATIVES = 8
"""A bucket's first documents, with which its others are compared: pairs stay linear; 32 found nothing more."""
CHUNK, AT_ONCE, AT_LEAST = 1 << 16, 2, 1 << 20
"""Documents read at a time (16 MiB of signatures), and bands taken from them in one reading."""


class Run(NamedTuple):
    """Documents first, first + 1, ... of the corpus: a folder of sorted keys."""

    folder: Path
    first: int
    count: int

    def band(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(keys, ordinals from `first`) of one band, read from the disk where they are looked at."""
        keys, docs = (np.load(self.folder / f"{name}.npy", mmap_mode="r")[number] for name in ("keys", "docs"))
        return keys, docs


def write_run(folder: Path, signatures: Path, bands: int, rows: int) -> None:
    """The run of one file of signatures (D, K) uint8."""
    count = len(np.load(signatures, mmap_mode="r"))
    with BandFile(folder, bands, count) as file:
        for start in range(0, bands, AT_ONCE):
            for keys_D in _keys(signatures, count, rows, range(start, min(bands, start + AT_ONCE))):
                file.append(*ordered(keys_D))


def _keys(signatures: Path, count: int, rows: int, wanted: range) -> np.ndarray:
    """Keys (bands wanted, D) from one reading of the signatures, a chunk in memory at a time."""
    keys_BD = np.empty((len(wanted), count), np.uint64)
    for start in range(0, count, CHUNK):
        lows_DK = np.load(signatures, mmap_mode="r")[start : start + CHUNK]
        for keys_D, band in zip(keys_BD[:, start : start + CHUNK], wanted, strict=True):
            packed(np.ascontiguousarray(lows_DK[:, band * rows : (band + 1) * rows]), keys_D)
    return keys_BD


class BandFile:
    """`keys.npy` and `docs.npy`, written band after band."""

    def __init__(self, folder: Path, bands: int, count: int):
        self._files = [(folder / f"{name}.npy").open("wb") for name in ("keys", "docs")]
        for file, kind in zip(self._files, ("<u8", "<u4"), strict=True):
            header = {"descr": kind, "fortran_order": False, "shape": (bands, count)}
            np.lib.format.write_array_header_2_0(file, header)

    def append(self, keys_D: np.ndarray, docs_D: np.ndarray) -> None:
        """The next band."""
        for file, values in zip(self._files, (keys_D, docs_D), strict=True):
            file.write(np.ascontiguousarray(values).data)

    def __enter__(self) -> "BandFile":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()


def merged(runs: Sequence[Run], band: int) -> tuple[np.ndarray, np.ndarray]:
    """One band of neighbouring runs as of one run: sorted keys, ordinals from the first run's first document."""
    keys, docs = zip(*(run.band(band) for run in runs), strict=True)
    if len(runs) == 1:
        return keys[0], docs[0]
    ordinals = [part + np.uint32(run.first - runs[0].first) for part, run in zip(docs, runs, strict=True)]
    keys_D, order_D = ordered(np.concatenate(keys))
    return keys_D, np.concatenate(ordinals)[order_D]


def pairs(old: Sequence[Run], keys_D: np.ndarray, docs_D: np.ndarray, first: int, band: int) -> np.ndarray:
    """Pairs (later << 32 | earlier) of the documents of one band that share a key with a representative.

    In: runs of all documents before, and one band of a run whose ordinals count from `first`. Out: ordinals of it all.
    """
    followed_D = np.append(keys_D[1:] == keys_D[:-1], False)[: len(keys_D)]
    follows_D = np.append(False, followed_D[:-1])[: len(keys_D)]
    starts_U = np.flatnonzero(~follows_D if old else ~follows_D & followed_D)  # of most keys there is only one
    ends_U = np.flatnonzero(~followed_D if old else follows_D & ~followed_D) + 1
    indices = [run.band(band) for run in old]
    places = [np.searchsorted(keys, keys_D[starts_U]) for keys, _ in indices]
    known = [_holds(keys, at, keys_D[starts_U]) for (keys, _), at in zip(indices, places, strict=True)]
    shared = np.flatnonzero(np.any([ends_U - starts_U > 1, *known], axis=0))
    seen_UR, counts_U = np.zeros((len(shared), REPRESENTATIVES), np.uint32), np.zeros(len(shared), np.int64)
    for run, (keys, docs), at in zip(old, indices, places, strict=True):
        gather(keys, docs, np.uint32(run.first), keys_D[starts_U[shared]], at[shared], seen_UR, counts_U)
    return compare(docs_D, np.uint32(first), starts_U[shared], ends_U[shared], seen_UR, counts_U)


def _holds(keys_D: np.ndarray, places_U: np.ndarray, wanted_U: np.ndarray) -> np.ndarray:
    inside = places_U < len(keys_D)
    inside[inside] = keys_D[places_U[inside]] == wanted_U[inside]
    return inside


class Distinct:
    """Sorted distinct numbers, merged as they come: a pair shows up in up to all bands, too often to hold all."""

    def __init__(self) -> None:
        self._known, self._waiting = np.zeros(0, np.uint64), list[np.ndarray]()

    def add(self, numbers: np.ndarray) -> None:
        """Take in some more."""
        self._waiting.append(numbers)
        if sum(map(len, self._waiting)) >= max(len(self._known) // 2, AT_LEAST):
            self.all()

    def all(self) -> np.ndarray:
        """Those so far. Sorting in place: np.unique takes twice the memory."""
        joined = np.concatenate([self._known, *self._waiting])
        joined.sort()
        self._known, self._waiting = joined[np.append(True, joined[1:] != joined[:-1])[: len(joined)]], []
        return self._known


@njit(cache=True, nogil=True, boundscheck=False)
def packed(lows_DR, keys_D):
    """Low bytes (D, R) to keys (D): packed, from the ninth byte on hashed too, and mixed, which loses nothing."""
    for d in range(lows_DR.shape[0]):
        key = uint64(0)
        for r in range(lows_DR.shape[1]):
            if r and r % 8 == 0:
                key = (key ^ (key >> uint64(29))) * MIX
            key = (key << uint64(8) | key >> uint64(56)) ^ uint64(lows_DR[d, r])
        key *= MIX
        keys_D[d] = key ^ (key >> uint64(32))


@njit(cache=True, nogil=True, boundscheck=False)
def ordered(keys_D):
    """(keys in order, the place each had); equal keys keep their order."""
    count, bits = keys_D.shape[0], 1
    while 1 << bits < count and bits < 26:
        bits += 1
    shift = uint64(64 - bits)
    starts = np.zeros((1 << bits) + 1, np.int64)
    for d in range(count):
        starts[(keys_D[d] >> shift) + uint64(1)] += 1
    for b in range(1 << bits):
        starts[b + 1] += starts[b]
    sorted_D, places_D = np.empty(count, np.uint64), np.empty(count, np.uint32)
    for d in range(count):
        b = keys_D[d] >> shift
        sorted_D[starts[b]], places_D[starts[b]] = keys_D[d], d
        starts[b] += 1
    for d in range(1, count):
        key, place, at = sorted_D[d], places_D[d], d
        while at > 0 and sorted_D[at - 1] > key:
            sorted_D[at], places_D[at] = sorted_D[at - 1], places_D[at - 1]
            at -= 1
        sorted_D[at], places_D[at] = key, place
    return sorted_D, places_D


@njit(cache=True, nogil=True, boundscheck=False)
def gather(keys_D, docs_D, first, distinct_U, places_U, seen_UR, counts_U):
    """Add an old run's documents to the representatives of the keys, until each has its number."""
    for u in range(distinct_U.shape[0]):
        at = places_U[u]
        while at < keys_D.shape[0] and keys_D[at] == distinct_U[u] and counts_U[u] < seen_UR.shape[1]:
            seen_UR[u, counts_U[u]] = docs_D[at] + first
            counts_U[u] += 1
            at += 1


@njit(cache=True, nogil=True, boundscheck=False)
def compare(docs_D, first, starts_U, ends_U, seen_UR, counts_U):
    """Each document of a bucket with the representatives before it, which it joins while there is room."""
    total = 0
    for u in range(starts_U.shape[0]):
        have = counts_U[u]
        for _ in range(starts_U[u], ends_U[u]):
            total += have
            have = min(have + 1, seen_UR.shape[1])
    made, n = np.empty(total, np.uint64), 0
    for u in range(starts_U.shape[0]):
        have = counts_U[u]
        for at in range(starts_U[u], ends_U[u]):
            for r in range(have):
                made[n] = uint64(docs_D[at] + first) << uint64(32) | uint64(seen_UR[u, r])
                n += 1
            if have < seen_UR.shape[1]:
                seen_UR[u, have] = docs_D[at] + first
                have += 1
    return made


def rows_of(files: Iterable[tuple[Path, int, int]], wanted: np.ndarray) -> np.ndarray:
    """Signatures (len(wanted), K) of ascending ordinals; files are (signatures, first ordinal, documents)."""
    found = list[np.ndarray]()
    for path, first, count in files:
        low, high = np.searchsorted(wanted, (first, first + count))
        if low < high:
            found.append(_picked(path, wanted[low:high].astype(np.int64) - first))
    return np.concatenate(found) if found else np.zeros((0, 1), np.uint8)


def _picked(path: Path, rows: np.ndarray) -> np.ndarray:
    """Some rows of one file, chunk by chunk, so that no more of it is ever mapped."""
    cuts = np.flatnonzero(np.diff(rows // CHUNK)) + 1
    return np.concatenate([np.load(path, mmap_mode="r")[part] for part in np.split(rows, cuts)])


@njit(cache=True, nogil=True, boundscheck=False)
def estimate(rows_NK, a_P, b_P):
    """Estimated Jaccard similarity of pairs of rows: equal low bytes, less those that are equal by chance."""
    made, width = np.empty(a_P.shape[0], np.float32), rows_NK.shape[1]
    for p in range(a_P.shape[0]):
        equal = 0
        for k in range(width):
            equal += rows_NK[a_P[p], k] == rows_NK[b_P[p], k]
        made[p] = max(0.0, (equal / width - 1 / 256) / (1 - 1 / 256))
    return made


@njit(cache=True, nogil=True, boundscheck=False)
def greedy(later_P, earlier_P, estimates_P, stays_D, kept_D, scores_D):
    """Judge documents in order, pairs in that order: who is like one that stays goes, the most like of these is named.

    `stays_D` (a whole corpus's) changes in place; `kept_D` and `scores_D` are of its last documents.
    """
    p, first = 0, stays_D.shape[0] - kept_D.shape[0]
    while p < later_P.shape[0]:
        doc, best = later_P[p], np.float32(-1)
        while p < later_P.shape[0] and later_P[p] == doc:
            if stays_D[earlier_P[p]] and estimates_P[p] > best:
                best, kept_D[doc - first] = estimates_P[p], earlier_P[p]
            p += 1
        if best >= 0:
            stays_D[doc], scores_D[doc - first] = False, best


@njit(cache=True, nogil=True, boundscheck=False)
def components(later_P, earlier_P, estimates_P, stays_D, kept_D, scores_D):
    """Of all that hang together through pairs only the first stays; the others' score is that of their best pair."""
    for d in range(kept_D.shape[0]):
        kept_D[d] = d
    for p in range(later_P.shape[0]):
        a, b = root(kept_D, earlier_P[p]), root(kept_D, later_P[p])
        kept_D[max(a, b)] = min(a, b)
        for doc in (earlier_P[p], later_P[p]):
            scores_D[doc] = max(scores_D[doc], estimates_P[p])
    for d in range(kept_D.shape[0]):
        kept_D[d] = root(kept_D, d)
        stays_D[d] = kept_D[d] == d


@njit(inline="always")
def root(parents_D, d):
    """The first document of a component; paths are halved on the way."""
    while parents_D[d] != d:
        parents_D[d] = parents_D[parents_D[d]]
        d = parents_D[d]
    return d
