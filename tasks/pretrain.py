"""Train a base model on the token stream, from nothing or from an earlier model.

In: Shards, Tokenizer. Out: Checkpoint. Method: next-token prediction (gpt/loop.py) on windows that cross documents, or
on packed documents, of one corpus or of several in their shares (gpt/windows.py); with `init` the weights, an earlier
model's or a released one's, go on while optimiser and learning rate start anew, warm-up and all (Gupta et al. 2023).
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gpt.config import ModelConfig, PretrainConfig
from gpt.errors import UserError
from gpt.hfconfig import config_in
from gpt.mixture import SHARES
from tasks.artifacts import Checkpoint, Metrics, Shards, Tokenizer
from tasks.files import file_digest
from tasks.manifest import content_digest
from tasks.stage import stage
from tasks.store import folder_of
from tasks.trainer import Training, train


class Pretrain(Training, PretrainConfig):
    """A model and how to train it."""

    model: ModelConfig = ModelConfig()
    """Family and sizes; depth is the dial. With init its sizes: leave them out, but for context and dropout."""
    init: str | None = None
    """Go on from this checkpoint (pretrain:KEY) or folder, ours or a released GPT-2's or Qwen3's, with its tokenizer,
    which the tokenizer stage takes when it is left at its default; null starts untrained."""

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
        """The content and sizes of the model that `init` names, and the content and share of the shards in `mix`."""
        mixed = {"mix": {content: share for content, _, share in self.mixed()}} if self.mix else {}
        if not self.init:
            return mixed
        init = content_digest({file.name: file_digest(file) for file in _counted(self.init)})
        return {**mixed, "init": init, "model": asdict(self.sizes())}

    def sizes(self) -> ModelConfig:
        """The model that is trained: as stated, or with `init` that one, in the context and dropout stated."""
        if not self.init:
            return self.model
        found, stated, unsaid = config_in(_counted(self.init)[0].parent)[0], self.model, ModelConfig()
        context = found.context if stated.context == unsaid.context else stated.context
        wanted = replace(found, context=context, dropout=stated.dropout)
        if stated == replace(unsaid, context=stated.context, dropout=stated.dropout):
            stated = wanted
        for name, value in asdict(replace(stated, context=context)).items():
            if value != (has := getattr(wanted, name)):
                what = f"pretrain.init={self.init} has {name}={has}, pretrain.model has {name}={value}"
                raise UserError(f"{what}; a model goes on as it is: leave its sizes out, or refresh under another name")
        if wanted.family == "gpt2" and context > found.context:
            what = f"pretrain.init={self.init} knows {found.context} positions, pretrain.model has context={context}"
            raise UserError(f"{what}; ask for as many at most")
        return wanted

    def mixed(self) -> list[tuple[str, Path, float]]:
        """Content, folder and share of the shards in `mix`, in an order that hangs on their content alone."""
        found = {_trains(ref): (folder_of(ref), share) for ref, share in self.mix.items()}
        if len(found) < len(self.mix):
            raise UserError("two names in pretrain.mix have the same content; name it once, with the sum of shares")
        return [(content, *found[content]) for content in sorted(found)]


def _counted(init: str) -> list[Path]:
    """The files that a training from a model depends on: sizes, weights, and what those have learned from, or ids."""
    folder = folder_of(init)
    released = (folder / "tokenizer.json").exists()  # a checkpoint has it one folder below
    needed = ["config.json", "model*.safetensors", "tokenizer.json" if released else "state.json"]
    found = {name: sorted(folder.glob(name)) for name in needed}
    if missing := [name for name in needed if not found[name]]:
        what = f"pretrain.init={init} is no model that can go on: it has no {missing[0]}"
        raise UserError(f"{what}; name a pretrain:KEY, or the folder of a checkpoint, of a GPT-2 or of a Qwen3")
    return [file for name in needed for file in found[name]]


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
    sizes, init = config.sizes(), str(folder_of(config.init)) if config.init else None
    model: dict[str, Any] = {"init": init, "model": asdict(sizes), "vocab_size": vocab_size}
    inputs: dict[str, Any] = {"data": str(shards.path), "tokenizer": str(tokenizer.path), "packing": config.packing}
    inputs["mix"] = [[str(folder), share] for _, folder, share in config.mixed()]
    fitted = PretrainConfig(**config.settings()).fitted(sizes, vocab_size)
    return train(out, {"task": "pretrain", **inputs, **model, "train": asdict(fitted)})
