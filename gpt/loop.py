"""The training loop behind gpt/train.py: one path for pretraining and fine-tuning, resumable at every step.

In: the run (see gpt/train.py). Out: checkpoints, a journal in `logs/metrics.jsonl`, and the finished Checkpoint in `out`.
A step is a pure function of weights, optimiser, torch's RNG and the step's number. Evaluation and samples have no part
in it, so after a kill the same losses come again, to the last bit on a CPU.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt import checkpoint, data
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError
from gpt.generate import generate, pick_device
from gpt.journal import Journal
from gpt.model import GPT
from gpt.optim import adamw, learning_rate
from gpt.tokenizer import Tokenizer

# B batch, T time, V vocabulary, N targets


@dataclass(frozen=True)
class Task:
    """What to train on: the batch of each step, held-out rows, and a prompt for samples."""

    batch: Callable[[int], data.Batch]
    held_out: data.Batch
    prompt: list[int]


def train(run: dict[str, Any], stop: Event) -> bool:
    """Train until the last step, or until `stop`; True when finished. UserError says what the user can mend."""
    out, config = Path(run["out"]), TrainConfig(**run["train"])
    checkpoints, device = out / "checkpoints", pick_device(run["device"])
    if not (out / "state.json").exists():
        torch.set_num_threads(run["threads"])
        torch.manual_seed(config.seed)
        tokenizer = Tokenizer.load(Path(run["tokenizer"]))
        state = _first_state(run, tokenizer)
        model = _model(run).to(device)
        optimizer = adamw(model, config)
        if found := checkpoint.newest(checkpoints):
            state = _resumed(checkpoint.restore(found, model, optimizer), state)
        _note_numerics(out / "logs" / "numerics.json", run, device, resumed=state["step"] > 0)
        task = _task(run, config, model.config.context, tokenizer)
        if not Loop(run, config, model, optimizer, tokenizer, task, state).run(stop):
            return False
        checkpoint.publish(checkpoints / f"step-{config.steps:08d}", Path(run["tokenizer"]), out)
    shutil.rmtree(checkpoints, ignore_errors=True)
    print("finished", flush=True)
    return True


def _first_state(run: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The state at step 0, with what a resume must find unchanged. All parts must speak one tokenizer."""
    facts = (Path(run["data"]) / {"pretrain": "shards.json", "sft": "chats.json"}[run["task"]]).read_bytes()
    parent = checkpoint.read_state(Path(run["init"])) if run["init"] else {"tokenizer": tokenizer.digest, "parents": []}
    for what, digest in (("data", json.loads(facts)["tokenizer"]), ("init", parent["tokenizer"])):
        if digest != tokenizer.digest:
            raise UserError(
                f"{run[what]} was made with tokenizer {digest[:12]}, but this run uses {tokenizer.digest[:12]}; "
                "make it with this tokenizer or train with that one"
            )
    parents = [*parent["parents"], *([{key: parent[key] for key in ("task", "step", "tokens")}] if run["init"] else [])]
    same = {"task": run["task"], "tokenizer": tokenizer.digest, "train": run["train"], "parents": parents}
    return same | {"step": 0, "tokens": 0, "data": hashlib.sha256(facts).hexdigest()}


def _resumed(saved: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    for key in fresh.keys() - {"step", "tokens"}:
        if saved[key] != fresh[key]:
            raise UserError(f"the checkpoints in this folder come from another {key}; give the run a new folder")
    return saved


def _model(run: dict[str, Any]) -> GPT:
    if run["init"]:
        return checkpoint.load_model(Path(run["init"]))
    return GPT(ModelConfig(**run["model"]), run["vocab_size"])


def _note_numerics(path: Path, run: dict[str, Any], device: str, resumed: bool) -> None:
    """Remember what decides the last bits besides the config; a resume under other numerics says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    now = {"device": device, "threads": run["threads"], "torch": torch.__version__}
    before = json.loads(path.read_text()) if resumed else now
    if now != before:
        print(f"resume under other numerics: not bit-exact ({before} before, {now} now)", flush=True)
    path.write_text(json.dumps(now))


def _task(run: dict[str, Any], config: TrainConfig, context: int, tokenizer: Tokenizer) -> Task:
    folder = Path(run["data"])
    if run["task"] == "sft":
        return _conversations(data.Conversations(folder, context), config)
    streams = {split: data.Stream(sorted(folder.glob(f"{split}-*.bin"))) for split in ("train", "val")}
    for split, least in (("train", context + 1), ("val", 2)):
        if len(streams[split]) < least:
            raise UserError(
                f"the {split} split has {len(streams[split])} tokens, fewer than {least}; "
                "add text, or lower model.context"
            )
    held_out = data.first(streams["val"], config.eval_windows, context)
    return Task(
        lambda step: data.batch(streams["train"], config.seed, step, config.batch, context), held_out, [tokenizer.eot]
    )


def _conversations(chats: data.Conversations, config: TrainConfig) -> Task:
    if chats.unlabelled:
        print(f"{chats.unlabelled} conversations have no assistant token within the context: left out", flush=True)
    for name, rows in (("training", chats.train), ("held-out", chats.held_out)):
        if not len(rows):
            raise UserError(f"no {name} conversation has an assistant token within the context; raise model.context")
    held_out = chats.rows(chats.held_out[: config.eval_windows])
    question = int(np.argmax(held_out[1][0] != data.IGNORED)) + 1  # up to the role token that opens the answer
    return Task(
        lambda step: chats.batch(config.seed, step, config.batch), held_out, held_out[0][0, :question].tolist()
    )


@dataclass
class Trainer:
    """What lives as long as the loop."""

    out: Path
    config: TrainConfig
    model: GPT
    optimizer: torch.optim.Optimizer
    tokenizer: Tokenizer
    task: Task
    state: dict[str, Any]

    def run(self, stop: Event) -> bool:
        """Steps until the last (True) or until `stop` (False); either way the last step made is in a checkpoint."""
        steps, saved = self.config.steps, self.state["step"]
        self.journal = Journal(self.out / "logs" / "metrics.jsonl", after_step=saved or -1)
        self.bytes_V = torch.from_numpy(self.tokenizer.bytes_per_token()).to(self.model.wte.weight.device)
        if saved == 0:
            self.journal.log(0, self.evaluate())
        self.began, self.first = self.shown, _ = self.mark, self.tokens = time.monotonic(), saved
