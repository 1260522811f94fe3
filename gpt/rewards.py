"""Rewards: plain functions from what a model said to a number between 0 and 1; a recipe weighs them by name.

In: the reply as text, the right answer, whether the reply came to its end. Nothing is evaluated as code: numbers are
read by a pattern (thousands commas as in GSM8K) and compared as decimals.
"""

import re
from collections.abc import Callable
from decimal import Decimal

Reward = Callable[[str, str, bool], float]
NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3})?")


def number(text: str) -> Decimal | None:
    """The last number in a text, None where there is none: `so 1,234.50.` is 1234.5."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def exact(reply: str, answer: str, ended: bool) -> float:
    """Whether the reply is the answer to the letter, but for blanks around it."""
    return float(reply.strip() == answer.strip())


def numeric(reply: str, answer: str, ended: bool) -> float:
    """Whether the reply's last number equals the answer's last number."""
    return float(number(answer) is not None and number(reply) == number(answer))


def form(reply: str, answer: str, ended: bool) -> float:
    """Whether the reply has a number in it and comes to its end."""
    return float(ended and number(reply) is not None)


REWARDS: dict[str, Reward] = {"exact": exact, "numeric": numeric, "form": form}
"""By the field of RlConfig that weighs each."""
