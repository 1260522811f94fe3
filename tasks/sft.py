"""Fine-tune a base model on conversations: it learns the assistant's words and when to stop.

In: Checkpoint, Chats. Out: Checkpoint. Method: loss on assistant tokens and their end token only (gpt/loop.py).
"""

from pathlib import Path

from tasks.artifacts import Chats, Checkpoint, Metrics
from tasks.stage import stage
from tasks.trainer import Training, train


class Sft(Training):
    """How to fine-tune; the context is the model's."""

    steps: int = 300
    """Optimiser steps."""
    lr: float = 5e-4
    """Highest learning rate; lower than in pretraining, so that what was learned there stays."""
    weight_decay: float = 0.0
    """Decay of the matrices."""


@stage(Checkpoint, version="2", trains=True)
def sft(out: Path, config: Sft, base: Checkpoint, chats: Chats) -> Metrics:
    """Fine-tune on conversations; held-out bits per byte of the assistant's words before and after."""
    inputs = {"data": str(chats.path), "tokenizer": str(base.path / "tokenizer"), "init": str(base.path)}
    return train(out, {"task": "sft", **inputs, "train": config.settings()})
