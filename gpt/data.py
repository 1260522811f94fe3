"""Training batches as pure functions of (seed, step): from token shards for pretraining, from conversations for SFT.

In: llm.c shards (`train-*.bin`) or a Chats folder. Out: (x, y) int64 arrays, y the token after each x, -100 where there
is no loss. Nothing is remembered between steps, so a resume at any step reads what an undisturbed run would.
Format: llm.c's data files. Order: a keyed Feistel permutation (Black and Rogaway 2002) of the samples, one per epoch.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt.errors import UserError

# B batch, T time
Batch = tuple[np.ndarray, np.ndarray]
FORMATS = {np.dtype(np.uint16): (20240520, 1), np.dtype(np.uint32): (20240801, 7)}
IGNORED = -100  # cross_entropy's ignore_index


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write uint16 or uint32 tokens in llm.c's layout: 256 int32 words (magic, version, count), then the tokens."""
    header = np.zeros(256, np.int32)
    header[:3] = *FORMATS[tokens.dtype], len(tokens)
    path.write_bytes(header.tobytes() + tokens.tobytes())


def read_shard(path: Path) -> np.ndarray:
    """Map a shard's tokens; UserError when magic, version or size is not what llm.c's layout says."""
    header = np.fromfile(path, np.int32, 256)
    dtypes = [dtype for dtype, kind in FORMATS.items() if tuple(header[:2]) == kind]
    if not dtypes or path.stat().st_size != 1024 + dtypes[0].itemsize * int(header[2]):
        raise UserError(f"{path} is no whole llm.c shard (magic, version or size differ); build it again")
    return np.memmap(path, dtypes[0], "r", offset=1024) if header[2] else np.zeros(0, dtypes[0])


class Stream:
    """Shard files as one sequence of tokens."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.parts = [read_shard(path) for path in files]
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.parts else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as int64, across file borders."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        pieces = []
        for part, end in zip(self.parts[first:], self.ends[first:], strict=True):
            begin = int(end) - len(part)
            pieces.append(part[max(start, begin) - begin : stop - begin])
            if stop <= end:
                break
        return np.concatenate(pieces).astype(np.int64)


def batch(stream: Stream, seed: int, step: int, batch: int, context: int) -> Batch:
    """The windows of one step. An epoch has each window once; its grid of windows starts at its own phase.

    One window less than would fit leaves room for the phase, so up to 2 x context tokens sit out in each epoch.
    """
    room = len(stream) - 1
    windows = max(1, room // context - 1)
    epochs_B, order_B = order(seed, step, batch, windows)
    phases = {e: _key(seed, e, "phase") % (room - windows * context + 1) for e in set(epochs_B.tolist())}
    return _cut(
        stream, [phases[e] + i * context for e, i in zip(epochs_B.tolist(), order_B.tolist(), strict=True)], context
    )


def first(stream: Stream, count: int, context: int) -> Batch:
    """The first `count` windows in stream order (fewer when the stream ends), for evaluation; one short one at least."""
    length = min(context, len(stream) - 1)
    return _cut(stream, [i * length for i in range(min(count, (len(stream) - 1) // length))], length)


def _cut(stream: Stream, starts: list[int], context: int) -> Batch:
    ids = np.stack([stream.read(start, start + context + 1) for start in starts])
    return ids[:, :-1], ids[:, 1:]


class Conversations:
    """A Chats folder as rows of a batch: ids cut to the context, loss on assistant tokens only."""

    def __init__(self, folder: Path, context: int) -> None:
        self.ids, self.mask, offsets, split = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("ids", "mask", "offsets", "split")
        )
        self.spans = [
            (a, min(b, a + context + 1)) for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        ]
        labelled = np.array([self.mask[a + 1 : b].any() for a, b in self.spans], bool)
        self.train, self.held_out = (np.flatnonzero(labelled & (split == kind)) for kind in (0, 1))
        self.unlabelled = int((~labelled).sum())

    def batch(self, seed: int, step: int, batch: int) -> Batch:
        """The training conversations of one step, padded to the longest; an epoch has each once."""
        return self.rows(self.train[order(seed, step, batch, len(self.train))[1]])

    def rows(self, chosen: np.ndarray) -> Batch:
        """Conversations by number, padded at the right with token 0 that no loss and no real token sees."""
        spans = [self.spans[row] for row in chosen]
        shape = len(spans), max(b - a for a, b in spans) - 1
        x_BT, y_BT = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        for row, (a, b) in enumerate(spans):
            x_BT[row, : b - a - 1] = self.ids[a : b - 1]
            y_BT[row, : b - a - 1] = np.where(self.mask[a + 1 : b], self.ids[a + 1 : b].astype(np.int64), IGNORED)
        return x_BT, y_BT


def order(seed: int, step: int, batch: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and sample number of each row of a step: every `samples` rows go through all samples once."""
    row_B = np.arange(step * batch, (step + 1) * batch)
    epoch_B, place_B = row_B // samples, row_B % samples
    for epoch in np.unique(epoch_B).tolist():
        here = epoch_B == epoch
        place_B[here] = permute(place_B[here], samples, _key(seed, epoch, "order"))
    return epoch_B, place_B


def permute(places: np.ndarray, size: int, key: int, rounds: int = 4) -> np.ndarray:
    """A keyed bijection on [0, size): a Feistel network, walked again from each result that lies outside."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low, result = np.uint64((1 << half) - 1), places.astype(np.uint64)
    todo = np.arange(len(places))
    while len(todo):
        left, right = result[todo] >> np.uint64(half), result[todo] & low
        for turn in range(rounds):
            left, right = right, left ^ (_mix(right + np.uint64((key + turn * 0x9E3779B97F4A7C15) % 2**64)) & low)
        result[todo] = left << np.uint64(half) | right
        todo = todo[result[todo] >= size]
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:  # splitmix64's finaliser (Steele 2014)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(seed: int, epoch: int, use: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}/{use}".encode(), digest_size=8).digest(), "little")
