"""Examinations whose answers can be counted: preferences on held-out pairs, problems with one right number.

In: a Pairs or a Prompts folder, models. Out: rows {measure, who, value, low, high, n}, trivial baselines among them.
Method: a pair is won where the chosen answer has the higher mean log-probability; intervals are Wilson's (1927).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt.chat import render
from gpt.data import IGNORED, Pairs, both
from gpt.generate import generate
from gpt.heldout import batches
from gpt.losses import log_probs
from gpt.model import GPT
from gpt.rewards import number, numeric
from gpt.tokenizer import Tokenizer

Row = dict[str, Any]
Problem = tuple[list[int], str]
"""A prompt's ids and the right answer."""


def problems(folder: Path, tokenizer: Tokenizer, longest: int) -> dict[str, list[Problem]]:
    """The prompts of a Prompts folder by split (train, heldout), those above `longest` tokens left out."""
    found: dict[str, list[Problem]] = {"train": [], "heldout": []}
    for row in map(json.loads, (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()):
        ids = render(tokenizer, row["messages"], reply=True)[0]
        found[row["split"]] += [(ids, row["answer"])] if len(ids) <= longest else []
    return found


class PairExam:
    """Held-out pairs: which of two answers does a model find likelier?"""

    def __init__(self, folder: Path, context: int, count: int) -> None:
        self.data = Pairs(folder, context)
        self.chosen = self.data.val[::2][:count]
        self.lengths = np.array([np.count_nonzero(self.data.mask[a:b]) for a, b in self.data.spans])[both(self.chosen)]

    def baselines(self) -> list[Row]:
        """Whoever takes the longer answer, or the shorter one; half a point where both are alike."""
        longer = np.sign(self.lengths[: len(self.chosen)] - self.lengths[len(self.chosen) :]) / 2 + 0.5
        return [*share("longer answer", "pair_accuracy", longer), *share("shorter answer", "pair_accuracy", 1 - longer)]

    def scores(self, who: str, model: GPT) -> list[Row]:
        """The share of pairs whose chosen answer has the higher mean."""
        means = []
        for at in batches(f"{who}: pair", len(self.chosen), 32, silent_s=5):
            x_BT, y_BT = self.data.padded(both(self.chosen[at]))
            device = model.wte.weight.device
            with torch.no_grad():
                logp = log_probs(model.eval(), torch.from_numpy(x_BT).to(device), torch.from_numpy(y_BT).to(device))
            means.append((logp.sum(1).cpu().numpy() / (y_BT != IGNORED).sum(1)).reshape(2, -1))
        chosen, rejected = np.concatenate(means, axis=1)
        return share(who, "pair_accuracy", chosen > rejected)


class ProblemExam:
    """Held-out problems, answered greedily: is the reply's last number the right one?"""

    def __init__(self, folder: Path, tokenizer: Tokenizer, context: int, tokens: int, count: int) -> None:
        self.problems, self.tokenizer = problems(folder, tokenizer, context - tokens)["heldout"][:count], tokenizer
        self.tokens = tokens

    def baselines(self) -> list[Row]:
        """Whoever always says the commonest answer."""
        answers = [number(answer) for _, answer in self.problems]
        most = max(set(answers), key=answers.count, default=None)
        return share("constant answer", "arithmetic", [answer == most for answer in answers])

    def scores(self, who: str, model: GPT) -> list[Row]:
        """The share of problems with the right number."""
        right: list[float] = []
        for at in batches(f"{who}: problem", len(self.problems), 128, silent_s=5):
            asked, stop = self.problems[at], self.tokenizer.stops
            replies = generate(model, [ids for ids, _ in asked], self.tokens, temperature=0, stop=stop)
            said = map(self.tokenizer.decode, replies)
            right += [numeric(reply, answer, True) for reply, (_, answer) in zip(said, asked, strict=True)]
        return share(who, "arithmetic", right)


def share(who: str, measure: str, hits: Sequence[float] | np.ndarray, z: float = 1.96) -> list[Row]:
    """How often something held, with Wilson's 95 % interval; no row where nothing was asked."""
    if not len(hits):
        return []
    n, p = len(hits), sum(hits) / len(hits)
    middle, reach = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (max(0.0, end / (1 + z**2 / n)) for end in (middle - reach, middle + reach))
    return [row(who, measure, p, n) | {"low": round(low, 6), "high": round(high, 6)}]


def row(who: str, measure: str, value: float, n: int) -> Row:
    """One line of the scores; six decimals, so that another number of threads rarely shows."""
    return {"measure": measure, "who": who, "value": round(float(value), 6), "low": None, "high": None, "n": n}
