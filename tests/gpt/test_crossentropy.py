"""The head's cost in parts is F.cross_entropy's over full logits, which are never there as a whole."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from gpt import crossentropy
from gpt.config import ModelConfig
from gpt.crossentropy import IGNORED, costs, summed_cost
from gpt.model import GPT


def task(targets, width, vocab_size, padding=0, dtype=torch.float64, seed=0):
    """A stream, a head with padded rows, and targets of which a third are ignored."""
    dice = torch.Generator().manual_seed(seed)
    x = torch.randn(targets, width, generator=dice, dtype=torch.float64)
    head = torch.randn(vocab_size + padding, width, generator=dice, dtype=torch.float64)
    y = torch.randint(vocab_size, (targets,), generator=dice)
    y[torch.rand(targets, generator=dice) < 1 / 3] = IGNORED
    return x.to(dtype).requires_grad_(), head.requires_grad_(), y


def full(x, head, y, vocab_size):
    """What is to be found, by torch's own function over all logits."""
    logits = (x.double() @ head.mT)[:, :vocab_size]
    return F.cross_entropy(logits, y, ignore_index=IGNORED, reduction="sum")


def far(a, b):
    """The distance of two tensors beside the size of the second."""
    return ((a.double() - b).norm() / b.norm().clamp(min=1e-30)).item()


@pytest.fixture
def small(monkeypatch):
    """Parts of 5 targets at most and blocks of 7 rows, so that tiny shapes have several, and a last shorter one."""
    monkeypatch.setitem(crossentropy.ROWS, "cpu", 5)
    monkeypatch.setitem(crossentropy.BLOCK, "cpu", 7)


@settings(max_examples=60, deadline=None)
@given(targets=st.integers(1, 40), width=st.integers(1, 9), vocab_size=st.integers(1, 50), padding=st.integers(0, 20),
       logits=st.integers(1, 200), rows=st.integers(1, 50), block=st.integers(1, 80))  # fmt: skip
def test_cost_and_gradients_are_those_of_full_logits(targets, width, vocab_size, padding, logits, rows, block):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LOGITS": logits, "ROWS": rows, "BLOCK": block}.items():
            patch.setitem(getattr(crossentropy, name), "cpu", value)
        x, head, y = task(targets, width, vocab_size, padding)
        cost = summed_cost(x, head, y, vocab_size)
        gradients = torch.autograd.grad(3 * cost, (x, head))
        each = costs(x, head, y, vocab_size)
    expected = full(x, head, y, vocab_size)
    assert abs(cost - expected) <= 1e-12 * max(1, expected.item())
    assert abs(each.sum() - expected) <= 1e-12 * max(1, expected.item())
    assert each[y == IGNORED].eq(0).all()
    for found, wanted in zip(gradients, torch.autograd.grad(3 * expected, (x, head)), strict=True):
        assert (found - wanted).abs().max() <= 1e-12 * max(1, wanted.abs().max().item())
    assert gradients[1][vocab_size:].eq(0).all(), "padded rows are never learned"


def test_in_bfloat16_cost_and_gradients_are_exact_but_for_the_rounding_of_what_goes_in(small):
    x, head, y = task(64, 32, 300, padding=84, dtype=torch.bfloat16)
    cost = summed_cost(x, head.float(), y, 300)
    dx, dhead = torch.autograd.grad(cost, (x, head))
    rounded = x.detach().double().requires_grad_(), head.detach().bfloat16().double().requires_grad_()
    expected = full(*rounded, y, 300)
    wanted = torch.autograd.grad(expected, rounded)
    eps = 2**-8  # bfloat16's; logits of size 6 are rounded by up to 6 of these halves
    assert cost.dtype == torch.float32
    assert abs(cost - expected) < eps * expected
    assert (dx.dtype, far(dx, wanted[0]) < 3 * eps) == (torch.bfloat16, True), far(dx, wanted[0])
    assert far(dhead, wanted[1]) < 3 * eps, far(dhead, wanted[1])


def test_a_certain_token_costs_no_more_than_it_should():
    x, head = torch.tensor([[100.0], [-100.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    cost = summed_cost(x, head, torch.tensor([0, 0]), 2)
    assert cost.item() == 200, "0 for the certain one, 200 nats for the other, nothing over- or underflows"
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(cost, (x, head)))


def test_compiled_as_on_a_gpu_it_is_the_same_and_compiled_once(monkeypatch):
    counter, compile_with = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_with(function, backend=counter, fullgraph=True))
    crossentropy.compiled.cache_clear()
    fused = crossentropy.compiled()
    for rows in (16, 16, 3, 8):
        _, _, y = task(rows, 4, 100)
        logits = torch.randn(rows, 128, dtype=torch.float64)
        again = logits.clone()
        with torch.no_grad():
            cost, expected = fused(logits, y, 100, None), crossentropy.score(again, y, 100, None)
        assert torch.allclose(cost, expected, rtol=0, atol=1e-12)
        assert torch.allclose(logits, again, rtol=0, atol=1e-12)
    crossentropy.compiled.cache_clear()
    assert counter.frame_count == 1, "a last shorter part is no reason to compile again"


class Largest(TorchDispatchMode):
    """The most numbers that any tensor had that was made meanwhile."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
def test_a_model_of_a_large_vocabulary_never_has_more_logits_than_stated(monkeypatch, compute):
    monkeypatch.setitem(crossentropy.LOGITS, "cpu", 2**18)
    model, vocab_size, shape = GPT(ModelConfig(depth=1, width=8, heads=2, context=64), 16_000), 16_000, (8, 64)
    model.compute, ids = compute, torch.randint(vocab_size, shape)
    stated, whole, weights = 2**18, math.prod(shape) * vocab_size, model.head().numel()
    assert weights < stated < whole / 30
    with Largest() as training:
        model(ids, target_BT=ids).backward()
    with Largest() as scoring:
        model.costs(ids, ids)
    assert training.numbers <= stated, f"{training.numbers} numbers in one tensor"
    assert scoring.numbers <= stated, f"{scoring.numbers} numbers in one tensor"
    with Largest() as naive:
        model(ids)
    assert naive.numbers >= whole, "the measurement sees full logits where they are made"


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("vocab_size", [65, 2048, 50_304, 200_000])
def test_what_is_stated_holds_for_every_vocabulary(monkeypatch, kind, vocab_size):
    for stated in (crossentropy.LOGITS, crossentropy.ROWS):
        monkeypatch.setitem(stated, "meta", stated[kind])  # tensors without memory stand in for the real ones
    x, head = torch.empty(2**17, 4, device="meta"), torch.empty(vocab_size, 4, device="meta")
    rows, logits, _ = crossentropy.buffers(x, head)
    assert 0 < logits.numel() == rows * vocab_size <= crossentropy.LOGITS[kind]
