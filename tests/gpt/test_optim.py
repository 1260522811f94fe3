"""The schedules as pure functions of the step; what decays and what does not; Muon against the singular vectors."""

import math

import pytest
import torch

from gpt.config import ModelConfig, PretrainConfig, TrainConfig
from gpt.model import GPT
from gpt.optim import Muon, course, optimizers, polar, update

CONFIG = TrainConfig(steps=100, warmup_steps=10, min_lr_ratio=0.1)


def test_the_rate_rises_then_follows_a_cosine_to_its_floor():
    rates = [course(step, CONFIG) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert rates[99] == pytest.approx(0.1)
    middle = 10 + 89 / 2
    assert course(middle, CONFIG) == pytest.approx(0.55), "half way down"
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_wsd_stays_at_the_top_and_then_goes_down_in_a_straight_line():
    config = TrainConfig(steps=100, warmup_steps=10, schedule="wsd", cooldown=0.2, min_lr_ratio=0.0)
    rates = [course(step, config) for step in range(100)]
    assert rates[10:81] == [1.0] * 71
    assert rates[81:] == pytest.approx([n / 20 for n in range(19, 0, -1)])


def test_a_short_run_warms_up_for_a_tenth_at_most():
    assert course(2, TrainConfig(steps=20, warmup_steps=50)) == 1.0
    assert math.isfinite(course(0, TrainConfig(steps=1)))


@pytest.mark.parametrize("family", ["gpt2", "modern"])
def test_only_matrices_decay(family):
    model = GPT(ModelConfig(family=family, depth=1, width=16, heads=2, context=8), 20)
    matrices, vectors = optimizers(model, TrainConfig(weight_decay=0.3))[0].param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = GPT(ModelConfig(depth=2, width=16, heads=2, context=8, tied=False), 20)
    muon, adamw = optimizers(model, PretrainConfig(steps=1, batch=1, lr=0.02, adam_lr=0.004, weight_decay=0.3))
    names = {parameter: name for name, parameter in model.named_parameters()}
    blocks = {names[p] for p in muon.param_groups[0]["params"]}
    assert blocks == {
        f"h.{n}.{part}.weight" for n in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.up", "mlp.down")
    }
    rest = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert blocks | rest == set(names.values())
    assert not blocks & rest
    assert [group["lr"] for group in adamw.param_groups] == [0.004, 0.004]
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 96, 32), (1, 32, 96)])
def test_the_polar_factor_has_the_singular_vectors_and_every_value_near_one(shape):
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    s = s.clamp(min=0.05 * s.max())  # five polynomials lift no smaller one to the top
    found = u.mT @ polar(u * s[:, None] @ v) @ v.mT
    values = found.diagonal(dim1=1, dim2=2)
    assert 0.8 < values.min() < values.max() < 1.2
    assert (found - values.diag_embed()).abs().max() < 0.05, "only the values change"


def test_one_step_of_muon_is_what_its_definition_says():
    torch.manual_seed(0)
    old, grad = torch.randn(12, 4), torch.randn(12, 4)
    matrix = torch.nn.Parameter(old.clone())
    matrix.grad = grad.clone()
    optimizer = Muon([matrix], lr=0.1, weight_decay=0.5)
    optimizer.step()
    step = polar((0.05 * grad * 0.95 + 0.05 * grad)[None])[0] * 3**0.5  # momentum from nothing, then Nesterov's look
    step = step + 0.5 * old * (step * old >= 0)
    assert torch.allclose(matrix, old - 0.1 * step, atol=0.02), (matrix - old + 0.1 * step).abs().max()
    assert torch.allclose(optimizer.state[matrix]["momentum"], 0.05 * grad)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_skipped_step_leaves_weights_and_moments_as_they_were(kind):
    torch.manual_seed(0)
    model = GPT(ModelConfig(depth=1, width=16, heads=2, context=8), 20)
    chosen = optimizers(model, PretrainConfig(steps=1, batch=1, lr=0.02, adam_lr=0.004, optimizer=kind))

    def step(value, skip):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        update(chosen, torch.tensor(skip))
        slots = [v for optimizer in chosen for slot in optimizer.state.values() for v in slot.values()]
        return [p.detach().clone() for p in (*model.parameters(), *slots)]

    before = step(0.1, False)
    after = step(math.nan, True)
    assert all(map(torch.equal, before, after))
    assert not all(map(torch.equal, before, step(0.1, False)))


def test_muon_leaves_matrices_without_a_gradient_alone():
    matrices = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    matrices[0].grad = torch.eye(4)
    Muon(matrices, lr=0.1, weight_decay=0.0).step()
    assert not torch.equal(matrices[0], torch.ones(4, 4))
    assert torch.equal(matrices[1], torch.ones(4, 4))
