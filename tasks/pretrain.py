"""Train a base model on the token stream, from nothing or from an earlier model.

In: Shards, Tokenizer. Out: Checkpoint. Method: next-token prediction on windows that cross documents (gpt/loop.py);
with `init` the weights go on while optimiser and learning rate start anew, warm-up and all (Gupta et al. 2023).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt.config import ModelConfig
from gpt.errors import UserError
from tasks.artifacts import Checkpoint, Metrics, Shards, Tokenizer
from tasks.files import file_digest
from tasks.manifest import content_digest
from tasks.stage import stage
from tasks.store import folder_of
from tasks.trainer import Training, train

WHAT_COUNTS = ("config.json", "model.safetensors", "state.json")
"""The files of a checkpoint that a training from it depends on: model, weights, and what they have learned from."""


class Pretrain(Training):
    """A model and how to train it."""

    model: ModelConfig = ModelConfig()
    """Family and sizes; depth is the dial."""
    init: str | None = None
    """Go on from this checkpoint (pretrain:KEY) or folder, of the same model and tokenizer; null starts untrained."""

    def refs(self) -> dict[str, str]:
        """The model that this one goes on from."""
        return {"init": self.init} if self.init else {}

    def outside(self) -> dict[str, str]:
        """The content of the checkpoint that `init` names."""
        if not self.init:
            return {}
        folder = folder_of(self.init)
        if missing := [name for name in WHAT_COUNTS if not (folder / name).exists()]:
            what = f"pretrain.init={self.init} is no checkpoint of gptloom: it has no {missing[0]}"
            raise UserError(f"{what}; name a pretrain:KEY, or the folder of one")
        return {"init": content_digest({name: file_digest(folder / name) for name in WHAT_COUNTS})}


@stage(Checkpoint, version="1", trains=True)
def pretrain(out: Path, config: Pretrain, shards: Shards, tokenizer: Tokenizer) -> Metrics:
    """Train a base model to predict the next token; held-out bits per byte before and after."""
    vocab_size = json.loads((shards.path / "shards.json").read_text())["vocab_size"]
    model: dict[str, Any] = {"init": None, "model": asdict(config.model), "vocab_size": vocab_size}
    if config.init:
        model["init"] = str(_same_model(config.init, model["model"]))
    inputs = {"data": str(shards.path), "tokenizer": str(tokenizer.path)}
    return train(out, {"task": "pretrain", **inputs, **model, "train": config.settings()})


def _same_model(init: str, wanted: Mapping[str, Any]) -> Path:
    """The folder to go on from. Its tokenizer is compared where it is read (gpt/loop.py)."""
    found = json.loads((folder_of(init) / "config.json").read_text())["model"]
    for name in (name for name, value in wanted.items() if found.get(name) != value):
        what = f"pretrain.init={init} has {name}={found.get(name)}, pretrain.model has {name}={wanted[name]}"
        raise UserError(
            f"{what}; a model goes on as it is: give the same, leave init out, or refresh under another name"
        )
    return folder_of(init)
