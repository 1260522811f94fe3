"""The demo's arithmetic: sums of two-digit numbers without a carry, each pair of operands dealt to one hand for ever.

In: a hand: `heldout` scores, `sft` shows how, `rl` practises. Out: sums as text. A pair and its mirror image share a
hand, so that no sum which is scored was seen in training, in either order. 1,980 sums, three tenths of them held out.
"""

from collections.abc import Iterator

from tasks.shard import lot

HANDS = {"heldout": (0.0, 0.3), "sft": (0.3, 0.65), "rl": (0.65, 1.0)}
PHRASINGS = ("What is {}?", "Compute {}.", "How much is {}?", "Please work out {}.")


def sums(hand: str) -> Iterator[tuple[str, str]]:
    """(sum, result) of each pair in the hand, in an order that tells nothing: ("34 + 52", "86")."""
    low, high = HANDS[hand]
    tens_units = ((a, b) for a in range(10, 100) for b in range(10, 100) if a // 10 + b // 10 < 10 > a % 10 + b % 10)
    dealt = [(a, b) for a, b in tens_units if low <= lot(f"sum {min(a, b)} {max(a, b)}") < high]
    yield from ((f"{a} + {b}", str(a + b)) for a, b in sorted(dealt, key=lambda pair: lot(str(pair))))


def question(sum_: str, draw: int = 0) -> str:
    """The sum in one of the phrasings; four draws give all of them."""
    return PHRASINGS[int(lot(sum_) * len(PHRASINGS)) - draw].format(sum_)


def solved(sum_: str, result: str) -> str:
    """The reply that a model should give."""
    return f"{sum_} = {result}."
