"""What a training says of itself: lines for the person who waits, and the journal's numbers.

In: each step's numbers, still on the device. Out: `logs/metrics.jsonl` (gpt/journal.py), progress on stdout.
Numbers are read where a line or a point is due: reading one waits for the device. A chart needs no more than 500.
"""

import math
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt import dist
from gpt.config import TrainConfig
from gpt.journal import Journal
from gpt.means import gemm_flops, memory_bytes, peak_flops
from gpt.model import GPT
from gpt.objectives import Numbers, Objective
from gpt.optim import course

POINTS, QUIET_S = 500, 5.0
"""Points of a chart; seconds between two lines."""


class Report:
    """Journal and progress lines of one run of the loop."""

    def __init__(
        self, path: Path, config: TrainConfig, model: GPT, objective: Objective, state: dict[str, Any]
    ) -> None:
        self.path, self.config, self.model, self.objective, self.state = path, config, model, objective, state
        self.ratios, self.events = dict[str, Tensor](), Counter[str]()
        self.journal = Journal(path, after_step=state["step"] or -1) if dist.lead() else None

    def log(self, step: int, values: Numbers) -> None:
        """A point of the journal, which rank 0 keeps."""
        if self.journal:
            self.journal.log(step, values)

    def sync(self) -> None:
        """Put the journal on the disk."""
        if self.journal:
            self.journal.sync()

    def begin(self, device: str, damaged: int) -> None:
        """The first line, and the first point: what the model can do before any step."""
        self.events["damaged_checkpoints"] += damaged
        c, first = self.config, self.state["step"]
        size, context = sum(p.numel() for p in self.model.parameters()), self.model.config.context
        ranks = f"{dist.world()} ranks on " if dist.world() > 1 else ""
        where = f"{ranks}{device} ({torch.get_num_threads()} threads), from step {first} to {c.steps}"
        print(f"{size:,} parameters, {c.batch} x {context} tokens a step, on {where}", flush=True)
        self.device, self.flops = device, self.model.config.flops(self.model.vocab_size)
        ceilings = {"mfu": peak_flops(device), "mfu_gemm": gemm_flops(device, self.model.compute or torch.float32)}
        self.ceilings = {name: most * dist.world() for name, most in ceilings.items()}
        if first == 0:
            self.log(0, self.objective.measure())
        self.first, self.began, self.shown = first, time.monotonic(), time.monotonic()
        self._mark()

    def _mark(self) -> None:
        self.mark, self.tokens, self.waited = time.monotonic(), self.state["tokens"], self.objective.waited_s
        self.last, self.taken = self.mark, list[float]()

    def due(self, step: int) -> bool:
        """Whether held-out data are measured after this step."""
        return step % self.config.eval_every == 0 or step == self.config.steps

    @contextmanager
    def watch(self, step: int) -> Generator[None]:
        """Around an update: how large it is beside the weights, where that will be reported."""
        matrices = {
            "embedding": [self.model.wte.weight],
            "blocks": [p for p in self.model.h.parameters() if p.dim() == 2],
        }
        before = {name: [p.detach().clone() for p in some] for name, some in matrices.items()} if self.due(step) else {}
        yield
        for name, old in before.items():
            moved = [p.detach() - q for p, q in zip(matrices[name], old, strict=True)]
            self.ratios[f"update_ratio_{name}"] = norm_of(moved) / norm_of(old)

    def step(self, step: int, numbers: dict[str, Tensor]) -> None:
        """Journal and progress line where they are due."""
        c, now = self.config, time.monotonic()
        self.taken.append(now - self.last)
        evaluate, self.last = self.due(step), now
        speak, log = evaluate or now - self.shown >= QUIET_S, evaluate or step % -(-c.steps // POINTS) == 0
        if not (log or speak):
            return
        happened = +(self.events + Counter(rewound_steps=self.state["detour"]))
        told = numbers | (self.ratios if evaluate else {}) | happened  # the last from when it happened on
        values = {f"train/{name}": float(value) for name, value in told.items()} | {"train/lr": self.rate(step)}
        perf, held = self.perf(), self.objective.measure() if evaluate else {}
        finite = {
            name: value for name, value in values.items() if math.isfinite(value)
        }  # a skipped step's loss may not
        if log:
            self.log(step, finite | perf | held)
        if speak:
            self.shown, left_s = now, (now - self.began) / (step - self.first) * (c.steps - step)
            said = "".join(f", {name} {value:.3f}" for name, value in held.items())
            rate, skipped = perf["perf/tokens_per_s"], int(values["train/skipped"])
            said += f", {skipped} steps skipped" if skipped else ""
            head = f"step {step} of {c.steps}: loss {values['train/loss']:.3f}{said}"
            print(f"{head}, {rate:,.0f} tokens/s, {left_s:.0f} s left", flush=True)
        self._mark()

    def rate(self, step: int) -> float:
        """The learning rate of the update that made this step."""
        return self.config.lr * course(step - 1, self.config)

    def perf(self) -> dict[str, float]:
        """Since the last report: tokens a second, its share of what the device can do, milliseconds a step, waiting."""
        past_s, (p50, p95) = time.monotonic() - self.mark, np.percentile(self.taken, (50, 95)).tolist()
        rate = (self.state["tokens"] - self.tokens) / past_s
        named = {"tokens_per_s": rate, "step_ms_p50": 1e3 * p50, "step_ms_p95": 1e3 * p95}
        named |= {name: rate * self.flops / most for name, most in self.ceilings.items() if most}
        named["data_wait"] = (self.objective.waited_s - self.waited) / past_s
        return {f"perf/{name}": value for name, value in named.items()} | {
            "perf/memory_gb": memory_bytes(self.device) / 1e9
        }

    def rewind(self) -> None:
        """What was journalled after the step that training goes back to did not happen."""
        self.journal = Journal(self.path, after_step=self.state["step"]) if dist.lead() else None
        self.first, self.began = self.state["step"], time.monotonic()
        self._mark()


def norm_of(tensors: list[Tensor]) -> Tensor:
    """The norm of all their numbers together."""
    return torch.stack([dist.plain(norm) for norm in torch._foreach_norm(tensors)]).norm()
