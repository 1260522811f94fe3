"""Learn preferences: the chosen answer becomes likelier than the rejected one, the model stays near where it was.

In: Checkpoint, Pairs. Out: Checkpoint. Method: DPO (Rafailov et al. 2023) with the chosen answers' own loss beside it
(Pang et al. 2024), against log-probabilities of the first model that are computed once (gpt/objectives.py).
"""

from pathlib import Path

from gpt.config import PreferConfig
from tasks.artifacts import Checkpoint, Metrics, Pairs
from tasks.stage import stage
from tasks.trainer import Training, train


class Prefer(Training, PreferConfig):
    """How to learn preferences; the context is the model's."""

    steps: int = 300
    """Optimiser steps."""
    batch: int = 16
    """Pairs per optimiser step."""
    lr: float = 3e-4
    """Highest learning rate; a tenth of pretraining's."""
    weight_decay: float = 0.0
    """Decay of the matrices."""


@stage(Checkpoint, version="2", trains=True)
def prefer(out: Path, config: Prefer, base: Checkpoint, pairs: Pairs) -> Metrics:
    """Learn from pairs of a chosen and a rejected answer; held-out pair accuracy against the model before."""
    inputs = {"data": str(pairs.path), "tokenizer": str(base.path / "tokenizer"), "init": str(base.path)}
    return train(out, {"task": "prefer", **inputs, "train": config.settings()})
