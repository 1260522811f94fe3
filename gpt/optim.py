"""The optimisers and their schedules: AdamW for all, or Muon for the blocks' matrices with AdamW for the rest.

In: a model and its `TrainConfig`. Out: the optimisers, and the learning rate's course as a pure function of the step.
Method: AdamW (Loshchilov 2019) with decay on matrices only; Muon (Jordan 2024) with the polar factor by Polar Express
(Amsel et al. 2025) and cautious decay (Chen et al. 2025); cosine (GPT-3) or warm-up, stable, decay (Hu et al. 2024).
"""

import math
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gpt.config import TrainConfig

# M matrices of one shape, R rows, C columns
POLAR = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""Odd polynomials a x + b x^3 + c x^5, one after the other; each is the best there is on what the last one left."""
AT_ONCE = 2**27
"""Numbers worked on together: half a gigabyte, of which some six copies exist for a moment."""
SLACK = 1.01
"""bfloat16 leaves singular values a little above what a polynomial was made for, where it grows fast."""
SAFE = [(a / SLACK, b / SLACK**3, c / SLACK**5) for a, b, c in POLAR[:-1]] + [POLAR[-1]]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is replaced by its polar factor, so that all directions of an update weigh the same.

    Matrices of one shape are worked on together. `skip` (a bool tensor on the device) leaves everything as it was.
    """

    skip: Tensor | None = None

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # ty: ignore[incompatible-method-override]
        """Update all matrices."""
        for group in self.param_groups:
            alike = defaultdict[torch.Size, list[Tensor]](list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for matrices in alike.values():
                size = max(1, AT_ONCE // matrices[0].numel())
                for at in range(0, len(matrices), size):
                    self._update(matrices[at : at + size], group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, matrices: list[Tensor], lr: float, decay: float, momentum: float) -> None:
        grad_MRC = torch.stack([matrix.grad for matrix in matrices])  # ty: ignore[invalid-argument-type]
        held = [self.state[matrix].setdefault("momentum", torch.zeros_like(matrix)) for matrix in matrices]
        held_MRC = torch.stack(held).lerp_(grad_MRC, 1 - momentum)
        step_MRC = polar(grad_MRC.lerp_(held_MRC, momentum)) * max(1, grad_MRC.shape[1] / grad_MRC.shape[2]) ** 0.5
        old_MRC = torch.stack(matrices)
        step_MRC = lr * (step_MRC + decay * old_MRC * (step_MRC * old_MRC >= 0))  # no decay against the update
        if self.skip is not None:
            step_MRC, held_MRC = (
                torch.where(self.skip, 0, step_MRC),
                torch.where(self.skip, torch.stack(held), held_MRC),
            )
        torch._foreach_copy_(held, list(held_MRC))
        torch._foreach_sub_(matrices, list(step_MRC))


def polar(x_MRC: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows or columns, in bfloat16 products; float32."""
    tall = x_MRC.shape[1] > x_MRC.shape[2]
    x = (x_MRC.mT if tall else x_MRC).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * SLACK + 1e-7)
    for a, b, c in SAFE:
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


def optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW over all parameters, or Muon over the blocks' matrices and AdamW, at its own rate, over the rest.

    What has one dimension, norms' weights and biases, is not decayed, and beside Muon nothing else is.
    """
    muon = config.optimizer == "muon"
    named = dict(model.named_parameters())
    inner = [p for name, p in named.items() if muon and p.dim() == 2 and name.startswith("h.")]
    rest = [p for name, p in named.items() if not (muon and p.dim() == 2 and name.startswith("h."))]
    decay, lr = (0.0, config.adam_lr) if muon else (config.weight_decay, config.lr)
    matrices, vectors = [p for p in rest if p.dim() >= 2], [p for p in rest if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=lr, betas=(config.beta1, config.beta2), fused=True)
    found: list[torch.optim.Optimizer] = [Muon(inner, config.lr, config.weight_decay)] if muon else []
    for optimizer in (chosen := [*found, adamw]):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return chosen


def update(chosen: list[torch.optim.Optimizer], skip: Tensor) -> None:
    """One step of all with the gradients that are there, which then go; none where `skip` (a bool) is true."""
    for optimizer in chosen:
        optimizer.__dict__ |= {"skip": skip, "found_inf": skip.float()}  # Muon's word for it, and the fused AdamW's
        optimizer.step()
        optimizer.zero_grad()


def groups(chosen: list[torch.optim.Optimizer]) -> Iterator[dict]:
    """The parameter groups of all."""
    return (group for optimizer in chosen for group in optimizer.param_groups)


def course(step: int, config: TrainConfig) -> float:
    """The share of its peak that the rate of update number `step` (from 0) has: up in the warm-up, down at the end."""
    warmup = min(config.warmup_steps, config.steps // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    low = config.min_lr_ratio
    if config.schedule == "wsd":
        left, last = config.steps - step, max(1, round(config.steps * config.cooldown))
        return low + (1 - low) * min(1.0, left / last)
    done = (step - warmup) / max(1, config.steps - 1 - warmup)
    return low + (1 - low) * (1 + math.cos(math.pi * done)) / 2
