"""How toxic each line is: a linear model over hashed words, word pairs and letter triples, and listed words beside it.

In: texts in lower case, a `Model` (tasks/toxicity.py trains it), `Phrases` made of word lists. Out: for each line its
score and the number of listed entries.
A line is what newlines part; a long one counts as its worst stretch of 64 words, so that length hides nothing.
Listed words flag nothing alone: they lower the score from which a line is flagged. Method: Weinberger et al. 2009.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numba import uint64
from safetensors.numpy import load_file, save_file

from gpt.errors import UserError
from tasks.text.compiler import njit
from tasks.text.logistic import PAD
from tasks.text.scan import (
    FNV,
    GOLD,
    KINDS,
    MIX,
    PRIME,
    SEPARATOR,
    SINGLE,
    WORD,
    Texts,
    character,
    hashed,
    kind,
    lowered,
    mixed,
    room,
    words,
)

# D documents, L lines, W words, N features, B buckets of the model, T places of the table of phrases
BITS, STRETCH, NEWLINE = 18, 64, 10
SHIFT, BLANK, TRIPLE = uint64(64 - BITS), uint64(32), uint64((1 << 63) - 1)
MISSING, PREFIX, ENTRY = 0, 1, 2
SILENT = -1e9
"""The score of a line without a word."""


class Model(NamedTuple):
    """What training found. Scores are log-odds: 0 is as likely toxic as not, on balanced data."""

    weights_B: np.ndarray
    """float32, of 16-bit precision: their sums in float64 are exact, in any order."""
    bias: float
    threshold: float
    """Score from which a line is flagged: the stated share of the clean sample's lines has it."""
    threshold_listed: float
    """Score from which a line with a listed word is flagged; ten times as many clean lines have it."""

    def save(self, folder: Path, facts: dict) -> None:
        """`model.safetensors` (512 KiB) and `model.json`, which holds `facts` too."""
        save_file({"weights": self.weights_B.astype(np.float16)}, folder / "model.safetensors")
        said = {"bias": self.bias, "threshold": self.threshold, "threshold_listed": self.threshold_listed}
        (folder / "model.json").write_text(json.dumps(said | facts, indent=1, ensure_ascii=False), encoding="utf-8")


def load(folder: Path) -> Model:
    """A model from the folder that `save` filled; UserError for any other."""
    try:
        weights = load_file(folder / "model.safetensors")["weights"]
        said = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        model = Model(weights.astype(np.float32), said["bias"], said["threshold"], said["threshold_listed"])
        assert weights.shape == (1 << BITS,), weights.shape
    except Exception as error:  # whatever a folder of other things can raise
        what = f"{folder} is no toxicity model ({type(error).__name__}: {error})"
        raise UserError(f"{what}; name a folder that `gptloom train-toxicity` wrote") from error
    return model


class Phrases(NamedTuple):
    """Listed words and phrases as a hash table: whole words only, so none hits for a part of a word (Scunthorpe)."""

    keys_T: np.ndarray
    """uint64: the folded hashes of an entry's first words."""
    states_T: np.ndarray
    """uint8: MISSING, PREFIX of an entry, or ENTRY."""


class Rating(NamedTuple):
    """What `rate` found in D documents of L lines."""

    scores_L: np.ndarray
    listed_L: np.ndarray
    """Listed entries in each line."""
    firsts_D1: np.ndarray
    """Document d has lines firsts[d] to firsts[d + 1], the last newline's empty line included."""

    def flagged(self, model: Model) -> np.ndarray:
        """Whether the model flags each line."""
        return self.scores_L >= np.where(self.listed_L > 0, model.threshold_listed, model.threshold)

    def per_document(self, values_L: np.ndarray, function: np.ufunc = np.add) -> np.ndarray:
        """The sum (or another reduction) over each document's lines."""
        return function.reduceat(values_L, self.firsts_D1[:-1]) if len(self.firsts_D1) > 1 else values_L[:0]


def phrases(entries: Iterable[str]) -> Phrases:
    """The table of listed entries; those without a word of two letters are left out (`s&m`, emoji)."""
    states = dict[int, int]()
    for row in _word_hashes(sorted(set(entries))):
        key = 0
        for word in row:
            key = (key ^ word) * int(PRIME) % 2**64
            states[key] = max(states.get(key, 0), PREFIX)
        states[key] = ENTRY
    size = 1 << (4 * len(states)).bit_length()
    keys, found = np.zeros(size, np.uint64), np.zeros(size, np.uint8)
    for key, state in states.items():
        place = key % size
        while found[place]:
            place = (place + 1) % size
        keys[place], found[place] = key, state
    return Phrases(keys, found)


def _word_hashes(entries: list[str]) -> list[list[int]]:
    if not entries:
        return []
    texts, rows = lowered(pa.chunked_array([entries])), list[list[int]]()
    hashes, starts, chars = room(texts)
    for begin, end in zip(texts.ends_D1[:-1], texts.ends_D1[1:], strict=True):
        count = words(texts.data, begin, end, KINDS, hashes, starts, chars)
        if chars[:count].max(initial=0) > 1:
            rows.append(hashes[:count].tolist())
    return rows


def rate(texts: Texts, model: Model, listed: Phrases) -> Rating:
    """Score every line of texts in lower case and count its listed entries: one pass, about 150 MB a CPU second."""
    ends, data = texts.ends_D1, texts.data
    newlines = np.flatnonzero(data[ends[0] : ends[-1]] == NEWLINE) + ends[0] if len(ends) > 1 else ends[:0]
    firsts = np.searchsorted(newlines, ends) + np.arange(len(ends))
    scores, counts = np.empty(firsts[-1], np.float64), np.empty(firsts[-1], np.int32)
    _rate(data, ends, KINDS, model.weights_B, model.bias, *listed, *_scratch(texts), scores, counts)
    return Rating(scores, counts, firsts)


def holding(texts: Texts, listed: Phrases) -> np.ndarray:
    """Whether each document may hold a listed entry, line ends overlooked: three times as fast as `rate`."""
    found_D = np.empty(len(texts.ends_D1) - 1, np.bool_)
    _hold(texts.data, texts.ends_D1, KINDS, *listed, *room(texts), found_D)
    return found_D


def hashed_lines(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """(ids_N, ends_D1): the features of texts that hold one line each, as uint32 buckets of the model."""
    sizes = 3 * np.diff(texts.ends_D1) + 4
    ids, ends = np.empty(sizes.sum(), np.uint32), np.zeros(len(sizes) + 1, np.int64)
    _hash(texts.data, texts.ends_D1, KINDS, ids, np.empty(texts.longest + 1, np.uint64), ends)
    return ids[: ends[-1]], ends


def _scratch(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Room for the features and the words of a stretch; a feature has at least a third of a byte."""
    return np.empty(3 * texts.longest + 4, np.uint32), np.empty(texts.longest + 1, np.uint64)


@njit(inline="always")
def _bucket(x):
    return (x * GOLD) >> SHIFT


@njit(inline="always")
def _close(h, before, ids_N, n):
    """Add a word and the pair that it makes with the word before; returns its hash."""
    word = mixed(h)
    ids_N[n] = _bucket(word)
    ids_N[n + 1] = _bucket((before * MIX) ^ word)
    return word


@njit(cache=True, nogil=True, boundscheck=False)
def features(data, begin, end, kinds, most, ids_N, words_W):
    """Fill in the features and the words of a stretch: up to a newline, the end or `most` words.

    Triples are of letters, blanks at both ends of a run. Returns how many features, how many words, where it stopped.
    """
    n, m, i, end, inside = 0, 0, uint64(begin), uint64(end), False
    triple, h, before = BLANK, FNV, uint64(0)
    while i < end:
        code, size = character(data, i)
        what = kind(kinds, code)
        if inside and what != WORD:
            before = _close(h, before, ids_N, n)
            words_W[m], h, n, m, inside = before, FNV, n + 2, m + 1, False
        if code == NEWLINE or (m == most and what != SEPARATOR):
            break
        stop = i + uint64(size)
        if what != SEPARATOR:
            triple = (triple << uint64(21) & TRIPLE) | uint64(code)
            ids_N[n] = _bucket(triple)
            h, n, inside = hashed(data, i, stop, h), n + 1, True
        elif triple != BLANK:
            ids_N[n] = _bucket(triple << uint64(21) & TRIPLE | BLANK)
            triple, n = BLANK, n + 1
        if what == SINGLE:
            before = _close(h, before, ids_N, n)
            words_W[m], h, n, m, inside = before, FNV, n + 2, m + 1, False
        i = stop
    if inside:
        words_W[m] = _close(h, before, ids_N, n)
        n, m = n + 2, m + 1
    if triple != BLANK:
        ids_N[n] = _bucket(triple << uint64(21) & TRIPLE | BLANK)
        n += 1
    return n, m, i


@njit(inline="always")
def _state(keys_T, states_T, key):
    place, last = key & uint64(len(keys_T) - 1), uint64(len(keys_T) - 1)
    while states_T[place] != MISSING and keys_T[place] != key:
        place = (place + uint64(1)) & last
    return states_T[place]


@njit(cache=True, nogil=True, boundscheck=False)
def _found(words_W, m, keys_T, states_T):
    """How many listed entries begin at words of a stretch."""
    count = 0
    for first in range(m):
        key = uint64(0)
        for w in range(first, m):
            key = (key ^ words_W[w]) * PRIME
            state = _state(keys_T, states_T, key)
            if state == MISSING:
                break
            count += state == ENTRY
    return count


@njit(cache=True, nogil=True, boundscheck=False)
def _rate(data, ends_D1, kinds, weights_B, bias, keys_T, states_T, ids_N, words_W, scores_L, listed_L):
    line = 0
    for d in range(len(ends_D1) - 1):
        i, end = uint64(ends_D1[d]), uint64(ends_D1[d + 1])
        scores_L[line], listed_L[line] = SILENT, 0
        while i < end:
            n, m, i = features(data, i, end, kinds, STRETCH, ids_N, words_W)
            if n:
                total = 0.0
                for f in range(n):
                    total += weights_B[ids_N[f]]
                scores_L[line] = max(scores_L[line], bias + total / np.sqrt(n + PAD))
                listed_L[line] += _found(words_W, m, keys_T, states_T)
            if i < end and data[i] == NEWLINE:
                i, line = i + uint64(1), line + 1
                scores_L[line], listed_L[line] = SILENT, 0
        line += 1


@njit(cache=True, nogil=True, boundscheck=False)
def _hold(data, ends_D1, kinds, keys_T, states_T, hashes_W, starts_W, chars_W, found_D):
    for d in range(len(ends_D1) - 1):
        m = words(data, ends_D1[d], ends_D1[d + 1], kinds, hashes_W, starts_W, chars_W)
        found_D[d] = _found(hashes_W, m, keys_T, states_T) > 0


@njit(cache=True, nogil=True, boundscheck=False)
def _hash(data, ends_D1, kinds, ids_N, words_W, ends_out_D1):
    n = 0
    for d in range(len(ends_D1) - 1):
        n += features(data, ends_D1[d], ends_D1[d + 1], kinds, 1 << 40, ids_N[n:], words_W)[0]
        ends_out_D1[d + 1] = n
