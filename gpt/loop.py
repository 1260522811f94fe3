"""The training loop behind gpt/train.py: one path for pretraining and fine-tuning, resumable at every step.

In: the run (see gpt/train.py). Out: checkpoints, a journal in `logs/metrics.jsonl`, the finished Checkpoint in `out`.
A step is a pure function of weights, optimiser, torch's RNG and the step's number. Evaluation and samples have no part
in it, so after a kill the same losses come again, to the last bit on a CPU.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from gpt import checkpoint
from gpt.config import ModelConfig, PreferConfig, RlConfig, TrainConfig
from gpt.errors import UserError
from gpt.generate import generate, pick_device
from gpt.journal import Journal
from gpt.model import GPT
from gpt.objectives import NextToken, Objective, Preference
from gpt.optim import adamw, learning_rate
from gpt.rl import Practice
from gpt.tokenizer import Tokenizer

TASKS: dict[
    str, tuple[Callable[..., Objective], type[TrainConfig], str]
] = {  # what a task learns by, its settings, and the file that tells what its data were made from
    "pretrain": (NextToken, TrainConfig, "shards.json"),
    "sft": (NextToken, TrainConfig, "chats.json"),
    "prefer": (Preference, PreferConfig, "pairs.json"),
    "rl": (Practice, RlConfig, "prompts.json"),
}


def train(run: dict[str, Any], stop: Event) -> bool:
    """Train until the last step, or until `stop`; True when finished. UserError says what the user can mend."""
    out = Path(run["out"])
    if not (out / "state.json").exists():
        torch.set_num_threads(run["threads"])
        trainer = Trainer(run)
        if not trainer.run(stop):
            return False
        checkpoint.publish(trainer.checkpoints / f"step-{trainer.config.steps:08d}", trainer.tokenizer, out)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    print("finished", flush=True)
    return True


class Trainer:
    """What lives as long as the loop: made fresh, or from the newest whole checkpoint in `out/checkpoints`."""

    def __init__(self, run: dict[str, Any]) -> None:
        objective, settings, _ = TASKS[run["task"]]
        out, self.config, self.device = Path(run["out"]), settings(**run["train"]), pick_device(run["device"])
        self.checkpoints, self.tokenizer = out / "checkpoints", Tokenizer.load(Path(run["tokenizer"]))
        self.state = first_state(run, self.config, self.tokenizer)
        torch.manual_seed(self.config.seed)
        model = GPT(ModelConfig(**run["model"]), run["vocab_size"]) if not run["init"] else None
        self.model = (model or checkpoint.load_model(Path(run["init"]))).to(self.device)
        self.optimizer = adamw(self.model, self.config)
        if found := checkpoint.newest(self.checkpoints):
            self.state = checkpoint.restore(found, self.model, self.optimizer, expect=self.state)
        self.first = self.state["step"]
        self.journal = Journal(out / "logs" / "metrics.jsonl", after_step=self.first or -1)
        note_numerics(out / "logs" / "numerics.json", run, self.device, resumed=self.first > 0)
        self.objective: Objective = objective(run, self.config, self.model, self.tokenizer)

    def run(self, stop: Event) -> bool:
        """Steps until the last (True) or until `stop` (False); either way the last step made is in a checkpoint."""
        c, size = self.config, sum(p.numel() for p in self.model.parameters())
        where = f"{self.device} ({torch.get_num_threads()} threads), from step {self.first} to {c.steps}"
        print(f"{size:,} parameters, {c.batch} x {self.model.config.context} tokens a step, on {where}", flush=True)
        if self.first == 0:
            self.journal.log(0, self.objective.measure())
        self.began = self.shown = self.mark = time.monotonic()
        self.counted = self.state["tokens"]
        for step in range(self.first + 1, c.steps + 1):
            loss, norm, numbers = self._update(step)
            stopped = stop.is_set()
            save = stopped or step % c.checkpoint_every == 0 or step == c.steps
            self._report(step, {"loss": loss, "grad_norm": norm} | numbers, save)
            if c.sample_every and step % c.sample_every == 0:
                self._sample(step)
            if save:
                self.journal.sync()
                checkpoint.save(self.checkpoints, self.model, self.optimizer, self.state, c.keep)
            if stopped:
                return step == c.steps
        return True

    def _update(self, step: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One optimiser step; the loss, the gradient's norm, other numbers, all still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, self.config)
        self.model.train()
        loss, targets, numbers = self.objective.backward(step - 1)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state |= {"step": step, "tokens": self.state["tokens"] + targets}
        return loss, norm, numbers

    def _report(self, step: int, numbers: dict[str, Tensor], save: bool) -> None:
        """Journal and progress line where they are due; a loss that is no number ends the run before it is saved."""
        c, now = self.config, time.monotonic()
        evaluate = step % c.eval_every == 0 or step == c.steps
        speak, log = evaluate or now - self.shown >= 5, evaluate or step % -(-c.steps // 500) == 0
        if not (log or speak or save):  # reading a number waits for the device, and a chart needs no more points
            return
        values = {f"train/{name}": value.item() for name, value in numbers.items()}
        if not math.isfinite(loss := values["train/loss"]):
            raise UserError(f"loss is {loss} at step {step}; lower lr={c.lr}, say to {c.lr / 3:.1g}")
        rate = (self.state["tokens"] - self.counted) / (time.monotonic() - self.mark)
        values |= {"train/lr": learning_rate(step - 1, c), "perf/tokens_per_s": rate}
        held = self.objective.measure() if evaluate else {}
        if log:
            self.journal.log(step, values | held)
        if speak:
            self.shown, left_s = now, (now - self.began) / (step - self.first) * (c.steps - step)
            told = "".join(f", {name} {value:.3f}" for name, value in held.items())
            print(
                f"step {step} of {c.steps}: loss {loss:.3f}{told}, {rate:,.0f} tokens/s, {left_s:.0f} s left",
                flush=True,
            )
        self.mark, self.counted = time.monotonic(), self.state["tokens"]

    def _sample(self, step: int) -> None:
        """Print what the model says."""
        prompt, stop = self.objective.prompt(), self.tokenizer.stops
        ids = generate(self.model, [prompt], 64, temperature=0.8, top_k=50, seeds=[step], stop=stop)[0]
        print(f"sample at step {step}: {self.tokenizer.decode([*prompt, *ids])!r}", flush=True)


def first_state(run: dict[str, Any], config: TrainConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The state at step 0, with all that a resume must find unchanged. Data and init must speak the run's tokenizer."""
    mix, name = run.get("mix", []), TASKS[run["task"]][2]
    facts = {folder: (Path(folder) / name).read_bytes() for folder in (run["data"], *(other for other, _ in mix))}
    parent = checkpoint.read_state(Path(run["init"])) if run["init"] else None
    speak = {folder: json.loads(told)["tokenizer"] for folder, told in facts.items()}
    for folder, digest in (speak | ({run["init"]: parent["tokenizer"]} if parent else {})).items():
        if digest != tokenizer.digest:
            pair = f"{digest[:12]}, {run['tokenizer']} is {tokenizer.digest[:12]}"
            raise UserError(f"{folder} was made with tokenizer {pair}; make both with one tokenizer")
    parents = [*parent["parents"], {key: parent[key] for key in ("task", "step", "tokens")}] if parent else []
    same = {"task": run["task"], "train": asdict(config), "tokenizer": tokenizer.digest, "parents": parents}
    weights = (Path(run["init"]) / "model.safetensors").read_bytes() if run["init"] else b""
    same["init"] = hashlib.sha256(weights).hexdigest()
    read = hashlib.sha256(b"".join(facts.values()) + repr((run.get("packing"), [share for _, share in mix])).encode())
    return same | {"data": read.hexdigest(), "step": 0, "tokens": 0}


def note_numerics(path: Path, run: dict[str, Any], device: str, resumed: bool) -> None:
    """Remember what decides the last bits besides the config; a resume under other numerics says so."""
    now = {"device": device, "threads": run["threads"], "torch": torch.__version__}
    before = json.loads(path.read_text()) if resumed else now
    if now != before:
        print(f"resume under other numerics: not bit-exact ({before} before, {now} now)", flush=True)
    path.write_text(json.dumps(now))
