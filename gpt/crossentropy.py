"""Cross-entropy of the head without all of its logits: they are made, used and dropped some rows at a time.

In: the final stream, the head's matrix, targets. Out: what targets cost, as a sum with its gradient or one by one.
Method: a part's gradient is (softmax - one-hot) times what it came from, so it is taken while the logits are there
(Liger Kernel, Hsu et al. 2024); nothing is computed twice. torch 2.13's F.linear_cross_entropy with options gives a
wrong loss in bfloat16 on a CPU (8.81 for 9.90).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpt.data import IGNORED

# N targets, n those of one part, C channels, V vocabulary
LOGITS, ROWS = {"cpu": 2**24, "cuda": 2**29}, {"cpu": 2**10, "cuda": 2**16}
"""At most so many logits (on a CPU 64 MiB in float32, on a GPU 1 GiB in bfloat16), of so many targets, at once."""
BLOCK = {"cpu": 2**12, "cuda": 2**20}
"""Rows of the head whose gradient is made at once: memory that is asked for in large pieces is new, and slow, each
time, unless the allocator keeps it (tasks/trainer.py). Buffers for that reason too. A CPU takes .4 to .75 of the time
over full logits at a vocabulary of 50,304 (kept: .8 to 1), the same at 2,048, and 1.4 times a millisecond at 65."""


@torch.no_grad()
def costs(x_NC: Tensor, head_VC: Tensor, y_N: Tensor, vocab_size: int) -> Tensor:
    """Nats of each target, float32 [N]; 0 where IGNORED. The head's rows beyond `vocab_size` are padding."""
    near_VC, found, (rows, logits_nV, room_nV) = head_VC.to(x_NC.dtype), [], buffers(x_NC, head_VC)
    for x_nC, y_n in zip(x_NC.split(rows), y_N.split(rows), strict=True):
        product_nV = torch.mm(x_nC, near_VC.mT, out=logits_nV[: len(x_nC)])
        found.append(exponentials(product_nV, y_n, vocab_size, room_nV)[0])
    return torch.cat(found)


def summed_cost(x_NC: Tensor, head_VC: Tensor, y_N: Tensor, vocab_size: int) -> Tensor:
    """Their sum, a scalar with a gradient, for one backward pass, of the stream and the head."""
    return _SummedCost.apply(x_NC, head_VC, y_N, vocab_size)


def buffers(x_NC: Tensor, head_VC: Tensor) -> tuple[int, Tensor, Tensor | None]:
    """How many rows go together, where their logits go, and, if those are bfloat16, room for them in float32."""
    kind, size = x_NC.device.type, len(head_VC)
    rows = max(1, min(len(x_NC), ROWS[kind], LOGITS[kind] // size))
    room = kind == "cpu" and x_NC.dtype == torch.bfloat16  # compiled, it is never there as a whole
    return rows, x_NC.new_empty(rows, size), x_NC.new_empty(rows, size, dtype=torch.float32) if room else None


def exponentials(
    logits_nV: Tensor, y_n: Tensor, vocab_size: int, room_nV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Each target's cost; exp(logit - largest), perhaps in the logits' memory; the sum of that over the vocabulary."""
    exact = torch.promote_types(logits_nV.dtype, torch.float32)
    values_nV = logits_nV.to(exact) if room_nV is None else room_nV[: len(y_n)].copy_(logits_nV)
    values_nV[:, vocab_size:] = -torch.inf
    values_nV -= values_nV.amax(1, keepdim=True)
    own_n1 = values_nV.gather(1, y_n.clamp(min=0)[:, None])
    sum_n1 = values_nV.exp_().sum(1, keepdim=True)
    return (sum_n1.log() - own_n1)[:, 0] * (y_n != IGNORED), values_nV, sum_n1


def score(logits_nV: Tensor, y_n: Tensor, vocab_size: int, room_nV: Tensor | None) -> Tensor:
    """Each target's cost; logits become the slope of its cost by them, softmax - one-hot."""
    cost_n, slope_nV, sum_n1 = exponentials(logits_nV, y_n, vocab_size, room_nV)
    real_n1, target_n1 = (y_n != IGNORED)[:, None], y_n.clamp(min=0)[:, None]
    slope_nV *= real_n1 / sum_n1
    if torch.compiler.is_compiling():  # becomes part of the same pass; a scatter would be two more
        hit_nV = torch.arange(slope_nV.shape[1], device=y_n.device) == target_n1
        slope_nV -= (hit_nV & real_n1).to(slope_nV.dtype)
    else:
        slope_nV.scatter_add_(1, target_n1, -real_n1.to(slope_nV.dtype))
    logits_nV.copy_(slope_nV)
    return cost_n


@functools.cache
def compiled() -> Callable[..., Tensor]:
    """`score` in one pass or two over the logits instead of ten; compiled once for all numbers of rows."""
    fused = torch.compile(score)

    def call(logits_nV: Tensor, y_n: Tensor, vocab_size: int, room_nV: Tensor | None) -> Tensor:
        for tensor in (logits_nV, y_n):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return fused(logits_nV, y_n, vocab_size, room_nV)

    return call


class _SummedCost(torch.autograd.Function):
    """The gradient is made in the forward pass, for a cost that counts once; backward scales it."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, head_VC: Tensor, y_N: Tensor, vocab_size: int) -> Tensor:
        near_VC, (rows, logits_nV, room_nV) = head_VC.to(x_NC.dtype), buffers(x_NC, head_VC)
        dx_NC, dhead_VC = torch.empty_like(x_NC), torch.zeros_like(head_VC)
        total = torch.zeros((), device=x_NC.device, dtype=torch.float64)
        measure, block = compiled() if x_NC.is_cuda else score, BLOCK[x_NC.device.type]
        for x_nC, y_n, dx_nC in zip(x_NC.split(rows), y_N.split(rows), dx_NC.split(rows), strict=True):
            part_nV = torch.mm(x_nC, near_VC.mT, out=logits_nV[: len(x_nC)])
            total += measure(part_nV, y_n, vocab_size, room_nV).sum()
            torch.mm(part_nV, near_VC, out=dx_nC)
            for some_vC, slope_nv in zip(dhead_VC.split(block), part_nV.split(block, dim=1), strict=True):
                some_vC += slope_nv.mT @ x_nC
        ctx.gradients = dx_NC, dhead_VC
        return total.to(torch.promote_types(x_NC.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (dx_NC, dhead_VC), ctx.gradients = ctx.gradients, None
        return dx_NC.mul_(grads[0]), dhead_VC.mul_(grads[0]), None, None
