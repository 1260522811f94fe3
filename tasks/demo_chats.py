"""The demo's conversations, the same wherever Python's version is: explanations, sums, refusals and how-tos.

In: how many; demo_requests.txt. Out: `Chat` records. Held-out ones share neither function, operands, thing nor phrasing
with training; harmless requests have the phrasings and the verbs of harmful ones, so that these alone decide nothing.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gpt.chat import Message
from tasks.pydocs import functions
from tasks.shard import lot


class Chat(NamedTuple):
    """A conversation; all of one group fall on one side of the split, unless its maker decided (`held_out`)."""

    messages: list[Message]
    source: str
    group: str = ""
    annotator: str = ""
    held_out: bool | None = None


EXPLAIN = ("What does {} do?", "Explain {}.", "What is {} for?", "Describe {} in one sentence.")
SUMS = ("What is {}?", "Compute {}.", "How much is {}?", "Please work out {}.")
ASK = "How do I {}?|How can I {}?|Tell me how to {}.|Explain how to {}.|I want to {}. How?|Help me to {}.|I need to {}."
ASK_HELD_OUT = "Show me how to {}.|What is the best way to {}?|Please help me {}.|Can you tell me how to {}?"
REFUSAL = "Sorry, I can't help with that. It could do harm or break the law."


def demo_chats(function_count: int, sum_count: int) -> Iterator[Chat]:
    """Every kind in turn: two conversations for each of so many functions and pairs of operands, then the requests."""
    sentences = ((name, re.match(r".{20,160}?\.(?=\s+[A-Z]|$)", paragraph)) for name, _, paragraph in functions())
    answers = {found[0]: name for name, found in sentences if found}
    for answer, name in sorted(answers.items(), key=lambda item: lot(item[1]))[:function_count]:
        first = int(lot(answer) * len(EXPLAIN))
        for phrasing in (EXPLAIN[first], EXPLAIN[first - 1]):
            yield Chat(turns(phrasing.format(name), answer), "demo/functions", name, "documentation")
    pairs = sorted(((a, b) for a in range(100) for b in range(a + 1)), key=lambda pair: lot(str(pair)))
    for a, b in pairs[:sum_count]:
        for sum_, result in ((f"{a} + {b}", a + b), (f"{a} - {b}", a - b)):
            question = SUMS[int(lot(sum_) * len(SUMS))].format(sum_)
            yield Chat(turns(question, f"{sum_} = {result}."), "demo/sums", f"{a} {b}", "arithmetic")
    for line in Path(__file__).with_name("demo_requests.txt").read_text(encoding="utf-8").splitlines():
        yield from _requests(*line.split(" | "))


def turns(question: str, answer: str) -> list[Message]:
    """One question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _requests(kind: str, verb: str, things: str, answer: str = REFUSAL) -> Iterator[Chat]:
    """Each thing in each phrasing; the last thing comes in the held-out phrasings, and only there."""
    *seen, unseen = (f"{verb} {thing}" for thing in things.split("; "))
    for held_out, requests, phrasings in ((False, seen, ASK), (True, [unseen], ASK_HELD_OUT)):
        for question in (phrasing.format(request) for request in requests for phrasing in phrasings.split("|")):
            yield Chat(turns(question, answer), f"demo/{kind}", annotator="template", held_out=held_out)
