"""Which updates a training leaves out: those whose loss or gradient is no number, or stands far above the last ones.

In: each step's loss and gradient norm, on the device. Out: whether to skip it, on the device too, so nobody waits.
Method: skip what lies 6 deviations above the mean of the last 128 (OLMo 2, 2025). Skips in a row end in one rewind
(gpt/loop.py), since then it is the weights that are wrong, and then in an error.
"""

import torch
from torch import Tensor

WINDOW, SIGMAS, IN_A_ROW = 128, 6.0, 8
"""Steps that are looked back on, deviations that are too far, skips in a row that are too many."""


class Guard:
    """Part of a training's state: `tensors` is saved in its checkpoints."""

    def __init__(self, device: str, spikes: bool = True) -> None:
        """Without `spikes` only what is no number is skipped: of rewards, the rare steps that teach stand out too."""
        self.spikes = spikes
        self.seen_2W = torch.zeros(2, WINDOW, device=device, dtype=torch.float64)
        self.count, self.skipped, self.in_a_row = (torch.zeros((), device=device, dtype=torch.int64) for _ in range(3))

    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether this step is to be skipped, a bool. What is skipped does not count as seen."""
        now_2 = torch.stack([value.to(self.seen_2W) for value in (loss, norm)])
        far_2 = now_2 > self.seen_2W.mean(1) + SIGMAS * self.seen_2W.std(1)
        skip = ~now_2.isfinite().all() | (far_2.any() & (self.count >= WINDOW) & self.spikes)
        slot_21 = (self.count % WINDOW).expand(2, 1)
        self.seen_2W.scatter_(1, slot_21, torch.where(skip, self.seen_2W.gather(1, slot_21), now_2[:, None]))
        self.count += ~skip
        self.skipped += skip
        self.in_a_row.copy_((self.in_a_row + 1) * skip)
        return skip

    def tensors(self) -> dict[str, Tensor]:
        """What a resume needs to decide alike."""
        named = {"seen": self.seen_2W, "count": self.count, "skipped": self.skipped, "in_a_row": self.in_a_row}
        return {f"guard/{name}": value for name, value in named.items()}

    def stuck(self) -> bool:
        """Whether too many steps in a row were skipped; this waits for the device."""
        return int(self.in_a_row) >= IN_A_ROW
