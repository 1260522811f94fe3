"""The training loop behind gpt/train.py: one path for pretraining and fine-tuning, resumable at every step.

In: the run (see gpt/train.py). Out: checkpoints, a journal in `logs/metrics.jsonl`, the finished Checkpoint in `out`.
A step is a pure function of weights, optimiser, torch's RNG and the step's number. Evaluation and samples have no part
in it, so after a kill the same losses come again, to the last bit on a CPU.
"""

import errno
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from gpt import checkpoint
from gpt.config import ModelConfig, PreferConfig, PretrainConfig, RlConfig, TrainConfig
from gpt.errors import UserError
from gpt.generate import generate, pick_device
from gpt.guard import IN_A_ROW, Guard
from gpt.means import micro_batch, pays, precision
from gpt.model import GPT
from gpt.objectives import NextToken, Objective, Preference
from gpt.optim import course, groups, optimizers, update
from gpt.report import Report
from gpt.rl import Practice
from gpt.tokenizer import Tokenizer

TASKS: dict[
    str, tuple[Callable[..., Objective], type[TrainConfig], str]
] = {  # what a task learns by, its settings, and the file that tells what its data were made from
    "pretrain": (NextToken, PretrainConfig, "shards.json"),
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
        out, self.device = Path(run["out"]), pick_device(run["device"])
        self.config = settings(**run["train"]).fitted(ModelConfig(**run["model"]), run["vocab_size"])
        self.checkpoints, self.tokenizer = out / "checkpoints", Tokenizer.load(Path(run["tokenizer"]))
        state = first_state(run, self.config, self.tokenizer)
        torch.manual_seed(self.config.seed)
        model = GPT(ModelConfig(**run["model"]), run["vocab_size"]) if not run["init"] else None
        self.model = (model or checkpoint.load_model(Path(run["init"]))).to(self.device)
        self.optimizers, self.guard = optimizers(self.model, self.config), Guard(self.device)
        self.training = checkpoint.Training(self.model, self.optimizers, self.guard, state)
        if found := checkpoint.newest(self.checkpoints):
            checkpoint.restore(found, self.training)
        self.numerics = numerics(out / "logs" / "numerics.json", run, self.config, self.model, state["step"] > 0)
        self.config = replace(self.config, micro_batch=self.numerics["micro_batch"])
        self.model.compute = torch.bfloat16 if self.numerics["precision"] == "bfloat16" else None
        self.objective: Objective = objective(run, self.config, self.model, self.tokenizer)
        for block in self.model.h if self.numerics["compile"] else ():
            block.compile()
        self.report = Report(out / "logs" / "metrics.jsonl", self.config, self.model, self.objective, state)

    @property
    def state(self) -> checkpoint.State:
        """Where the training is."""
        return self.training.state

    def run(self, stop: Event) -> bool:
        """Steps until the last (True) or until `stop` (False); either way the last step made is in a checkpoint."""
        c = self.config
        self.report.begin(self.device)
        while (step := self.state["step"] + 1) <= c.steps:
            numbers, stopped = self._update(step), stop.is_set()
            last = step == c.steps
            if (step % IN_A_ROW == 0 or last) and self.guard.stuck():
                self._rewind(step)
                continue
            self.report.step(step, numbers)
            if c.sample_every and step % c.sample_every == 0:
                self._sample(step)
            if stopped or last or (step % c.checkpoint_every == 0 and not self.guard.in_a_row):
                self._save(needed=stopped or last)
            if stopped:
                return last
        return True

    def _update(self, step: int) -> dict[str, Tensor]:
        """One optimiser step, unless the guard skips it; its numbers, all still on the device."""
        for group in groups(self.optimizers):
            group["lr"] = group["peak"] * course(step - 1, self.config)
        self.model.train()
        loss, targets, numbers = self.objective.backward(step - 1 + self.state["detour"])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip or math.inf)
        skip = self.guard.judge(loss, norm)
        with self.report.watch(step):
            update(self.optimizers, skip)
        self.state.update(step=step, tokens=self.state["tokens"] + targets)
        return {"loss": loss, "grad_norm": norm, "skipped": self.guard.skipped} | numbers

    def _rewind(self, step: int) -> None:
        """Back to the last checkpoint, then past the data that did harm; this helps once, if it helps at all."""
        c, found = self.config, checkpoint.newest(self.checkpoints)
        if self.state["detour"] or not found:
            what = (
                f"{IN_A_ROW} steps in a row up to step {step} had a loss or gradient that is no number or far too high"
            )
            raise UserError(f"{what}; lower lr={c.lr:g}, say to {c.lr / 3:.1g}, or look at the data there")
        checkpoint.restore(found, self.training)
        self.state["detour"] = step - self.state["step"]
        print(f"too many bad steps: back from step {step} to {self.state['step']}, other data from there", flush=True)
        self.report.rewind(self.state)

    def _save(self, needed: bool) -> None:
        """A checkpoint; where there is no room for one, training goes on with the elder, but not to its end."""
        self.report.journal.sync()
        try:
            checkpoint.save(self.checkpoints, self.training, self.config.keep)
        except OSError as error:
            if needed or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print(f"no checkpoint at step {self.state['step']}: {error.strerror}", flush=True)
            self.report.journal.log(self.state["step"], {"train/failed_saves": 1})

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
    return same | {"data": read.hexdigest(), "step": 0, "tokens": 0, "detour": 0}


def numerics(path: Path, run: dict[str, Any], config: TrainConfig, model: GPT, resumed: bool) -> dict[str, Any]:
    """What decides the last bits besides the config, as settled when the run began; a resume under others says so."""
    device, before = str(model.wte.weight.device), json.loads(path.read_text()) if resumed else {}
    now: dict[str, Any] = {"device": device, "threads": run["threads"], "torch": torch.__version__}
    now["precision"] = precision(device) if config.precision == "auto" else config.precision
    now["compile"] = pays(model, config) if config.compile == "auto" else config.compile == "on"
    now["micro_batch"] = config.micro_batch or before.get("micro_batch") or micro_batch(model, config, now["precision"])
    if resumed and now != before:
        print(f"resume under other numerics: not bit-exact ({before} before, {now} now)", flush=True)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(now))
    return now
