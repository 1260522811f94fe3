"""What post-training minimises, as pure functions of log-probabilities: DPO on pairs, GRPO on sampled completions.

In: log-probabilities of targets, rewards. Out: a scalar loss. Methods: DPO (Rafailov et al. 2023, eq. 7); GRPO
(DeepSeekMath, Shao et al. 2024), Dr. GRPO (Liu et al. 2025), DAPO (Yu et al. 2025). TRL 1.16 gives the same numbers.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.data import IGNORED
from gpt.model import GPT

# B batch (rows), T time, N scored targets, V vocabulary, G completions of one prompt
Variant = Literal["grpo", "dr_grpo", "dapo"]


def log_probs(model: GPT, x_BT: Tensor, y_BT: Tensor) -> Tensor:
    """log p of each target given what stands before it, [B, T] float32; 0 where the target is ignored.

    The head runs on scored positions only: on a chat batch it would else cost more than the blocks.
    """
    scored_BT = y_BT != IGNORED
    costs_N = F.cross_entropy(model.logits(model.stream(x_BT)[scored_BT]), y_BT[scored_BT], reduction="none")
    return torch.zeros(y_BT.shape, device=y_BT.device).masked_scatter(scored_BT, -costs_N)


def dpo(policy_B: Tensor, reference_B: Tensor, beta: float) -> Tensor:
    """-log sigmoid of each pair's margin, [B / 2]: how much more than the reference the policy prefers the chosen.

    Rows are sums of log-probabilities over an answer, chosen ones first, then the rejected in the same order.
    """
    chosen, rejected = (policy_B - reference_B).chunk(2)
    return -F.logsigmoid(beta * (chosen - rejected))


def advantages(rewards_PG: Tensor, variant: Variant) -> Tensor:
    """A completion's reward against its group's mean, [P, G]; in units of the group's deviation, but for Dr. GRPO."""
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    return centred_PG if variant == "dr_grpo" else centred_PG / (rewards_PG.std(1, keepdim=True) + 1e-4)


def grpo(
    logp_BT: Tensor, old_BT: Tensor, advantage_B: Tensor, scored_BT: Tensor, variant: Variant, divisor: float,
    reference_BT: Tensor | None = None, beta: float = 0.0, clip: float = 0.2,
) -> Tensor:  # fmt: skip
    """The clipped policy-gradient loss of some rows, their share of the step's: the parts of a step add up to it.

    `divisor` is of the whole step: its completions (grpo: a mean of means), its completion tokens (dapo), or its
    completions times the longest that is allowed (dr_grpo). `beta` weighs the KL to the reference (estimator k3).
    """
    ratio_BT, advantage_B1 = (logp_BT - old_BT).exp(), advantage_B[:, None]
    loss_BT = -torch.minimum(ratio_BT * advantage_B1, ratio_BT.clamp(1 - clip, 1 + clip) * advantage_B1)
    if reference_BT is not None:
        loss_BT = loss_BT + beta * ((reference_BT - logp_BT).exp() - (reference_BT - logp_BT) - 1)
    loss_BT = loss_BT * scored_BT
    if variant == "grpo":
        loss_BT = loss_BT / scored_BT.sum(1, keepdim=True).clamp(min=1)
    return loss_BT.sum() / divisor
