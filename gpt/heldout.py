"""Held-out windows and conversations, and what their targets cost a model: trainer and evaluation share this.

In: batches with IGNORED where nothing is scored. Out: nats a target, bits a byte. Method: targets that stand for no
bytes (special tokens) count as targets, not as text.
"""

import math
import time
from collections.abc import Iterator

import numpy as np
import torch

from gpt import dist
from gpt.data import IGNORED, Batch
from gpt.model import GPT

# B batch, T time, V vocabulary


class HeldOut:
    """Held-out windows or conversations and how many bytes each target stands for; the trainer evaluates by it too."""

    def __init__(self, batch: Batch, bytes_V: np.ndarray) -> None:
        self.x_BT, self.y_BT = batch
        self.real_BT = self.y_BT != IGNORED
        self.size_BT = bytes_V[self.y_BT * self.real_BT] * self.real_BT

    def measure(self, model: GPT, rows: int, what: str, silent_s: float = 0) -> list[tuple[str, float, int]]:
        """(measure, value, n) of a model that reads each row by itself, `rows` of them in a pass (see `batches`).

        Ranks take turns at the passes, which are those of one rank: so are the numbers, to the bit.
        """
        nats_BT = np.zeros(self.y_BT.shape)
        for number, at in enumerate(batches(what, len(self.y_BT), rows, silent_s)):
            if number % dist.world() == dist.rank():
                nats_BT[at] = nats(model, self.x_BT[at], self.y_BT[at])
        return self.scores(dist.summed(torch.from_numpy(nats_BT)).numpy())

    def scores(self, nats_BT: np.ndarray) -> list[tuple[str, float, int]]:
        """(measure, value, n): nats per target over all targets; bits per byte over those that stand for bytes."""
        count, size = int(self.real_BT.sum()), int(self.size_BT.sum())
        bits = nats_BT[self.size_BT > 0].sum() / math.log(2)
        return [("loss", nats_BT.sum() / count, count), ("bpb", bits / max(size, 1), size)]


@torch.inference_mode()
def nats(model: GPT, x_BT: np.ndarray, y_BT: np.ndarray) -> np.ndarray:
    """What each target costs the model: float64 [B, T], 0 where it is IGNORED."""
    x, y = (torch.from_numpy(ids_BT).to(model.wte.weight.device) for ids_BT in (x_BT, y_BT))
    return model.eval().costs(x, y).double().cpu().numpy()


def batches(what: str, count: int, size: int, silent_s: float = 0) -> Iterator[slice]:
    """Slices of `size`; after `silent_s` one is said aloud, then one every five seconds."""
    due = time.monotonic() + silent_s
    for at in range(0, count, size):
        if time.monotonic() >= due:
            print(f"{what} {at + 1:,} of {count:,}", flush=True)
            due = time.monotonic() + 5
        yield slice(at, at + size)
