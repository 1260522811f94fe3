"""Train a base model on the token stream, from nothing or from an earlier model.

In: Shards, Tokenizer. Out: Checkpoint. Method: next-token prediction (gpt/loop.py) on windows that cross documents, or
on packed documents, of one corpus or of several in their shares (gpt/windows.py); with `init` the weights go on while
optimiser and learning rate start anew, warm-up and all (Gupta et al. 2023).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gpt.config import ModelConfig, PretrainConfig
from gpt.errors import UserError
from gpt.mixture import SHARES
from tasks.artifacts import Checkpoint, Metrics, Shards, Tokenizer
from tasks.files import file_digest
from tasks.manifest import content_digest
from tasks.stage import stage
from tasks.store import folder_of
from tasks.trainer import Training, train

WHAT_COUNTS = ("config.json", "model.safetensors", "state.json")
"""The files of a checkpoint that a training from it depends on: model, weights, and what they have learned from."""


class Pretrain(Training, PretrainConfig):
    """A model and how to train it."""

    model: ModelConfig = ModelConfig()
    """Family and sizes; depth is the dial."""
    init: str | None = None
    """Go on from this checkpoint (pretrain:KEY) or folder, of the same model and tokenizer; null starts untrained."""

    mix: dict[str, float] = Field(default_factory=dict)
    """Other Shards (shard:KEY, or a folder) to the share of rows drawn from each; the stage's own take the rest."""
    packing: Literal["stream", "bfd"] = "stream"
    """stream: windows across documents. bfd: whole documents side by side, none sees another (best-fit decreasing)."""

    def model_post_init(self, _: Any) -> None:
        """Shares that can be kept exactly."""
        super().model_post_init(_)
        for name, share in self.mix.items():
            if not 0 < share < 1 or abs(share * SHARES - round(share * SHARES)) > 1e-6:
                rule = f"must lie between 0 and 1, in steps of 1/{SHARES}"
                raise UserError(f"pretrain.mix gives {name} {share}, which {rule}; try 0.1")
        if sum(self.mix.values()) > 1 - 1 / SHARES:
            what = f"the shares of pretrain.mix sum up to {sum(self.mix.values()):g}, which must be below 1"
            raise UserError(f"{what}: the stage's own shards take the rest; lower them")

    def refs(self) -> dict[str, str]:
        """The model that this one goes on from, and the shards that are mixed in."""
        return ({"init": self.init} if self.init else {}) | {f"mix {n + 1}": ref for n, ref in enumerate(self.mix)}

    def outside(self) -> dict[str, Any]:
        """The content of the checkpoint that `init` names, and the content and share of the shards in `mix`."""
        mixed = {"mix": {content: share for content, _, share in self.mixed()}} if self.mix else {}
        if not self.init:
            return mixed
        folder = folder_of(self.init)
        if missing := [name for name in WHAT_COUNTS if not (folder / name).exists()]:
            what = f"pretrain.init={self.init} is no checkpoint of gptloom: it has no {missing[0]}"
            raise UserError(f"{what}; name a pretrain:KEY, or the folder of one")
        return {**mixed, "init": content_digest({name: file_digest(folder / name) for name in WHAT_COUNTS})}

    def mixed(self) -> list[tuple[str, Path, float]]:
        """Content, folder and share of the shards in `mix`, in an order that hangs on their content alone."""
        found = {_trains(ref): (folder_of(ref), share) for ref, share in self.mix.items()}
        if len(found) < len(self.mix):
            raise UserError("two names in pretrain.mix have the same content; name it once, with the sum of shares")
        return [(content, *found[content]) for content in sorted(found)]


def _trains(ref: str) -> str:
    """The content of Shards that a training depends on: their tokens for training, and what they say of themselves."""
    folder = folder_of(ref)
    if not (folder / "shards.json").exists():
        raise UserError(f"pretrain.mix={ref} has no shards.json; name a shard:KEY, or the folder of one")
    files = [folder / "shards.json", *sorted(folder.glob("train-*.bin"))]
    return content_digest({file.name: file_digest(file) for file in files})


@stage(Checkpoint, version="3", trains=True)
def pretrain(out: Path, config: Pretrain, shards: Shards, tokenizer: Tokenizer) -> Metrics:
    """Train a base model to predict the next token; held-out bits per byte before and after."""
    vocab_size = json.loads((shards.path / "shards.json").read_text())["vocab_size"]
    model: dict[str, Any] = {"init": None, "model": asdict(config.model), "vocab_size": vocab_size}
    if config.init:
        model["init"] = str(_same_model(config.init, model["model"]))
    inputs: dict[str, Any] = {"data": str(shards.path), "tokenizer": str(tokenizer.path), "packing": config.packing}
    inputs["mix"] = [[str(folder), share] for _, folder, share in config.mixed()]
    fitted = PretrainConfig(**config.settings()).fitted(config.model, vocab_size)
    return train(out, {"task": "pretrain", **inputs, **model, "train": asdict(fitted)})


def _same_model(init: str, wanted: Mapping[str, Any]) -> Path:
    """The folder to go on from. Its tokenizer is compared where it is read (gpt/loop.py)."""
    found = json.loads((folder_of(init) / "config.json").read_text())["model"]
    for name in (name for name, value in wanted.items() if found.get(name) != value):
        what = f"pretrain.init={init} has {name}={found.get(name)}, pretrain.model has {name}={wanted[name]}"
        raise UserError(
            f"{what}; a model goes on as it is: give the same, leave init out, or refresh under another name"
        )
    return folder_of(init)
