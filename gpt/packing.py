"""How an epoch cuts a stream into rows of at most `context` targets: windows of a ring, or documents side by side.

In: a Stream, a context. Out: the number of rows, and each row's spans (start and length in the stream); a span of
length n has n tokens to read and the n tokens that follow them as targets, and each token is a target once an epoch.
Method: best-fit decreasing (Johnson 1973) in bulk; for language models Ding et al. 2024, here without truncation.
"""

from bisect import bisect_left, insort
from typing import Protocol

import numpy as np

from gpt.data import Stream, key

# R rows of a batch, P pieces of documents, S spans
Spans = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of each span its row (ascending, numbered as the places asked for), its start and its length."""


class Packing(Protocol):
    """What the loader asks of a way to cut."""

    rows: int

    def spans(self, seed: int, epoch_R: np.ndarray, place_R: np.ndarray) -> Spans:
        """The spans of an epoch's rows at these places."""
        ...


class Ring:
    """`stream`: the stream is a ring, cut from the epoch's own phase on; the last window is as short as what is left.

    So the grid moves between epochs, each of the N tokens is a target once in an epoch of ceil(N / context) windows,
    and at most one row an epoch has padding. Windows cross documents and files, and one the ring's seam: there the
    end of the last document is followed by the head of the first.
    """

    def __init__(self, stream: Stream, context: int) -> None:
        self.tokens, self.context, self.rows = len(stream), context, -(-len(stream) // context)

    def spans(self, seed: int, epoch_R: np.ndarray, place_R: np.ndarray) -> Spans:
        """One span a row, in the order of the places."""
        epochs, nth_R = np.unique(epoch_R, return_inverse=True)
        phases = np.array([key(seed, epoch, "phase") % self.tokens for epoch in epochs.tolist()], np.int64)
        begin_R = place_R * self.context
        start_R = (phases[nth_R] + begin_R) % self.tokens
        return np.arange(len(place_R)), start_R, np.minimum(self.context, self.tokens - begin_R)


class Documents:
    """`bfd`: rows of whole documents, cut only where one is longer than the context; the same rows in each epoch.

    A document lies between two `eot`, of which it reads the one before it and learns to say the one after it. All
    tokens but the stream's first are targets.
    """

    def __init__(self, stream: Stream, context: int, eot: int) -> None:
        start_P, length_P = pieces(borders(stream, eot), context)
        row_P = bfd(length_P, context)
        order_P = np.argsort(row_P, kind="stable")
        self.start_P, self.length_P = start_P[order_P], length_P[order_P]
        self.begins, self.rows = np.cumsum([0, *np.bincount(row_P)]), int(row_P.max()) + 1
        self.padding = 1 - int(length_P.sum()) / (self.rows * context)

    def spans(self, seed: int, epoch_R: np.ndarray, place_R: np.ndarray) -> Spans:
        """The spans of each row, in stream order."""
        count_R = self.begins[place_R + 1] - self.begins[place_R]
        row_S, before_R = np.repeat(np.arange(len(place_R)), count_R), np.cumsum(count_R) - count_R
        piece_S = np.arange(len(row_S)) + (self.begins[place_R] - before_R)[row_S]
        return row_S, self.start_P[piece_S], self.length_P[piece_S]


def borders(stream: Stream, eot: int) -> np.ndarray:
    """Where documents end: the first token, every `eot`, and the last token, which in a cut stream is none."""
    found, block = [np.zeros(1, np.int64)], 1 << 24
    for part, begin in zip(stream.parts, stream.begins.tolist(), strict=False):
        found += [np.flatnonzero(part[at : at + block] == eot) + begin + at for at in range(0, len(part), block)]
    return np.unique(np.concatenate([*found, [len(stream) - 1]]))


def pieces(border_D: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of what documents fall into, each at most `context` long: (start, start + length] is learned."""
    length_D = np.diff(border_D)
    count_D = -(-length_D // context)
    nth_P = np.arange(count_D.sum()) - np.repeat(np.cumsum(count_D) - count_D, count_D)
    return (
        np.repeat(border_D[:-1], count_D) + nth_P * context,
        np.minimum(np.repeat(length_D, count_D) - nth_P * context, context),
    )


def bfd(length_P: np.ndarray, room: int) -> np.ndarray:
    """The row of each piece: the longest first, each into the fullest row that has room for it, else into a new one.

    Pieces of one length go together: a row of the fullest that fit takes as many of them as it has room for, which
    is what one after the other would do.
    """
    row_P, rows, sizes, open_rows = np.empty(len(length_P), np.int64), 0, list[int](), dict[int, list[np.ndarray]]()
    order_P = np.argsort(-length_P, kind="stable")
    lengths, begins = np.unique(-length_P[order_P], return_index=True)
    for length, todo in zip((-lengths).tolist(), np.split(order_P, begins[1:]), strict=True):
        while len(todo):
            k = bisect_left(sizes, length)
            free = sizes[k] if k < len(sizes) else room
            each = free // length
            if k < len(sizes):
                rows_here = np.concatenate(open_rows.pop(sizes.pop(k)))
            else:
                rows_here = np.arange(rows, rows - (-len(todo) // each))
                rows += len(rows_here)
            now = min(len(todo), each * len(rows_here))
            row_P[todo[:now]] = np.repeat(rows_here, each)[:now]
            todo, (full, rest) = todo[now:], divmod(now, each)
            left = [(free - each * length, rows_here[:full]), (free - rest * length, rows_here[full : full + 1])]
            for size, some in (*left, (free, rows_here[full + 1 :])):
                if size and len(some):
                    if size not in open_rows:
                        insort(sizes, size)
                    open_rows.setdefault(size, []).append(some)
    return row_P
