"""Which documents hold pieces of evaluation texts: hashes of their 13-grams, looked up while a document is counted.

In: files of evaluation texts. Out: a table of hashes, which workers map into memory; `within`, a numba kernel.
Method: GPT-3's decontamination (Brown et al. 2020, appendix C): a document with a 13-gram of a test goes.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import uint64

from tasks.text.compiler import njit
from tasks.text.scan import GOLD, KINDS, lowered, mixed, room, words

# W words of the longest document, S slots of the table (a power of two)
NGRAM = 13
BATCH = 4_096
POWER = np.uint64(pow(int(GOLD), NGRAM, 1 << 64))


def texts_of(path: Path) -> Iterator[str]:
    """The evaluation texts in a file: every string in a parquet or JSONL(.gz/.zst) file, a text's paragraphs."""
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from _strings(batch.to_pylist())
        return
    with pa.input_stream(path, compression="detect") as stream:
        text = stream.read().decode()
    if ".json" in path.name:
        for line in [text] if path.suffix == ".json" else filter(str.strip, text.split("\n")):
            yield from _strings(json.loads(line))
    else:
        yield from text.split("\n\n")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Sequence | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def table(texts: Iterable[str]) -> np.ndarray:
    """The open hash table (S) uint64 of their 13-grams; texts of fewer words have none. Empty where there are none."""
    found, batch = [np.zeros(0, np.uint64)], list[str]()
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            found.append(grams(batch))
            batch = []
    hashes = np.unique(np.concatenate([*found, grams(batch)]))
    slots = np.zeros(1 << max(6, (2 * len(hashes)).bit_length()), np.uint64) if len(hashes) else np.zeros(0, np.uint64)
    _fill(hashes, slots)
    return slots


def grams(batch: Sequence[str]) -> np.ndarray:
    """The hashes of the 13-grams of some texts, each once."""
    texts = lowered(pa.chunked_array([batch], pa.large_string()))
    scratch, out = room(texts), np.empty(len(texts.data) // 2 + 2, np.uint64)
    return np.unique(out[: _grams(texts.data, texts.ends_D1, KINDS, *scratch, out)])


@njit(inline="always")
def _slot(slots_S, h):
    mask = uint64(slots_S.shape[0] - 1)
    at = (h ^ (h >> uint64(32))) & mask
    while slots_S[at] != 0 and slots_S[at] != h:
        at = (at + uint64(1)) & mask
    return at


@njit(cache=True, nogil=True, boundscheck=False)
def _fill(hashes, slots_S):
    for h in hashes:
        slots_S[_slot(slots_S, h)] = h


@njit(cache=True, nogil=True, boundscheck=False)
def _grams(data, ends_D1, kinds, hashes_W, starts_W, chars_W, out):
    count = 0
    for d in range(ends_D1.shape[0] - 1):
        rolled = uint64(0)
        for w in range(words(data, ends_D1[d], ends_D1[d + 1], kinds, hashes_W, starts_W, chars_W)):
            rolled = _roll(rolled, hashes_W, w)
            if w >= NGRAM - 1:
                out[count] = mixed(rolled) | uint64(1)
                count += 1
    return count


@njit(inline="always")
def _roll(rolled, hashes_W, w):
    """The hash of the 13 words up to this one."""
    rolled = rolled * GOLD + hashes_W[w]
    return rolled - hashes_W[w - NGRAM] * POWER if w >= NGRAM else rolled


@njit(cache=True, nogil=True, boundscheck=False)
def within(hashes_W, n, slots_S):
    """How many of a document's 13-grams, place by place, are in the table."""
    rolled, count = uint64(0), 0
    for w in range(n):
        rolled = _roll(rolled, hashes_W, w)
        if w >= NGRAM - 1:
            h = mixed(rolled) | uint64(1)
            count += slots_S[_slot(slots_S, h)] == h
    return count
