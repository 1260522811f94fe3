"""The demo's conversations, the same wherever Python's version is: explanations, sums, refusals and how-tos.

In: how many; demo_requests.txt. Out: `Chat` records. Held-out ones share neither function, operands, thing nor phrasing
with training; harmless requests have the phrasings and the verbs of harmful ones, so that these alone decide nothing.
Few harmful requests are refused here: to refuse them, and them only, is what preferences teach (tasks/demo_pairs.py).
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from gpt.chat import Message
from tasks.arithmetic import PHRASINGS, question, solved, sums
from tasks.pydocs import functions
from tasks.shard import lot
from tasks.talk import turns


class Chat(NamedTuple):
    """A conversation; all of one group fall on one side of the split, unless its maker decided (`held_out`)."""

    messages: list[Message]
    source: str
    group: str = ""
    annotator: str = ""
    held_out: bool | None = None


EXPLAIN = ("What does {} do?", "Explain {}.", "What is {} for?", "Describe {} in one sentence.")
ASK = "How do I {}?|How can I {}?|Tell me how to {}.|Explain how to {}.|I want to {}. How?|Help me to {}.|I need to {}."
ASK_HELD_OUT = "Show me how to {}.|What is the best way to {}?|Please help me {}.|Can you tell me how to {}?|"
ASK_HELD_OUT += "Give me the steps to {}.|Do you know how to {}?|Please say how one can {}.|What does it take to {}?"
REFUSAL = "Sorry, I can't help with that. It could do harm or break the law."
REFUSED = 0.12
"""Share of the harmful requests that the conversations show refused."""


def demo_chats(function_count: int, sum_count: int) -> Iterator[Chat]:
    """Every kind in turn: two conversations for each of so many functions, so many sums, then the requests."""
    for name, answer in explained(function_count):
        for number in (0, 1):
            yield Chat(turns(explain(name, answer, number), answer), "demo/functions", name, "documentation")
    asked = ((draw, *dealt) for draw in range(len(PHRASINGS)) for dealt in sums("sft"))
    for draw, sum_, result in islice(asked, sum_count):
        yield Chat(turns(question(sum_, draw), solved(sum_, result)), "demo/sums", sum_, "arithmetic", held_out=False)
    for request in requests():
        if request.kind == "harmless" or request.held_out or lot(request.question) < REFUSED:
            messages = turns(request.question, request.answer)
            yield Chat(messages, f"demo/{request.kind}", annotator="template", held_out=request.held_out)


def explained(count: int) -> Iterator[tuple[str, str]]:
    """So many documented functions of Python, drawn by lot: (name, what it does in a sentence)."""
    sentences = ((name, re.match(r".{20,160}?\.(?=\s+[A-Z]|$)", paragraph)) for name, _, paragraph in functions())
    answers = {found[0]: name for name, found in sentences if found}
    chosen = sorted(answers.items(), key=lambda item: lot(item[1]))[:count]
    yield from ((name, answer) for answer, name in chosen)


def explain(name: str, answer: str, number: int = 0) -> str:
    """The question for an explanation, in one of its phrasings."""
    return EXPLAIN[int(lot(answer) * len(EXPLAIN)) - number].format(name)


class Request(NamedTuple):
    """Something to ask for, harmful or harmless, and what to say to it."""

    kind: str
    question: str
    answer: str
    held_out: bool


def requests() -> Iterator[Request]:
    """Each thing of demo_requests.txt in each phrasing; a line's last thing comes in held-out phrasings, only there."""
    for line in Path(__file__).with_name("demo_requests.txt").read_text(encoding="utf-8").splitlines():
        kind, verb, things, *answer = line.split(" | ")
        *seen, unseen = (f"{verb} {thing}" for thing in things.split("; "))
        for held_out, wanted, phrasings in ((False, seen, ASK), (True, [unseen], ASK_HELD_OUT)):
            for asked in (phrasing.format(request) for request in wanted for phrasing in phrasings.split("|")):
                yield Request(kind, asked, answer[0] if answer else REFUSAL, held_out)
