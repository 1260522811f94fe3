"""Practise on prompts with checkable answers: what earns more than its group's mean becomes likelier.

In: Checkpoint, Prompts. Out: Checkpoint, `report/completions.table.json` (what was said and earned).
Method: GRPO, Dr. GRPO or DAPO (gpt/losses.py) on the model's own completions (gpt/rl.py).
"""

import json
from pathlib import Path

from gpt.config import RlConfig
from tasks.artifacts import Checkpoint, Metrics, Prompts
from tasks.stage import stage
from tasks.trainer import Training, train


class Rl(Training, RlConfig):
    """How to practise; the context is the model's."""

    steps: int = 100
    """Optimiser steps."""
    batch: int = 16
    """Prompts per optimiser step, each with a group of completions."""
    lr: float = 3e-4
    """Highest learning rate."""
    weight_decay: float = 0.0
    """Decay of the matrices."""


@stage(Checkpoint, version="2", trains=True)
def rl(out: Path, config: Rl, base: Checkpoint, prompts: Prompts) -> Metrics:
    """Practise on prompts with checkable answers; held-out accuracy before and after."""
    inputs = {"data": str(prompts.path), "tokenizer": str(base.path / "tokenizer"), "init": str(base.path)}
    metrics = train(out, {"task": "rl", **inputs, "train": config.settings()})
    notes = map(json.loads, (out / "logs" / "completions.jsonl").read_text(encoding="utf-8").splitlines())
    rows = [[step, told["prompt"], reply, earned] for _, step, told in notes for reply, earned in told["said"]]
    (out / "report").mkdir(exist_ok=True)
    table = {"columns": ["step", "prompt", "completion", "reward"], "data": rows}
    (out / "report" / "completions.table.json").write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    return metrics
