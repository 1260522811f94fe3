"""What a training tells of itself: every number that is promised, few enough to look at, read only when it is due."""

import json
import math
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from gpt.config import ModelConfig, TrainConfig
from gpt.loop import train
from gpt.model import GPT
from gpt.report import POINTS, Report

ALWAYS = {
    "train/loss", "train/grad_norm", "train/lr", "train/skipped", "perf/tokens_per_s", "perf/mfu_gemm",
    "perf/step_ms_p50", "perf/step_ms_p95", "perf/data_wait", "perf/memory_gb",
}  # fmt: skip
EVALUATED = {"val/loss", "val/bpb", "val/max_logit", "train/update_ratio_embedding", "train/update_ratio_blocks"}


def lines(path):
    return [json.loads(line)[1:] for line in Path(path).read_text().splitlines()]


def test_every_promised_number_is_there_and_there_are_not_too_many(make_run):
    run = make_run(eval_every=4)
    assert train(run, Event())
    told = dict(lines(Path(run["out"]) / "logs" / "metrics.jsonl"))
    assert set(told) == set(range(13))
    assert {name for name in told[0]} == {"val/loss", "val/bpb", "val/max_logit"}, "before any step"
    for step in range(1, 13):
        assert set(told[step]) == ALWAYS | (EVALUATED if step % 4 == 0 else set()), f"step {step}"
        assert all(math.isfinite(value) for value in told[step].values())
        assert 0 < told[step]["perf/step_ms_p50"] <= told[step]["perf/step_ms_p95"]
        assert 0 <= told[step]["perf/data_wait"] <= 1
        assert told[step]["perf/mfu_gemm"] > 0
        assert 0.01 < told[step]["perf/memory_gb"] < 100
    assert all(0 < told[4][f"train/update_ratio_{part}"] < 1 for part in ("embedding", "blocks"))
    assert len({name for values in told.values() for name in values}) <= 30


class Unread:
    """A number on a device: reading it waits, so that it counts."""

    read = 0

    def __float__(self):
        Unread.read += 1
        return 1.5


@pytest.fixture
def report(tmp_path):
    """A report of 5,000 steps of a loop that is not there."""
    config = TrainConfig(steps=5000, eval_every=1000, lr=0.5, warmup_steps=9)
    model = GPT(ModelConfig(depth=1, width=8, heads=2, context=8), 20)
    objective = SimpleNamespace(measure=lambda: {"val/loss": 2.5}, waited_s=0.0)
    found = Report(tmp_path / "logs" / "m.jsonl", config, model, objective, {"step": 0, "tokens": 0, "detour": 0})
    found.begin("cpu", 0)
    return found


def test_a_number_is_read_only_where_a_point_is_due_and_a_chart_has_no_more_than_it_needs(report):
    for step in range(1, 5001):
        report.state.update(step=step, tokens=8 * step)
        report.shown = math.inf  # nobody is waiting for a line
        report.step(step, {"loss": Unread(), "skipped": 0})
    points = lines(report.path)
    assert len(points) == POINTS + 1
    assert Unread.read == POINTS
    assert {step for step, values in points if "val/loss" in values} == {0, *range(1000, 5001, 1000)}
    assert dict(points)[10]["train/lr"] == pytest.approx(0.5), "what made step 10, after 9 steps of warm-up"


def test_the_rate_is_that_of_the_update_and_what_happened_stays(report):
    report.events["failed_saves"] += 1
    report.state.update(step=10, tokens=80, detour=12)
    report.step(10, {"loss": torch.tensor(math.nan), "skipped": torch.tensor(3)})
    (_, values) = lines(report.path)[-1]
    assert values["train/lr"] == pytest.approx(report.rate(10)) == pytest.approx(0.5)
    assert (values["train/failed_saves"], values["train/rewound_steps"], values["train/skipped"]) == (1, 12, 3)
    assert "train/loss" not in values, "a chart has no place for what is no number"
    assert "train/damaged_checkpoints" not in values, "what did not happen is not told"
