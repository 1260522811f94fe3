"""Rewards: plain functions from what a model said to a number; a recipe names them with weights.

In: the reply as text, the right answer, whether the reply came to its end. Out: 0.0 to 1.0. Nothing is evaluated as
code: numbers are read by a pattern (GSM8K's, with thousands commas) and compared as decimals.
"""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from gpt.errors import UserError

Reward = Callable[[str, str, bool], float]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def number(text: str) -> Decimal | None:
    """The last number in a text, None where there is none: `so 1,234.50.` is 1234.5."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def exact(reply: str, answer: str, ended: bool) -> float:
    """Whether the reply is the answer to the letter, but for blanks around it."""
    return float(reply.strip() == answer.strip())


def numeric(reply: str, answer: str, ended: bool) -> float:
    """Whether the reply's last number equals the answer's last number."""
    return float(number(answer) is not None and number(reply) == number(answer))


def form(reply: str, answer: str, ended: bool) -> float:
    """Whether the reply says something, with a number in it, and comes to its end."""
    return float(ended and number(reply) is not None)


REWARDS: dict[str, Reward] = {"exact": exact, "numeric": numeric, "format": form}


def check(weights: Mapping[str, float]) -> None:
    """UserError for a name that is no reward."""
    if odd := weights.keys() - REWARDS.keys():
        raise UserError(f"rl.rewards: {min(odd)} is no reward; there are {', '.join(REWARDS)}")


def reward(weights: Mapping[str, float], reply: str, answer: str, ended: bool) -> float:
    """The weighted sum."""
    return sum(weight * REWARDS[name](reply, answer, ended) for name, weight in weights.items())
