"""Post-training losses against numbers worked by hand; test_oracle.py holds them to TRL where that is installed."""

import math

import pytest
import torch

from gpt.config import ModelConfig
from gpt.data import IGNORED
from gpt.losses import advantages, dpo, grpo, log_probs
from gpt.model import GPT


def test_log_probabilities_are_those_of_the_softmax_and_zero_where_nothing_is_scored():
    torch.manual_seed(0)
    model = GPT(ModelConfig(depth=1, width=16, heads=2, context=8), 11)
    x_BT, y_BT = torch.randint(11, (3, 8)), torch.randint(11, (3, 8))
    y_BT[torch.rand(3, 8) < 0.5] = IGNORED
    whole = model(x_BT).log_softmax(-1).gather(2, y_BT.clamp(min=0)[..., None])[..., 0]
    expected = torch.where(y_BT == IGNORED, 0.0, whole)
    assert (log_probs(model, x_BT, y_BT) - expected).abs().max() < 1e-6


def test_dpo_of_worked_numbers():
    policy, reference = torch.tensor([-1.0, -2.0, -3.0, -2.0]), torch.tensor([-1.0, -2.0, -1.0, -2.0])
    won, even = dpo(policy, reference, beta=0.5).tolist()  # margins 2 and 0
    assert won == pytest.approx(math.log(1 + math.exp(-1)))
    assert even == pytest.approx(math.log(2))


def test_advantages_are_relative_to_the_group():
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert advantages(rewards_PG, "dr_grpo").tolist() == [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0]]
    deviation = math.sqrt(1 / 3) + 1e-4
    assert advantages(rewards_PG, "grpo")[0].tolist() == pytest.approx([x / deviation for x in (0.5, -0.5, -0.5, 0.5)])
    assert advantages(rewards_PG, "dapo")[1].abs().max() == 0, "a group of equals teaches nothing"


@pytest.mark.parametrize(
    ("variant", "divisor", "expected"),
    [("grpo", 2, (-1 * 1 + 2 * 1) / 2), ("dapo", 4, (-1 * 3 + 2 * 1) / 4), ("dr_grpo", 2 * 5, (-1 * 3 + 2 * 1) / 10)],
)
def test_each_variant_weighs_lengths_in_its_way(variant, divisor, expected):
    logp = torch.zeros(2, 3)
    scored = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    assert grpo(logp, logp, torch.tensor([1.0, -2.0]), scored, variant, divisor).item() == pytest.approx(expected)


def test_a_ratio_beyond_the_clip_has_no_gradient_and_the_reference_pulls():
    logp = torch.tensor([[0.5, 0.0]], requires_grad=True)
    old, scored = torch.zeros(1, 2), torch.ones(1, 2).bool()
    grpo(logp, old, torch.tensor([1.0]), scored, "dapo", 2).backward()
    assert logp.grad.tolist() == [[0.0, -0.5]], "exp(0.5) lies beyond 1.2"
    k3 = math.exp(-0.5) + 0.5 - 1
    loss = grpo(logp.detach(), logp.detach(), torch.tensor([0.0]), scored, "dapo", 2, old, beta=0.1)
    assert loss.item() == pytest.approx(0.1 * k3 / 2)
