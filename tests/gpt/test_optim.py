"""The schedule as a pure function of the step; decay on matrices only."""

import math

import pytest

from gpt.config import ModelConfig, TrainConfig
from gpt.model import GPT
from gpt.optim import adamw, learning_rate

CONFIG = TrainConfig(steps=100, warmup_steps=10, lr=1.0, min_lr_ratio=0.1)


def test_the_rate_rises_then_follows_a_cosine_to_its_floor():
    rates = [learning_rate(step, CONFIG) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert rates[99] == pytest.approx(0.1)
    middle = 10 + 89 / 2
    assert learning_rate(middle, CONFIG) == pytest.approx(0.55), "half way down"
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_short_run_warms_up_for_a_tenth_at_most():
    assert learning_rate(2, TrainConfig(steps=20, warmup_steps=50, lr=1.0)) == 1.0
    assert math.isfinite(learning_rate(0, TrainConfig(steps=1)))


@pytest.mark.parametrize("family", ["gpt2", "modern"])
def test_only_matrices_decay(family):
    model = GPT(ModelConfig(family=family, depth=1, width=16, heads=2, context=8), 20)
    matrices, vectors = adamw(model, TrainConfig(weight_decay=0.3)).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))
