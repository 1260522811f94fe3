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

from gpt import checkpoint, dist
from gpt.config import ModelConfig, PreferConfig, PretrainConfig, RlConfig, TrainConfig, too_large
from gpt.data import key
from gpt.errors import UserError
from gpt.generate import generate, pick_device
from gpt.guard import IN_A_ROW, Guard
from gpt.hf import fingerprint, origin, start_from
from gpt.hfconfig import config_in
from gpt.means import compiles, device_bytes, micro_batch, precision, repeatable
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


class Stopped(Exception):
    """Told to stop in the midst of a step, which then has not happened."""


def train(run: dict[str, Any], stop: Event, begun: Callable[[], object] = lambda: None) -> bool:
    """Train until the last step, or until `stop`; True when finished. UserError says what the user can mend.

    `begun` is called after the first step: from then on there is something to lose.
    """
    out = Path(run["out"])
    torch.set_num_threads(run["threads"])
    with dist.together(pick_device(run["device"])) as device:
        if not (out / "state.json").exists():
            trainer = Trainer(run, device)
            if not trainer.run(stop, begun):
                return False
            if dist.lead():
                checkpoint.publish(trainer.checkpoints / f"step-{trainer.config.steps:08d}", trainer.tokenizer, out)
        if dist.lead():
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
        print("finished", flush=True)
    return True


class Trainer:
    """What lives as long as the loop: made fresh, or from the newest whole checkpoint in `out/checkpoints`."""

    def __init__(self, run: dict[str, Any], device: str) -> None:
        objective, settings, _ = TASKS[run["task"]]
        out, self.device = Path(run["out"]), device
        sizes = sizes_of(run)
        self.config = settings(**run["train"]).fitted(*sizes)
        repeatable(device, self.config.deterministic)
        self.checkpoints, self.tokenizer = out / "checkpoints", Tokenizer.load(Path(run["tokenizer"]))
        state = first_state(run, self.config, self.tokenizer)
        torch.manual_seed(self.config.seed)
        model = start_from(Path(run["init"]), *sizes) if run["init"] else GPT(*sizes)
        self.model = spread(model, run, self.config, device)
        if dist.rank():
            torch.manual_seed(key(self.config.seed, dist.rank(), "rank"))  # each rank has a dropout of its own
        self.optimizers, self.guard = (
            optimizers(self.model, self.config),
            Guard(self.device, spikes=run["task"] != "rl"),
        )
        self.training = checkpoint.Training(self.model, self.optimizers, self.guard, state)
        there = len(list(self.checkpoints.glob("step-*")))
        if found := self._newest():
            checkpoint.restore(found, self.training)
        self.damaged = there - len(list(self.checkpoints.glob("step-*")))
        self.numerics = numerics(out / "logs" / "numerics.json", run, self.config, self.model, state["step"] > 0)
        self.config = replace(self.config, micro_batch=self.numerics["micro_batch"])
        self.objective: Objective = objective(run, self.config, self.model, self.tokenizer)
        for block in self.model.h if self.numerics["compile"] else ():
            block.compile()
        self.report = Report(out / "logs" / "metrics.jsonl", self.config, self.model, self.objective, state)

    @property
    def state(self) -> checkpoint.State:
        """Where the training is."""
        return self.training.state

    def _newest(self, every: int = 1) -> Path | None:
        """The newest whole checkpoint, as rank 0 finds it."""
        found = checkpoint.newest(self.checkpoints, every) if dist.lead() else None
        step = dist.total(int(found.name[5:]) if found else 0)
        return self.checkpoints / f"step-{step:08d}" if step else None

    def run(self, stop: Event, begun: Callable[[], object]) -> bool:
        """Steps until the last (True) or until `stop` (False); either way the last good step is in a checkpoint."""
        if dist.world() == 1:  # several ranks can only stop together, after a step
            self.model.wte.register_forward_pre_hook(lambda *_: self._heed(stop))  # with it every pass begins
        try:
            return self._steps(stop, begun)
        except Stopped:
            step = self.state["step"]
            if step and not self.guard.in_a_row and not (self.checkpoints / f"step-{step:08d}").exists():
                self._save(needed=True)
            return False

    def _heed(self, stop: Event) -> None:
        """A step of many micro-batches can take minutes; a measurement is let end, for its point would be missing."""
        if stop.is_set() and (self.model.training or self.state["step"] == 0):
            raise Stopped

    def _steps(self, stop: Event, begun: Callable[[], object]) -> bool:
        c, first = self.config, self.state["step"] + 1
        self.report.begin(self.device, self.damaged)
        while (step := self.state["step"] + 1) <= c.steps:
            numbers, last = self._update(step), step == c.steps
            if (step % IN_A_ROW == 0 or last) and self.guard.stuck():
                self._rewind(step)
                continue
            if step == first:
                begun()
            self.report.step(step, numbers)
            if c.sample_every and step % c.sample_every == 0:
                self._sample(step)
            stopped = dist.total(stop.is_set()) > 0
            due = stopped or step % c.checkpoint_every == 0
            if last or (due and not self.guard.in_a_row):  # among bad steps there is no place to rewind to
                self._save(needed=stopped or last)
            if stopped:
                return last
        return True

    def _update(self, step: int) -> dict[str, Tensor]:
        """One optimiser step, unless the guard skips it; its numbers, all still on the device."""
        for group in groups(self.optimizers):
            group["lr"] = group["peak"] * course(step - 1, self.config)
        self.model.train()
        random = checkpoint.random() if dist.world() == 1 else {}
        try:
            loss, targets, numbers = self.objective.backward(step - 1 + self.state["detour"])
        except Stopped:
            checkpoint.set_random(random)
            raise
        norm = dist.plain(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip or math.inf))
        skip = self.guard.judge(loss, norm)
        with self.report.watch(step):
            update(self.optimizers, skip)
        self.state.update(step=step, tokens=self.state["tokens"] + targets)
        return {"loss": loss, "grad_norm": norm, "skipped": self.guard.skipped} | numbers

    def _rewind(self, step: int) -> None:
        """Back to the last checkpoint, then past the data that did harm; this helps once, if it helps at all."""
        c, found = self.config, self._newest(self.config.checkpoint_every)  # not where a signal happened to come
        if self.state["detour"] or not found:
            what = (
                f"{IN_A_ROW} steps in a row up to step {step} had a loss or gradient that is no number or far too high"
            )
            raise UserError(f"{what}; lower lr={c.lr:g}, say to {c.lr / 3:.1g}, or look at the data there")
        checkpoint.restore(found, self.training)
        self.state["detour"] = step - self.state["step"]
        print(f"too many bad steps: back from step {step} to {self.state['step']}, other data from there", flush=True)
        self.report.rewind()

    def _save(self, needed: bool) -> None:
        """A checkpoint; where there is no room for one, training goes on with the elder, but not to its end."""
        try:
            self.report.sync()
            checkpoint.save(self.checkpoints, self.training, self.config.keep, self.config.checkpoint_every)
        except OSError as error:
            if needed or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            shutil.rmtree(self.checkpoints / "work", ignore_errors=True)
            print(f"no checkpoint at step {self.state['step']}: {error.strerror}", flush=True)
            self.report.events["failed_saves"] += 1

    def _sample(self, step: int) -> None:
        """Print what the model says."""
        prompt, stop = self.objective.prompt(), self.tokenizer.stops
        with dist.whole(self.model):
            if not dist.lead():
                return
            ids = generate(self.model, [prompt], 64, temperature=0.8, top_k=50, seeds=[step], stop=stop)[0]
        print(f"sample at step {step}: {self.tokenizer.decode([*prompt, *ids])!r}", flush=True)


def spread(model: GPT, run: dict[str, Any], config: TrainConfig, device: str) -> GPT:
    """The model on this rank's device: all of it, or its part, where whole weights and optimiser would not fit."""
    precise, ranks = precision(device) if config.precision == "auto" else config.precision, dist.world()
    model.compute = torch.bfloat16 if precise == "bfloat16" else None
    size = sum(p.numel() for p in model.parameters())
    how = run.get("shard", "auto")
    memory, here = device_bytes(device), dist.local()
    cut = ranks > 1 and (how == "on" or (how == "auto" and too_large(size, memory)))
    if config.batch % ranks:
        raise UserError(
            f"batch={config.batch} is no multiple of {ranks} ranks; try {-(-config.batch // ranks) * ranks}"
        )
    if ranks > 1 and run["task"] not in ("pretrain", "sft"):
        raise UserError(f"{run['task']} runs in one process, this is one of {ranks}; start it without torchrun")
    if cut and config.optimizer == "muon":
        what = f"muon needs whole matrices, and {size:,} parameters are sharded over {ranks} ranks"
        raise UserError(f"{what}; set optimizer=adamw with a rate for it, or shard=off")
    if not cut:
        return model.to(device)
    dist.shard(model, device, model.compute, parts=ranks if too_large(size // here, memory) else here)
    return model


def sizes_of(run: dict[str, Any]) -> tuple[ModelConfig, int]:
    """What is trained: as the run says, else what it goes on from."""
    return (ModelConfig(**run["model"]), run["vocab_size"]) if "model" in run else config_in(Path(run["init"]))


def first_state(run: dict[str, Any], config: TrainConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The state at step 0, with all that a resume must find unchanged. Data and init must speak the run's tokenizer."""
    mix, name = run.get("mix", []), TASKS[run["task"]][2]
    facts = {folder: (Path(folder) / name).read_bytes() for folder in (run["data"], *(other for other, _ in mix))}
    parent = origin(Path(run["init"])) if run["init"] else None
    speak = {folder: json.loads(told)["tokenizer"] for folder, told in facts.items()}
    for folder, digest in (speak | ({run["init"]: parent["tokenizer"]} if parent else {})).items():
        if digest != tokenizer.digest:
            pair = f"{digest[:12]}, {run['tokenizer']} is {tokenizer.digest[:12]}"
            raise UserError(f"{folder} was made with tokenizer {pair}; make both with one tokenizer")
    parents = [*parent["parents"], {key: parent[key] for key in ("task", "step", "tokens")}] if parent else []
    same = {"task": run["task"], "train": asdict(config), "tokenizer": tokenizer.digest, "parents": parents}
    same["init"] = fingerprint(Path(run["init"]) if run["init"] else None)
    read = hashlib.sha256(b"".join(facts.values()) + repr((run.get("packing"), [share for _, share in mix])).encode())
    return same | {"data": read.hexdigest(), "step": 0, "tokens": 0, "detour": 0}


def numerics(path: Path, run: dict[str, Any], config: TrainConfig, model: GPT, resumed: bool) -> dict[str, Any]:
    """What decides the last bits besides the config, as settled when the run began; a resume under others says so."""
    device, before = str(model.wte.weight.device), json.loads(path.read_text()) if path.exists() and dist.lead() else {}
    now: dict[str, Any] = {"device": device, "threads": run["threads"], "torch": torch.__version__}
    now |= {"ranks": dist.world(), "sharded": dist.sharded(model)}
    now["precision"] = "bfloat16" if model.compute else str(model.wte.weight.dtype).removeprefix("torch.")
    now["compile"] = compiles(model, config)
    own = replace(config, batch=config.batch // dist.world())
    settled = before.get("micro_batch", 0) if own.batch % before.get("micro_batch", 1) == 0 else 0
    rows = config.micro_batch or settled or micro_batch(model, own, now["precision"])
    now["micro_batch"] = dist.total(rows if dist.lead() else 0)
    if dist.lead():
        if resumed and now != before:
            print(f"resume under other numerics: not bit-exact ({before} before, {now} now)", flush=True)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(now))
    return now
