"""Train a base model on the token stream.

In: Shards, Tokenizer. Out: Checkpoint. Method: next-token prediction on windows that cross documents (gpt/loop.py).
"""

import json
from dataclasses import asdict
from pathlib import Path

from gpt.config import ModelConfig
from tasks.artifacts import Checkpoint, Metrics, Shards, Tokenizer
from tasks.stage import stage
from tasks.trainer import Training, train


class Pretrain(Training):
    """A model and how to train it."""

    model: ModelConfig = ModelConfig()
    """Family and sizes; depth is the dial."""


@stage(Checkpoint, version="1", resumes=True)
def pretrain(out: Path, config: Pretrain, shards: Shards, tokenizer: Tokenizer) -> Metrics:
    """Train a base model to predict the next token; held-out bits per byte before and after."""
    vocab_size = json.loads((shards.path / "shards.json").read_text())["vocab_size"]
    model = {"init": None, "model": asdict(config.model), "vocab_size": vocab_size}
    inputs = {"data": str(shards.path), "tokenizer": str(tokenizer.path)}
    return train(out, {"task": "pretrain", **inputs, **model, "train": config.settings()})
