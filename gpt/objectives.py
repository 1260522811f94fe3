"""What a kind of training learns from: the gradient of a step, and what is measured on held-out data.

In: the run (see gpt/train.py), its config, its model. Out, for gpt/loop.py: `backward` (loss, targets, other numbers),
`measure` (held-out numbers, the headline first), `prompt` (where a sample starts). All are pure functions of the step.
Methods: next-token prediction; DPO (Rafailov et al. 2023) beside the chosen answers' own loss (Pang et al. 2024).
"""

import hashlib
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gpt import dist
from gpt.checkpoint import load_model
from gpt.config import PreferConfig, TrainConfig
from gpt.data import IGNORED, Batch, Conversations, Pairs, both, rounded
from gpt.generate import generate
from gpt.heldout import HeldOut
from gpt.losses import dpo, log_probs
from gpt.model import GPT
from gpt.tokenizer import Tokenizer
from gpt.windows import Windows

# B batch, T time
Numbers = dict[str, float]
Step = tuple[Tensor, int, dict[str, Tensor]]
"""Loss (detached, still on the device), targets learned from, other numbers of the step."""
REPLIES, REPLY_TOKENS = 32, 64


class Objective(Protocol):
    """What the loop asks of a kind of training."""

    waited_s: float
    """Seconds spent so far on getting data."""

    def backward(self, step: int) -> Step:
        """Add the gradient of step number `step` (from 0)."""
        ...

    def measure(self) -> Numbers:
        """`val/` names to values on held-out data, the headline first."""
        ...

    def prompt(self) -> list[int]:
        """Ids to sample from."""
        ...


class NextToken:
    """The next token: of every token of a stream (pretrain), of the assistant's in a conversation (sft)."""

    def __init__(self, run: dict[str, Any], config: TrainConfig, model: GPT, tokenizer: Tokenizer) -> None:
        self.config, self.model, self.waited_s = config, model, 0.0
        folder, context = Path(run["data"]), model.config.context
        mix = [(Path(other), share) for other, share in run.get("mix", ())]
        pack_at = tokenizer.eot if run.get("packing") == "bfd" else None
        pretrain = run["task"] == "pretrain"
        self.data = Windows(folder, context, mix, pack_at) if pretrain else Conversations(folder, context)
        self.held_out = HeldOut(self.data.held_out(config.eval_windows), tokenizer.bytes_per_token())

    def backward(self, step: int) -> Step:
        """The mean loss over all targets of all ranks' rows, `micro_batch` of them at a time."""
        begin, ranks = time.perf_counter(), dist.world()
        read = self.data.batch(self.config.seed, step, self.config.batch, dist.rank(), ranks)
        batch, own = on(self.model, read), int((read[1] != IGNORED).sum()) if len(read) > 1 else read[0][:, 1:].size
        self.waited_s += time.perf_counter() - begin
        targets = dist.total(own)
        learner, total = dist.learner(self.model), torch.zeros((), device=batch[1].device)
        parts = list(zip(*(part.split(self.config.micro_batch or self.config.batch) for part in batch), strict=True))
        for number, (x, y, *document) in enumerate(parts, 1):
            with dist.syncing(learner, now=number == len(parts)):
                mean = learner(x, *document, target_BT=y) / targets
                (mean * ranks).backward()  # the gradients' mean over the ranks is then that of the whole batch
            total += mean.detach()
        return dist.summed(total), targets, {}

    def measure(self) -> Numbers:
        """Bits a byte and nats a target."""
        rows = self.config.micro_batch or self.config.batch
        with dist.whole(self.model):
            scores = self.held_out.measure(self.model, rows, "held-out row", silent_s=5)
            largest = self._largest()
        return {f"val/{name}": value for name, value, _ in reversed(scores)} | {"val/max_logit": largest}

    @torch.no_grad()
    def _largest(self) -> float:
        """The largest logit at the first held-out places: it grows before a training falls apart."""
        x = torch.from_numpy(self.held_out.x_BT[:1, :64]).to(device_of(self.model))
        return self.model.eval()(x).abs().max().item()

    def prompt(self) -> list[int]:
        """The first held-out row's question, or the start of a document."""
        return self.held_out.x_BT[0, : self.held_out.real_BT[0].argmax() + 1].tolist()


class Preference:
    """Chosen answers over rejected ones, against a reference whose log-probabilities are computed once."""

    def __init__(self, run: dict[str, Any], config: PreferConfig, model: GPT, tokenizer: Tokenizer) -> None:
        self.config, self.model, self.tokenizer, self.init = config, model, tokenizer, Path(run["init"])
        self.waited_s = 0.0
        self.data = Pairs(Path(run["data"]), model.config.context)
        self.reference = remembered(Path(run["out"]) / "checkpoints", self._reference)

    def _reference(self) -> np.ndarray:
        """The first model's log-probability of every usable answer, float32 [rows]; others 0."""
        reference, values = reference_of(self.init, self.model), np.zeros(len(self.data.spans), np.float32)
        for rows in np.array_split(np.concatenate([self.data.train, self.data.val]), len(self.data.spans) // 64 + 1):
            values[rows] = self._answers(reference, rows)[0].cpu()
        return values

    @torch.no_grad()
    def _answers(self, model: GPT, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """(log-probability, tokens) of each row's answer."""
        x_BT, y_BT = on(model, self.data.padded(rows))
        return log_probs(model.eval(), x_BT, y_BT).sum(1), (y_BT != IGNORED).sum(1)

    def backward(self, step: int) -> Step:
        """DPO's mean over pairs plus the weighted mean loss of the chosen answers' tokens."""
        c = self.config
        rows = self.data.rows(c.seed, step, c.batch)
        parts = np.split(np.arange(c.batch), range(c.micro_batch or c.batch, c.batch, c.micro_batch or c.batch))
        learned = sum(int((self.data.padded(rows[part])[1] != IGNORED).sum()) for part in parts)
        total, numbers = torch.zeros((), device=device_of(self.model)), dict[str, Tensor]()
        for part in parts:
            chosen = rows[part]
            x_BT, y_BT = on(self.model, self.data.padded(both(chosen)))
            policy_B = log_probs(self.model, x_BT, y_BT).sum(1)
            reference_B = torch.from_numpy(self.reference[both(chosen)]).to(policy_B)
            losses, own = dpo(policy_B, reference_B, c.beta), -policy_B[: len(part)].sum() / learned
            loss = losses.sum() / c.batch + c.sft_weight * own
            loss.backward()
            total += loss.detach()
            share = len(part) / c.batch
            numbers["reward_accuracy"] = numbers.get("reward_accuracy", 0) + won(np.log(2) - losses.detach()) * share
        return total, learned, numbers

    def measure(self) -> Numbers:
        """On held-out pairs: how often and how far the chosen answer gained on the rejected; its log-probability.

        On replies to their prompts: length in tokens, and the KL divergence to the reference in nats a reply.
        """
        rows = both(self.data.val[::2][: self.config.eval_windows])
        chunks = [self._answers(self.model, part)[0] for part in np.array_split(rows, len(rows) // 64 + 1)]
        policy_B = torch.cat(chunks).cpu()
        chosen, rejected = (policy_B - torch.from_numpy(self.reference[rows])).chunk(2)
        margin = self.config.beta * (chosen - rejected)
        shifts = {"chosen_logp": policy_B.chunk(2)[0].mean(), "margin": margin.mean()}
        measured = {"val/reward_accuracy": won(margin), **{f"val/{name}": value for name, value in shifts.items()}}
        return {name: float(value) for name, value in measured.items()} | self._replies()

    def _replies(self) -> Numbers:
        rows, room = self.data.val[::2][: self.config.eval_windows], self.model.config.context - REPLY_TOKENS
        prompts = [ids for ids in map(self._asked, rows) if len(ids) <= room][:REPLIES]
        if not prompts:  # a context of a few tokens, or long questions only
            return {}
        replies = generate(self.model, prompts, REPLY_TOKENS, stop=self.tokenizer.stops)
        x_BT, y_BT = on(self.model, padded(prompts, replies, self.model.config.context))
        reference = reference_of(self.init, self.model)
        with torch.no_grad():
            gain_BT = log_probs(self.model.eval(), x_BT, y_BT) - log_probs(reference, x_BT, y_BT)
        kl, length = gain_BT.sum().item() / len(replies), sum(map(len, replies)) / len(replies)
        return {"val/kl": kl, "val/length": length}

    def _asked(self, row: int) -> list[int]:
        begin, end = self.data.spans[row]
        return self.data.ids[begin : begin + int(self.data.mask[begin:end].argmax())].tolist()

    def prompt(self) -> list[int]:
        """The first held-out prompt."""
        return self._asked(self.data.val[0])


def won(margins: Tensor) -> Tensor:
    """The share of margins above 0, those that differ from it in the last bits only as halves."""
    return ((margins > 1e-4).float() + (margins.abs() <= 1e-4).float() / 2).mean()


def reference_of(init: Path, model: GPT) -> GPT:
    """The model that training began from, computing as this one does."""
    reference = load_model(init, str(device_of(model)))
    reference.compute = model.compute
    return reference


def device_of(model: GPT) -> torch.device:
    """Where the model's weights are."""
    return model.wte.weight.device


def on(model: GPT, batch: Batch) -> list[Tensor]:
    """x, y and what else there is of a batch where the model is, as int64."""
    device = device_of(model)
    parts = [carried(part, device) for part in batch]
    return parts if len(parts) > 1 else [parts[0][:, :-1], parts[0][:, 1:]]


def carried(part: np.ndarray, device: torch.device) -> Tensor:
    """An array of integers on a device, as int64. A GPU is sent the array's own bytes, and widens them itself.

    They go from page-locked memory, for which nobody waits; torch hands that memory out again once they are there.
    """
    tensor = torch.from_numpy(part)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True).long()
    return tensor.long().to(device)


def padded(prompts: list[list[int]], answers: list[list[int]], context: int) -> Batch:
    """Prompts with their answers as a batch, targets on the answers alone."""
    time = rounded(max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)) - 1, context)
    x_BT, y_BT = np.zeros((len(prompts), time), np.int64), np.full((len(prompts), time), IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = np.array([*prompt, *answer])
        x_BT[row, : len(ids) - 1] = ids[:-1]
        y_BT[row, len(prompt) - 1 : len(ids) - 1] = answer
    return x_BT, y_BT


def remembered(folder: Path, make: Any) -> np.ndarray:
    """What `make` gives, kept in a file that is named by its content: a torn or changed one is made again."""
    for file in folder.glob("reference-*.npy"):
        if file.stem.endswith(hashlib.sha256(file.read_bytes()).hexdigest()[:16]):
            return np.load(file, allow_pickle=False)
    folder.mkdir(parents=True, exist_ok=True)
    values, work = make(), folder / "reference.tmp.npy"
    np.save(work, values)
    work.replace(folder / f"reference-{hashlib.sha256(work.read_bytes()).hexdigest()[:16]}.npy")
    return values
