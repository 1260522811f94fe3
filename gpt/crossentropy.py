"""Cross-entropy of the head without all of its logits: they are made, used and dropped some rows at a time.

In: the final stream, the head's matrix, targets. Out: what targets cost, as a sum with its gradient or one by one.
Method: a part's gradient is (softmax - one-hot) times what it came from, so it is taken while the logits are there
(Liger Kernel, Hsu et al. 2024); nothing is computed twice. torch 2.13's F.linear_cross_entropy with options gives a
wrong loss in bfloat16 on a CPU (8.81 for 9.90).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gpt.data import IGNORED

# N targets, n those of one part, C channels, V vocabulary
LOGITS = {"cpu": 2**23, "cuda": 2**29}
"""As many logits are there at once: 32 MiB in float32, on a GPU 2 GiB."""


def costs(x_NC: Tensor, head_VC: Tensor, y_N: Tensor, vocab_size: int) -> Tensor:
    """Nats of each target, float32 [N]; 0 where IGNORED. The head's rows beyond `vocab_size` are padding."""
    near_VC = head_VC.to(x_NC.dtype)
    return torch.cat([score(x_NC[at] @ near_VC.mT, y_N[at], vocab_size)[0] for at in parts(x_NC, head_VC)])


def summed_cost(x_NC: Tensor, head_VC: Tensor, y_N: Tensor, vocab_size: int) -> Tensor:
    """Their sum, a scalar with a gradient for the stream and the head."""
    return _SummedCost.apply(x_NC, head_VC, y_N, vocab_size)


def parts(x_NC: Tensor, head_VC: Tensor) -> Iterator[slice]:
    """Rows that go together."""
    rows = max(1, LOGITS[x_NC.device.type] // len(head_VC))
    return (slice(begin, begin + rows) for begin in range(0, len(x_NC), rows))


def score(logits_nV: Tensor, y_n: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Each target's cost, and the cost's slope by each logit: softmax - one-hot. The logits' memory is used again."""
    real_n, target_n1 = y_n != IGNORED, y_n.clamp(min=0)[:, None]
    values_nV = logits_nV.to(torch.promote_types(logits_nV.dtype, torch.float32))
    values_nV[:, vocab_size:] = -torch.inf
    values_nV -= values_nV.logsumexp(1, keepdim=True)
    cost_n = -values_nV.gather(1, target_n1)[:, 0] * real_n
    slope_nV = values_nV.exp_()
    slope_nV.scatter_add_(1, target_n1, -torch.ones_like(target_n1, dtype=slope_nV.dtype))
    return cost_n, slope_nV.mul_(real_n[:, None])


class _SummedCost(torch.autograd.Function):
    """The gradient is made in the forward pass, for a cost that counts once; backward scales it."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, head_VC: Tensor, y_N: Tensor, vocab_size: int) -> Tensor:
        near_VC, total = head_VC.to(x_NC.dtype), torch.zeros((), device=x_NC.device, dtype=torch.float64)
        dx_NC, dhead_VC = torch.empty_like(x_NC), torch.zeros_like(head_VC)
        fused = torch.compile(score) if x_NC.is_cuda else score  # one pass over the logits instead of seven
        for at in parts(x_NC, head_VC):
            cost_n, slope_nV = fused(x_NC[at] @ near_VC.mT, y_N[at], vocab_size)
            slope_nV, total = slope_nV.to(x_NC.dtype), total + cost_n.sum()
            dx_NC[at] = slope_nV @ near_VC
            dhead_VC += slope_nV.mT @ x_NC[at]
        ctx.save_for_backward(dx_NC, dhead_VC)
        return total.to(torch.promote_types(x_NC.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dx_NC, dhead_VC = ctx.saved_tensors
        return dx_NC * grads[0], dhead_VC * grads[0], None, None
