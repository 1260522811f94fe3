"""Practice on prompts with checkable answers: sample completions, reward them, learn what beat its group's mean.

In: a Prompts folder, the run. Out: an objective for gpt/loop.py; `logs/completions.jsonl`, what was said and earned.
Method: GRPO and its variants (gpt/losses.py), one update per batch of completions, so on-policy; prompts whose
completions all earned the same are replaced by others, as in DAPO's dynamic sampling (Yu et al. 2025).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.config import RlConfig
from gpt.data import IGNORED, key, order
from gpt.errors import UserError
from gpt.exams import Problem, problems
from gpt.generate import generate
from gpt.journal import Journal
from gpt.losses import advantages, grpo, log_probs
from gpt.model import GPT
from gpt.objectives import Numbers, Step, on, padded, reference_of
from gpt.rewards import REWARDS
from gpt.tokenizer import Tokenizer

# B completions, T time, P prompts, G completions of one prompt


@dataclass
class Rollout:
    """One prompt's completions and what each earned."""

    prompt: list[int]
    replies: list[list[int]]
    rewards: list[float]

    @property
    def teaches(self) -> bool:
        """Whether some completion did better than another."""
        return max(self.rewards) > min(self.rewards)


class Practice:
    """Completions of the model itself, weighed by their rewards."""

    def __init__(self, run: dict[str, Any], config: RlConfig, model: GPT, tokenizer: Tokenizer) -> None:
        self.config, self.model, self.tokenizer, self.waited_s = config, model, tokenizer, 0.0
        known = problems(Path(run["data"]), tokenizer, model.config.context - config.max_new_tokens)
        self.train, self.val = known["train"], known["heldout"]
        for split, rows in known.items():
            if not rows:
                way_out = "add some, or lower rl.max_new_tokens"
                raise UserError(f"no {split} prompt of {run['data']} leaves {config.max_new_tokens} tokens; {way_out}")
        self.reference = reference_of(Path(run["init"]), model) if config.beta else None
        self.said: Journal | None = None
        self.notes = Path(run["out"]) / "logs" / "completions.jsonl"

    def backward(self, step: int) -> Step:
        """One update from fresh completions; none where all prompts turned out to teach nothing."""
        c, rollouts = self.config, self._rollouts(step)
        self._note(step, rollouts[0])
        taught = [rollout for rollout in rollouts if rollout.teaches][: c.batch]
        loss, targets = self._learn(taught) if taught else (torch.zeros(()), 0)
        replies = [reply for rollout in rollouts for reply in rollout.replies]
        earned = sum(sum(rollout.rewards) for rollout in rollouts) / len(replies)
        dull = sum(not rollout.teaches for rollout in rollouts) / len(rollouts)
        numbers = {"reward": earned, "zero_variance": dull, "length": sum(map(len, replies)) / len(replies)}
        return loss, targets, {name: torch.tensor(value) for name, value in numbers.items()}

    def _rollouts(self, step: int) -> list[Rollout]:
        """Groups until a batch of them teaches something, or until they have been replaced `resample` times."""
        c, rollouts = self.config, list[Rollout]()
        for turn in range(c.resample + 1):
            missing = c.batch - sum(rollout.teaches for rollout in rollouts)
            places = order(c.seed + (turn << 32), step, c.batch, len(self.train))[1][:missing]
            first = (step * (c.resample + 1) + turn) * c.batch
            rollouts += self._sample([self.train[place] for place in places], first)
            if sum(rollout.teaches for rollout in rollouts) >= c.batch:
                break
        return rollouts

    def _sample(self, rows: list[Problem], first: int) -> list[Rollout]:
        """A group for each prompt; a completion's random numbers depend on the seed and its place alone."""
        c = self.config
        prompts = [ids for ids, _ in rows for _ in range(c.group)]
        seeds = [key(c.seed, first * c.group + n, "completion") for n in range(len(prompts))]
        replies = generate(self.model, prompts, c.max_new_tokens, temperature=c.temperature, seeds=seeds,
                           stop=self.tokenizer.stops)  # fmt: skip
        groups = [replies[at : at + c.group] for at in range(0, len(replies), c.group)]
        return [
            Rollout(ids, group, [self.reward(reply, answer) for reply in group])
            for (ids, answer), group in zip(rows, groups, strict=True)
        ]

    def reward(self, reply: list[int], answer: str) -> float:
        """The weighted sum of what a reply earns."""
        ended = reply[-1] in self.tokenizer.stops
        text = self.tokenizer.decode(reply[:-1] if ended else reply)
        return sum(getattr(self.config, name) * earn(text, answer, ended) for name, earn in REWARDS.items())

    def _learn(self, rollouts: list[Rollout]) -> tuple[Tensor, int]:
        """The loss over the groups, with its gradient, and its number of tokens."""
        c = self.config
        prompts = [rollout.prompt for rollout in rollouts for _ in rollout.replies]
        replies = [reply for rollout in rollouts for reply in rollout.replies]
        x_BT, y_BT = on(self.model, padded(prompts, replies, self.model.config.context))
        rewards_PG = torch.tensor([rollout.rewards for rollout in rollouts], device=x_BT.device)
        advantage_B, targets = advantages(rewards_PG, c.variant).flatten(), sum(map(len, replies))
        divisor = {"grpo": len(replies), "dapo": targets, "dr_grpo": len(replies) * c.max_new_tokens}[c.variant]
        rows, total = (c.micro_batch or c.batch) * c.group, torch.zeros((), device=x_BT.device)
        for x, y, advantage in zip(x_BT.split(rows), y_BT.split(rows), advantage_B.split(rows), strict=True):
            logp = log_probs(self.model.train(), x, y)
            with torch.no_grad():
                there = log_probs(self.reference, x, y) if self.reference else None
            loss = grpo(logp, logp.detach(), advantage, y != IGNORED, c.variant, divisor, there, c.beta)
            loss.backward()
            total += loss.detach()
        return total, targets

    def measure(self) -> Numbers:
        """On held-out prompts, answered greedily: share of right numbers, mean reward, mean length in tokens."""
        rows, replies = self.val[: self.config.eval_windows], list[list[int]]()
        for at in range(0, len(rows), 128):
            prompts = [ids for ids, _ in rows[at : at + 128]]
            replies += generate(
                self.model, prompts, self.config.max_new_tokens, temperature=0, stop=self.tokenizer.stops
            )
        right = [REWARDS["numeric"](self.tokenizer.decode(r), a, True) for r, (_, a) in zip(replies, rows, strict=True)]
        earned = [self.reward(reply, answer) for reply, (_, answer) in zip(replies, rows, strict=True)]
        lengths = [float(len(reply)) for reply in replies]
        named = {"val/accuracy": right, "val/reward": earned, "val/length": lengths}
        return {name: sum(values) / len(values) for name, values in named.items()}

    def prompt(self) -> list[int]:
        """The first held-out prompt."""
        return self.val[0][0]

    def _note(self, step: int, rollout: Rollout) -> None:
        """The first group of a step, for people; what a killed run had noted of this step and later ones goes."""
        self.said = self.said or Journal(self.notes, after_step=step)
        marks = set(self.tokenizer.specials.values())  # they would hide the question in a narrow column
        prompt = self.tokenizer.decode([token for token in rollout.prompt if token not in marks])
        replies = [self.tokenizer.decode(ids) for ids in rollout.replies]
        self.said.log(step + 1, {"prompt": prompt, "said": list(zip(replies, rollout.rewards, strict=True))})
