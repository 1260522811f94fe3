"""The pretraining loader: batches of token windows as a pure function of (seed, step), without workers or state.

In: a Shards folder, perhaps others to mix in by weight. Out: (x, y) in the shards' own dtype, so that a GPU is sent two
bytes a token; a resume, on any number of ranks, reads what an undisturbed run would. The order of an epoch is a keyed
permutation (gpt/data.py), its rows are cut as gpt/packing.py says, several corpora take turns (gpt/mixture.py).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt.data import IGNORED, Batch, Stream, draw, key
from gpt.errors import UserError
from gpt.mixture import SHARES, Turns
from gpt.packing import Documents, Packing, Ring

# B batch, T time, R rows, S spans
STEPS_AHEAD, TOKENS_AHEAD = 64, 2**20
"""The rows of so many steps are read at once; more would not stay in the processor's cache."""


class Windows:
    """A Shards folder, and others in their shares, as training data; held-out windows are the folder's own."""

    def __init__(
        self, folder: Path, context: int, mix: Sequence[tuple[Path, float]] = (), pack_at: int | None = None
    ) -> None:
        """`pack_at` is the end of document by which documents are packed (bfd); None: windows across documents."""
        self.context, self.pack_at = context, pack_at
        self.val = _stream(folder, "val", 2, "raise shard.val_fraction")
        self.train, *others = (_stream(f, "train", context + 1, "lower model.context") for f, _ in [(folder, 0), *mix])
        self.corpora = [(stream, self._packed(stream)) for stream in (self.train, *others)]
        parts = [round(weight * SHARES) for _, weight in mix]
        self.turns = Turns([SHARES - sum(parts), *parts])
        self.ready: tuple[int, ...] = ()

    def _packed(self, stream: Stream) -> Packing:
        if self.pack_at is None:
            return Ring(stream, self.context)
        plan = Documents(stream, self.context, self.pack_at)
        about = f"{len(plan.start_P):,} documents and parts of long ones in {plan.rows:,} rows"
        print(f"packing: {about}, {plan.padding:.2%} padding", flush=True)
        return plan

    def batch(self, seed: int, step: int, rows: int, rank: int = 0, world: int = 1) -> Batch:
        """(x, y) of one step, of which each of `world` ranks gets its slice; packed, also each token's document.

        y is int64 with IGNORED in it where a row has padding. Rows of the steps to come are read together.
        """
        if rows % world:
            raise UserError(f"a batch of {rows} rows is no multiple of {world} ranks; try {-(-rows // world) * world}")
        ahead, mine = max(1, min(STEPS_AHEAD, TOKENS_AHEAD // (rows * self.context))), rows // world
        chunk, turn = divmod(step, ahead)
        if self.ready != (asked := (seed, rows, rank, world, chunk)):
            steps = np.arange(chunk * ahead, (chunk + 1) * ahead)
            self._read(seed, (steps[:, None] * rows + rank * mine + np.arange(mine)).ravel())
            self.ready, self.short = asked, set((np.flatnonzero(self.length_R < self.context) // mine).tolist())
        at = slice(turn * mine, (turn + 1) * mine)
        x_BT, y_BT = self.ids_R2T[at, 0], self.ids_R2T[at, 1]
        if turn in self.short:
            real_BT = np.arange(self.context) < self.length_R[at, None]
            y_BT = np.where(real_BT, y_BT.astype(np.int64), IGNORED)
        return (x_BT, y_BT) if self.pack_at is None else (x_BT, y_BT, self.document_RT[at])

    def _read(self, seed: int, number_R: np.ndarray) -> None:
        """The rows of these numbers of the endless sequence. New arrays: what was handed out stays as it is."""
        shape = len(number_R), 2, self.context
        self.ids_R2T, self.length_R = np.empty(shape, self.train.dtype), np.zeros(shape[0], np.int64)
        marks_RT = None if self.pack_at is None else np.zeros((shape[0], self.context + 1), np.uint16)
        which_R, nth_R = self.turns.of(number_R)
        for n, (stream, packing) in enumerate(self.corpora):
            mine, own = np.flatnonzero(which_R == n), key(seed, n, "corpus") if n else seed
            row_S, start_S, length_S = packing.spans(own, *draw(own, nth_R[mine], packing.rows))
            self.length_R[mine] = np.bincount(row_S, length_S, len(mine))
            self.ids_R2T[mine[self.length_R[mine] < self.context]] = 0
            at_S = stream.fill(self.ids_R2T, mine[row_S], start_S, length_S)
            if marks_RT is not None:
                marks_RT[mine[row_S], at_S] = 1
        if marks_RT is not None:
            marks_RT[np.arange(len(marks_RT)), self.length_R] = 1  # padding is a document of its own
            self.document_RT = np.cumsum(marks_RT[:, :-1], 1, np.int32)

    def held_out(self, count: int) -> Batch:
        """The first `count` held-out windows in stream order; fewer where the stream ends, a short one at least."""
        length = min(self.context, len(self.val) - 1)
        starts = range(0, len(self.val) - length, length)[:count]
        ids_BT = np.stack([self.val.read(start, start + length + 1) for start in starts])
        return ids_BT[:, :-1], ids_BT[:, 1:]


def _stream(folder: Path, split: str, least: int, way_out: str) -> Stream:
    stream = Stream(sorted(folder.glob(f"{split}-*.bin")))
    if len(stream) < least:
        what = f"the {split} split of {folder} has {len(stream)} tokens but needs {least}"
        raise UserError(f"{what}; add text or {way_out}")
    return stream
