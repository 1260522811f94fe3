"""What a model costs on this machine, by doing a little of it: `python -m gpt.perf run.json`, from flows/plan.py.

In: run.json with model, vocab_size, rows (sequences in one pass), device and threads.
Out: one line of JSON: seconds a token of training, of reading and of sampling, and the trainer's peak memory in bytes.
Method: rows double until a training step takes half a second, so that a large model costs the probe one short step;
memory is that of the rows tried, extrapolated to all of them: activations grow with the rows.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpt.config import ModelConfig, PretrainConfig
from gpt.generate import generate, pick_device
from gpt.means import memory_bytes, precision
from gpt.model import GPT
from gpt.optim import optimizers

ENOUGH_S = 0.5
"""A step so long says how fast the machine is."""
REPEATS = 5
ASKED, REPLY = 64, 16
"""Prompts in the sampled batch, and tokens for each."""


class Probe:
    """A model of the given shape with random weights, and what can be timed of it."""

    def __init__(self, run: dict[str, Any]) -> None:
        torch.set_num_threads(run["threads"])
        torch.manual_seed(0)
        self.device = pick_device(run["device"])
        self.model = GPT(ModelConfig(**run["model"]), run["vocab_size"]).to(self.device)
        precise = precision(self.device) if run["precision"] == "auto" else run["precision"]
        self.model.compute = torch.bfloat16 if precise == "bfloat16" else None
        self.optimizers = optimizers(self.model, PretrainConfig(optimizer=run["optimizer"], lr=1e-3, adam_lr=1e-3))
        self.rows, self.context = 1, self.model.config.context

    def train(self) -> None:
        """One optimiser step."""
        x_BT = torch.randint(self.model.vocab_size, (self.rows, self.context), device=self.device)
        self.model.train()(x_BT, target_BT=x_BT).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    @torch.inference_mode()
    def read(self) -> None:
        """The cost of every token of a batch, as an evaluation has it."""
        x_BT = torch.randint(self.model.vocab_size, (self.rows, self.context), device=self.device)
        self.model.eval().costs(x_BT, x_BT)

    def sample(self) -> None:
        """Replies to prompts of half a reply's length."""
        prompts = [[1] * min(REPLY // 2, self.context // 2)] * ASKED
        generate(self.model, prompts, min(REPLY, self.context // 2))

    def seconds(self, work: Callable[[], None], repeats: int = REPEATS) -> float:
        """The median of some turns."""
        taken = []
        for _ in range(repeats):
            begin = time.perf_counter()
            work()
            if self.device == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken)


def measure(run: dict[str, Any]) -> dict[str, float]:
    """Seconds a token, and bytes."""
    probe = Probe(run)
    for _ in range(2):  # the first makes the optimiser's state, the second what comes with it
        probe.train()
    few, at_first = probe.rows, memory_bytes(probe.device)
    while (step_s := probe.seconds(probe.train, 1)) < ENOUGH_S and probe.rows < run["rows"]:
        probe.rows = min(2 * probe.rows, run["rows"])
    growth = (memory_bytes(probe.device) - at_first) / max(1, probe.rows - few)
    tokens = probe.rows * probe.context
    if step_s < ENOUGH_S * 4:
        step_s = probe.seconds(probe.train)
    replies, read_s = ASKED * min(REPLY, probe.context // 2), probe.seconds(probe.read, 3)
    probe.model.compute = None  # preferences, practice and evaluation
    exact_s = [probe.seconds(work, 3) / tokens for work in (probe.train, probe.read)]
    peak = memory_bytes(probe.device) + growth * (run["rows"] - probe.rows)
    return {"train_s": step_s / tokens, "read_s": read_s / tokens, "exact_train_s": exact_s[0],
            "exact_read_s": exact_s[1], "sample_s": probe.seconds(probe.sample, 3) / replies,
            "peak_bytes": peak}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text()))), flush=True)
