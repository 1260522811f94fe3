"""The pretraining loader: batches of token windows as a pure function of (seed, step), without workers or state.

In: a Shards folder, perhaps others to mix in by weight. Out: T + 1 tokens a row in the shards' own dtype, so that a GPU
is sent two bytes a token; a resume, on any number of ranks, reads what an undisturbed run would. An epoch's order is a
keyed permutation (gpt/data.py), its rows are cut by gpt/packing.py, several corpora take turns (gpt/mixture.py).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt.data import IGNORED, Batch, Stream, draw, key
from gpt.errors import UserError
from gpt.mixture import SHARES, Turns
from gpt.packing import Documents, Packing, Ring

# B batch, T time, R rows, S spans
STEPS_AHEAD, TOKENS_AHEAD = 1024, 2**21
"""As many steps are read at once, 128 of 16 x 1,024 tokens: 4 MB, which a processor's cache holds."""


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
        self.ready, self.ahead = (), ()

    def _packed(self, stream: Stream) -> Packing:
        if self.pack_at is None:
            return Ring(stream, self.context)
        plan = Documents(stream, self.context, self.pack_at)
        about = f"{len(plan.start_P):,} documents and parts of long ones in {plan.rows:,} rows"
        print(f"packing: {about}, {plan.padding:.2%} padding", flush=True)
        return plan

    def batch(self, seed: int, step: int, rows: int, rank: int = 0, world: int = 1) -> Batch:
        """One step, of which each of `world` ranks gets its slice; the rows of the steps to come are read together.

        As T + 1 tokens a row; packed, or where a row has padding, as x and y, then int64 with IGNORED in it.
        """
        if rows % world:
            raise UserError(f"a batch of {rows} rows is no multiple of {world} ranks; try {-(-rows // world) * world}")
        ahead, mine = max(1, min(STEPS_AHEAD, TOKENS_AHEAD // (rows * self.context))), rows // world
        chunk, turn = divmod(step, ahead)
        if self.ready != (asked := (seed, rows, rank, world, chunk)):
            steps = np.arange(chunk * ahead, (chunk + 1) * ahead)
            self.ahead = ()  # its memory is used again, unless a batch of it still is
            self.ahead = self._read(seed, (steps[:, None] * rows + rank * mine + np.arange(mine)).ravel())
            self.ready, self.short = asked, set((np.flatnonzero(self.length_R < self.context) // mine).tolist())
        at = slice(turn * mine, (turn + 1) * mine)
        batch = tuple(part_RT[at] for part_RT in self.ahead)
        if turn not in self.short:
            return batch
        x_BT, y_BT, *document_BT = batch if len(batch) > 1 else (batch[0][:, :-1], batch[0][:, 1:])
        real_BT = np.arange(self.context) < self.length_R[at, None]
        return x_BT, np.where(real_BT, y_BT.astype(np.int64), IGNORED), *document_BT

    def _read(self, seed: int, number_R: np.ndarray) -> Batch:
        """The rows of these numbers of the endless sequence, whatever their length; notes the lengths."""
        packed, rows = self.pack_at is not None, len(number_R)
        self.length_R = np.zeros(rows, np.int64)
        dtype = np.result_type(*(stream.dtype for stream, _ in self.corpora))
        ids_RT = np.empty((rows, self.context + (not packed)), dtype)
        y_RT = np.empty_like(ids_RT) if packed else None
        marks_RT = np.zeros((rows, self.context + 1), np.uint16) if packed else None
        which_R, nth_R = self.turns.of(number_R)
        for n, (stream, packing) in enumerate(self.corpora):
            mine, own = np.flatnonzero(which_R == n), key(seed, n, "corpus") if n else seed
            row_S, start_S, length_S = packing.spans(own, *draw(own, nth_R[mine], packing.rows))
            self.length_R[mine] = np.bincount(row_S, length_S, len(mine))
            ids_RT[mine[self.length_R[mine] < self.context]] = 0
            if y_RT is None or marks_RT is None:
                stream.fill(ids_RT, mine[row_S], start_S, length_S + 1)
            else:
                at_S = stream.fill(ids_RT, mine[row_S], start_S, length_S)
                stream.fill(y_RT, mine[row_S], start_S + 1, length_S)
                marks_RT[mine[row_S], at_S] = 1
        if y_RT is None or marks_RT is None:
            return (ids_RT,)
        marks_RT[np.arange(rows), self.length_R] = 1  # padding is a document of its own
        return ids_RT, y_RT, np.cumsum(marks_RT[:, :-1], 1, np.uint16)

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
