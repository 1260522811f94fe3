"""What training reads: token shards as one stream, conversations and pairs as batches, and the order of samples.

In: llm.c shards (`train-*.bin`, `val-*.bin`; batches of them are in gpt/windows.py), a Chats or a Pairs folder. Out:
(x, y) arrays [B, T], y the token after each x, -100 where there is no loss: pure functions of (seed, step).
Format: llm.c's data files. Order: a keyed Feistel permutation (Black and Rogaway 2002) of the samples, one an epoch.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt.errors import UserError

# B batch, T time
Batch = tuple[np.ndarray, ...]
"""x and y, or both in one array of T + 1 tokens a row; of packed documents also each token's document in its row."""
FORMATS = {np.dtype(np.uint16): (20240520, 1), np.dtype(np.uint32): (20240801, 7)}  # dtype: magic and version
IGNORED = -100  # cross_entropy's ignore_index
MIX = tuple(
    (np.uint64(shift), np.uint64(factor)) for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
)
"""Splitmix64's finaliser (Steele 2014)."""


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write uint16 or uint32 tokens in llm.c's layout: 256 int32 words (magic, version, count), then the tokens."""
    header = np.zeros(256, np.int32)
    header[:3] = *FORMATS[tokens.dtype], len(tokens)
    path.write_bytes(header.tobytes() + tokens.tobytes())


def read_shard(path: Path) -> np.ndarray:
    """Map a shard's tokens; UserError when magic, version or size is not what llm.c's layout says."""
    header = np.fromfile(path, np.int32, 256)
    found = [dtype for dtype, kind in FORMATS.items() if kind == tuple(header[:2]) and len(header) == 256]
    if not found or path.stat().st_size != 1024 + found[0].itemsize * int(header[2]):
        raise UserError(f"{path} is no whole llm.c shard (magic, version or size differ); build it again")
    return np.asarray(np.memmap(path, found[0], "r", offset=1024)) if header[2] else np.zeros(0, found[0])


class Stream:
    """Shard files as one sequence of tokens."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.parts = [read_shard(path) for path in files]
        self.begins = np.cumsum([0, *map(len, self.parts)])
        self.dtype = np.result_type(np.uint16, *self.parts)

    def __len__(self) -> int:
        return int(self.begins[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as int64, across file borders."""
        low, high = np.searchsorted(self.begins, start, side="right") - 1, np.searchsorted(self.begins, stop)
        begun = zip(self.parts[low:high], self.begins[low:high], strict=False)
        return np.concatenate([np.zeros(0, np.int64), *(part[max(0, start - at) : stop - at] for part, at in begun)])

    def fill(self, ids_RT: np.ndarray, row_S: np.ndarray, start_S: np.ndarray, length_S: np.ndarray) -> np.ndarray:
        """Copy spans into rows, those of a row side by side; where in its row each begins. The stream is a ring here.

        Rows that are one span inside of one file are copied at once, through a view of the file as all its windows: a
        sixth of the time of slices one by one, and slices of a memmap, with their bookkeeping, cost 2.6 times as much.
        """
        time, before_S = ids_RT.shape[1], np.cumsum(length_S) - length_S
        at_S = before_S - before_S[np.searchsorted(row_S, row_S)]
        part_S = np.searchsorted(self.begins, start_S, "right") - 1
        from_S, room_S = start_S - self.begins[part_S], self.begins[part_S + 1] - start_S
        whole_S = (length_S == time) & (time <= room_S)
        for part in np.unique(part_S[whole_S]):
            here, tokens = np.flatnonzero(whole_S & (part_S == part)), self.parts[part]
            size = tokens.itemsize
            view = np.ndarray((len(tokens) - time + 1, time), tokens.dtype, tokens, 0, (size, size))
            ids_RT[row_S[here]] = view[from_S[here]]
        spans = (array[~whole_S].tolist() for array in (row_S, at_S, part_S, from_S, length_S, room_S))
        for row, at, part, start, length, room in zip(*spans, strict=True):
            tokens = self.parts[part][start : start + length] if length <= room else self._around(part, start, length)
            ids_RT[row, at : at + length] = tokens
        return at_S

    def _around(self, part: int, start: int, length: int) -> np.ndarray:
        """Tokens from a place in a part on, into the parts that follow, after the last one the first."""
        begin = int(self.begins[part]) + start
        tokens = self.read(begin, min(begin + length, len(self)))
        return np.append(tokens, self.read(0, length - len(tokens)))


class Conversations:
    """A Chats folder as training data: one conversation a row, cut to the context, loss on assistant tokens only."""

    def __init__(self, folder: Path, context: int) -> None:
        self.context = context
        files = [folder / f"{name}.npy" for name in ("ids", "mask", "offsets", "split")]
        self.ids, self.mask, offsets, split = (np.load(file, "r", allow_pickle=False) for file in files)
        self.spans = np.stack([offsets[:-1], np.minimum(offsets[1:], offsets[:-1] + context + 1)], axis=1).tolist()
        usable = self._usable(np.diff(offsets) <= context + 1)
        self.train, self.val = (np.flatnonzero(usable & (split == part)) for part in (0, 1))
        self.val = self._mixed(self.val)  # so that the first of them are of all kinds
        for name, rows in (("training", self.train), ("held-out", self.val)):
            if not len(rows):
                raise UserError(f"no {name} conversation has an answer within {context} tokens; raise model.context")
        if not usable.all():
            print(f"{(~usable).sum()} conversations have no answer within {context} tokens: left out", flush=True)

    def _usable(self, whole: np.ndarray) -> np.ndarray:
        """Which rows have something to learn; `whole` says which fit the context."""
        return np.array([self.mask[a + 1 : b].any() for a, b in self.spans], bool)

    def _mixed(self, rows: np.ndarray) -> np.ndarray:
        return rows[order(0, 0, len(rows), len(rows))[1]] if len(rows) else rows

    def batch(self, seed: int, step: int, rows: int, rank: int = 0, world: int = 1) -> Batch:
        """One training step, of which each of `world` ranks gets its slice; an epoch has each conversation once."""
        mine = slice(rank * (rows // world), (rank + 1) * (rows // world))
        return self.padded(self.train[order(seed, step, rows, len(self.train))[1][mine]])

    def held_out(self, count: int) -> Batch:
        """The first held-out conversations."""
        return self.padded(self.val[:count])

    def padded(self, chosen: np.ndarray) -> Batch:
        """Rows a little longer than the longest; what fills them up has no loss, and no real token looks at it."""
        spans = [self.spans[row] for row in chosen]
        shape = len(spans), rounded(max(b - a for a, b in spans) - 1, self.context)
        x_BT, y_BT = np.zeros(shape, np.int64), np.full(shape, IGNORED)
        for row, (a, b) in enumerate(spans):
            x_BT[row, : b - a - 1] = self.ids[a : b - 1]
            y_BT[row, : b - a - 1] = np.where(self.mask[a + 1 : b], self.ids[a + 1 : b].astype(np.int64), IGNORED)
        return x_BT, y_BT


class Pairs(Conversations):
    """A Pairs folder: rows 2i and 2i + 1 are the chosen and the rejected answer to one prompt; both fit the context."""

    def _usable(self, whole: np.ndarray) -> np.ndarray:
        return np.repeat(whole[::2] & whole[1::2], 2)

    def _mixed(self, rows: np.ndarray) -> np.ndarray:
        return both(super()._mixed(rows[::2])).reshape(2, -1).T.ravel()

    def rows(self, seed: int, step: int, pairs: int) -> np.ndarray:
        """Row numbers of one step's pairs: all chosen ones, then the rejected ones in the same order."""
        return both(self.train[::2][order(seed, step, pairs, len(self.train) // 2)[1]])


def rounded(time: int, context: int) -> int:
    """The next multiple of 32 that the context holds: of few sizes the allocator needs half of 1.2 GB."""
    return min(context, -(-time // 32) * 32)


def both(chosen: np.ndarray) -> np.ndarray:
    """The rows of some chosen answers, then those of their rejected ones."""
    return np.concatenate([chosen, chosen + 1])


def order(seed: int, step: int, batch: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and sample number of each row of a step: every `samples` rows go through all samples once."""
    return draw(seed, np.arange(step * batch, (step + 1) * batch), samples)


def draw(seed: int, number_R: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and sample number of some rows of the endless sequence in which each epoch has all samples once."""
    epoch_R, place_R = np.divmod(number_R, samples)
    for epoch in np.unique(epoch_R):
        here = epoch_R == epoch
        place_R[here] = permute(place_R[here], samples, key(seed, epoch, "order"))
    return epoch_R, place_R


def permute(places: np.ndarray, size: int, key: int, rounds: int = 4) -> np.ndarray:
    """A keyed bijection on [0, size): a Feistel network, walked again from each result that lies outside."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = [np.uint64((key + turn * 0x9E3779B97F4A7C15) % 2**64) for turn in range(rounds)]
    result = _walk(places.astype(np.uint64), half, keys)
    todo = np.flatnonzero(result >= size)
    while len(todo):
        result[todo] = there = _walk(result[todo], half, keys)
        todo = todo[there >= size]
    return result.astype(np.int64)


def _walk(places: np.ndarray, half: np.uint64, keys: list[np.uint64]) -> np.ndarray:
    """One pass through the network, in place where it can be: half of the time."""
    low = np.uint64((1 << int(half)) - 1)
    left, right = places >> half, places & low
    for turn in keys:
        x = right + turn
        for shift, factor in MIX:
            x ^= x >> shift
            x *= factor
        x ^= x >> np.uint64(31)
        x &= low
        x ^= left
        left, right = right, x
    left <<= half
    left |= right
    return left


def key(seed: int, number: int, use: str) -> int:
    """64 random bits that depend on these alone."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{number}/{use}".encode(), digest_size=8).digest(), "little")
