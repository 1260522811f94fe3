"""The optimiser and its schedule: AdamW with decay on matrices only, linear warm-up, then a cosine (after GPT-3).

In: a model and its `TrainConfig`. Out: the optimiser, and the learning rate as a pure function of the step.
"""

import math

import torch
from torch import nn

from gpt.config import TrainConfig


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters; norms' weights and biases, which have one dimension, are not decayed."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of update number `step` (from 0): up to lr over the warm-up, down to lr x min_lr_ratio at the last."""
    warmup = min(config.warmup_steps, config.steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, config.steps - 1 - warmup)
    low = config.lr * config.min_lr_ratio
    return low + (config.lr - low) * (1 + math.cos(math.pi * done)) / 2
