"""Training batches as pure functions of (seed, step): windows of token shards, or conversations.

In: llm.c shards (`train-*.bin`, `val-*.bin`) or a Chats folder. Out: (x, y) int64 arrays [B, T], y the token after each
x, -100 where there is no loss. No state: a resume at any step reads what an undisturbed run would.
Format: llm.c's data files. Order: a keyed Feistel permutation (Black and Rogaway 2002) of the samples, one an epoch.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt.errors import UserError

# B batch, T time
Batch = tuple[np.ndarray, np.ndarray]
FORMATS = {np.dtype(np.uint16): (20240520, 1), np.dtype(np.uint32): (20240801, 7)}  # dtype: magic and version
IGNORED = -100  # cross_entropy's ignore_index


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
        self.ends = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as int64, across file borders."""
        low, high = np.searchsorted(self.ends, (start, stop), side="right") - 1
        around = np.concatenate([*self.parts[low : high + 1], np.zeros(0, np.int64)]) if low != high else self.parts[low]
        return around[start - self.ends[low] : stop - self.ends[low]].astype(np.int64)
