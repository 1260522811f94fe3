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
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

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


def train(run: dict[str, Any], stop: Event) -> bool:
    """Train until the last step, or until `stop`; True when finished. UserError says what the user can mend."""
    out, config = Path(run["out"]), TrainConfig(**run["train"])
    if not (out / "state.json").exists():
        torch.set_num_threads(run["threads"])
        trainer = Trainer(run, config)
        if not trainer.run(stop):
            return False
        checkpoint.publish(out / "checkpoints" / f"step-{config.steps:08d}", Path(run["tokenizer"]), out)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    print("finished", flush=True)
    return True


class Trainer:
    """What lives as long as the loop: made fresh, or from the newest whole checkpoint in `out/checkpoints`."""

    def __init__(self, run: dict[str, Any], config: TrainConfig) -> None:
        out, self.config, self.device = Path(run["out"]), config, pick_device(run["device"])
        self.checkpoints, self.tokenizer = out / "checkpoints", Tokenizer.load(Path(run["tokenizer"]))
        self.bytes_V = torch.from_numpy(self.tokenizer.bytes_per_token()).to(self.device)
        self.state = _first_state(run, self.tokenizer)
        torch.manual_seed(config.seed)
        self.model = _model(run).to(self.device)
        self.task = _task(run, config, self.model.config.context, self.tokenizer)
        self.optimizer = adamw(self.model, config)
        if found := checkpoint.newest(self.checkpoints):
            self.state = _same(checkpoint.restore(found, self.model, self.optimizer), self.state)
        self.first = self.state["step"]
        _note_numerics(out / "logs" / "numerics.json", run, self.device, resumed=self.first > 0)
        self.journal = Journal(out / "logs" / "metrics.jsonl", after_step=self.first or -1)

    def run(self, stop: Event) -> bool:
        """Steps until the last (True) or until `stop` (False); either way the last step made is in a checkpoint."""
        c, saved = self.config, self.first
        self._announce()
        for step in range(self.first + 1, c.steps + 1):
            if stop.is_set():
                break
            loss, norm = self._update(step)
            self._report(step, loss, norm)
            if c.sample_every and step % c.sample_every == 0:
                self._sample(step)
            if step % c.checkpoint_every == 0 or step == c.steps:
                self._save()
                saved = step
        if self.state["step"] > saved:
            self._save()
        return self.state["step"] == c.steps

    def _announce(self) -> None:
        size, tokens = sum(p.numel() for p in self.model.parameters()), self.config.batch * self.model.config.context
        start = f" from step {self.first}" if self.first else ""
        where = f"{self.device} ({torch.get_num_threads()} threads)"
        print(
            f"{size:,} parameters on {where}, up to {tokens:,} tokens a step, {self.config.steps} steps{start}",
            flush=True,
        )
        if self.first == 0:
            self.journal.log(0, self._evaluate())
        self.began = self.shown = self.mark = time.monotonic()
        self.counted = self.state["tokens"]

    def _update(self, step: int) -> tuple[Tensor, Tensor]:
        """One optimiser step; the loss (nats a target) and the gradient's norm, still on the device."""
        c = self.config
        x_BT, y_BT = (torch.from_numpy(part).to(self.device) for part in self.task.batch(step - 1))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, c)
        targets = int((y_BT != data.IGNORED).sum())
        loss = backward(self.model.train(), x_BT, y_BT, c.micro_batch or c.batch, targets)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state |= {"step": step, "tokens": self.state["tokens"] + targets}
        return loss, norm

    def _report(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Journal and progress line where they are due; a loss that is no number ends the run before it is saved."""
        c, last = self.config, step == self.config.steps
        evaluate = step % c.eval_every == 0 or last
        speak = evaluate or time.monotonic() - self.shown >= 5
        log = evaluate or step % -(-c.steps // 500) == 0  # a chart needs no more points
        if not (log or speak or step % c.checkpoint_every == 0):
            return
        values = {"train/loss": loss.item(), "train/grad_norm": norm.item(), "train/lr": learning_rate(step - 1, c)}
        if not math.isfinite(values["train/loss"]):
            raise UserError(
                f"the loss is {values['train/loss']} at step {step}; lower lr={c.lr}, say to {c.lr / 3:.1g}"
            )
        values["perf/tokens_per_s"] = (self.state["tokens"] - self.counted) / (time.monotonic() - self.mark)
        values |= self._evaluate() if evaluate else {}
        if log:
            self.journal.log(step, values)
        if speak:
            self._say(step, values)
        self.mark, self.counted = time.monotonic(), self.state["tokens"]

    def _say(self, step: int, values: dict[str, float]) -> None:
        self.shown = time.monotonic()
        left_s = (self.shown - self.began) / (step - self.first) * (self.config.steps - step)
        held = (
            f", held-out {values['val/loss']:.3f} ({values['val/bpb']:.3f} bits a byte)" if "val/loss" in values else ""
        )
        speed = f"{values['perf/tokens_per_s']:,.0f} tokens/s, {left_s:.0f} s left"
        print(f"step {step} of {self.config.steps}: loss {values['train/loss']:.3f}{held}, {speed}", flush=True)

    def _evaluate(self) -> dict[str, float]:
        return evaluate(self.model, self.task.held_out, self.bytes_V, self.config.micro_batch or self.config.batch)

    def _sample(self, step: int) -> None:
        ends = (self.tokenizer.eot, self.tokenizer.end)
        ids = generate(self.model, [self.task.prompt], 64, temperature=0.8, top_k=50, seeds=[step], stop=ends)[0]
        print(f"sample at step {step}: {self.tokenizer.decode([*self.task.prompt, *ids])!r}", flush=True)

    def _save(self) -> None:
        self.journal.sync()
        checkpoint.save(self.checkpoints, self.model, self.optimizer, self.state, self.config.keep)


def backward(model: GPT, x_BT: Tensor, y_BT: Tensor, rows: int, targets: int) -> Tensor:
    """Add the gradient of the mean loss over all targets of the batch, `rows` sequences at a time; that loss."""
    total = torch.zeros((), device=x_BT.device)
    for x, y in zip(x_BT.split(rows), y_BT.split(rows), strict=True):
        loss = (
            F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=data.IGNORED, reduction="sum") / targets
        )
        loss.backward()
        total += loss.detach()
    return total


@torch.no_grad()
def evaluate(model: GPT, held_out: data.Batch, bytes_V: Tensor, rows: int) -> dict[str, float]:
    """Mean loss in nats, and bits per byte over the targets that stand for bytes (special tokens do not)."""
    model.eval()
    nats = text_nats = count = size = 0.0
    for x, y in zip(*(torch.from_numpy(part).split(rows) for part in held_out), strict=True):
        next_N = y.to(bytes_V.device).flatten()
        loss_N = F.cross_entropy(model(x.to(bytes_V.device)).flatten(0, 1), next_N, reduction="none").double()
        bytes_N = bytes_V[next_N.clamp(min=0)] * (next_N != data.IGNORED)
        nats, count = nats + loss_N.sum().item(), count + (next_N != data.IGNORED).sum().item()
        text_nats, size = text_nats + loss_N[bytes_N > 0].sum().item(), size + bytes_N.sum().item()
    return {"val/loss": nats / count, "val/bpb": text_nats / math.log(2) / max(size, 1)}


def _first_state(run: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The state at step 0, with all that a resume must find unchanged. Data and init must speak the run's tokenizer."""
    facts = (Path(run["data"]) / {"pretrain": "shards.json", "sft": "chats.json"}[run["task"]]).read_bytes()
    parent = checkpoint.read_state(Path(run["init"])) if run["init"] else {"tokenizer": tokenizer.digest, "parents": []}
    for what, digest in (("data", json.loads(facts)["tokenizer"]), ("init", parent["tokenizer"])):
        if digest != tokenizer.digest:
            ours = f"{run['tokenizer']} is {tokenizer.digest[:12]}"
            raise UserError(
                f"{run[what]} was made with tokenizer {digest[:12]}, but {ours}; make both with one tokenizer"
            )
    parents = parent["parents"] + [{key: parent[key] for key in ("task", "step", "tokens")} for _ in [0] if run["init"]]
    same = {"task": run["task"], "tokenizer": tokenizer.digest, "train": run["train"], "parents": parents}
    return same | {"data": hashlib.sha256(facts).hexdigest(), "step": 0, "tokens": 0}


def _same(saved: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    for key in sorted(fresh.keys() - {"step", "tokens"}):
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


@dataclass(frozen=True)
class Task:
    """What to train on: the batch of each step, held-out rows, and a prompt for samples."""

    batch: Callable[[int], data.Batch]
    held_out: data.Batch
    prompt: list[int]


def _task(run: dict[str, Any], c: TrainConfig, context: int, tokenizer: Tokenizer) -> Task:
    folder = Path(run["data"])
    if run["task"] == "sft":
        return _conversations(data.Conversations(folder, context), c)
    train, val = (data.Stream(sorted(folder.glob(f"{split}-*.bin"))) for split in ("train", "val"))
    for name, stream, least in (("train", train, context + 1), ("val", val, 2)):
        if len(stream) < least:
            raise UserError(
                f"the {name} split has {len(stream)} tokens but needs {least}; add text or lower model.context"
            )
    held_out = data.first(val, c.eval_windows, context)
    return Task(lambda step: data.batch(train, c.seed, step, c.batch, context), held_out, [tokenizer.eot])


def _conversations(chats: data.Conversations, c: TrainConfig) -> Task:
    if chats.unlabelled:
        print(f"{chats.unlabelled} conversations have no assistant token within the context: left out", flush=True)
    for name, rows in (("training", chats.train), ("held-out", chats.held_out)):
        if not len(rows):
            raise UserError(f"no {name} conversation has an assistant token within the context; raise model.context")
    held_out_x, held_out_y = chats.rows(chats.held_out[: c.eval_windows])
    question = int((held_out_y[0] != data.IGNORED).argmax()) + 1  # up to the role token that opens the answer
    prompt = held_out_x[0, :question].tolist()
    return Task(lambda step: chats.batch(c.seed, step, c.batch), (held_out_x, held_out_y), prompt)
