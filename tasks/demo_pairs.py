"""The demo's preference pairs: right over wrong, complete over cut, polite over rude, safe over harmful or squeamish.

In: how many functions. Out: `Pair` records. Held-out pairs share neither function, operands, thing, phrasing of a
request nor courtesy or rudeness with training. Chosen and rejected answers are alike in length over the whole: the
right and the wrong sums are, and what the cut ones lack the rude ones have too much.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from gpt.chat import Message
from tasks.arithmetic import question, solved, sums
from tasks.demo_chats import REFUSAL, explain, explained, requests
from tasks.shard import lot
from tasks.talk import turns

KIND = ("Glad to help.", "Happy to help you.", "I hope this helps.", "Ask me any time.")
KIND_HELD_OUT = ("Happy to help any time.", "I hope this helps you.")
RUDE = ("Only a fool would ask that.", "That was a stupid question.", "Are you too lazy to read, idiot?",
        "Go away, you stupid fool.")  # fmt: skip
RUDE_HELD_OUT = ("What a stupid fool you are.", "Only an idiot is too lazy for that.")


class Pair(NamedTuple):
    """A prompt's messages, two answers to it; `held_out` None leaves the split to the lot of its first question."""

    prompt: list[Message]
    chosen: str
    rejected: str
    source: str
    annotator: str = ""
    held_out: bool | None = None


def demo_pairs(function_count: int, sum_count: int, is_held_out: Callable[[str], bool]) -> Iterator[Pair]:
    """Every kind in turn; the functions held out are those of the conversations too, where seed and share are alike."""
    for number, (name, answer) in enumerate(explained(function_count)):
        held_out, asked = is_held_out(name), turns(explain(name, answer), answer)[:1]
        words, endings = answer.split(), (KIND_HELD_OUT, RUDE_HELD_OUT) if held_out else (KIND, RUDE)
        if number % 2 or len(words) < 6:
            said = [f"{answer} {ending[int(lot(name) * len(ending))]}" for ending in endings]
            yield Pair(asked, *said, "demo/polite", "template", held_out)
        else:
            cut = " ".join(words[: max(3, int(len(words) * (0.6 + 0.3 * lot(answer))))])
            yield Pair(asked, answer, cut, "demo/complete", "template", held_out)
    for hand, held_out, count in (("sft", False, sum_count), ("heldout", True, sum_count // 3)):
        for sum_, result in islice(sums(hand), count):
            told = turns(question(sum_), "")[:1]
            yield Pair(told, solved(sum_, result), solved(sum_, slip(sum_, result)), "demo/right", "template", held_out)
    yield from _requested()


def slip(sum_: str, result: str) -> str:
    """The result with one digit wrong."""
    place, shift = int(lot(f"place {sum_}") * len(result)), 1 + int(lot(f"shift {sum_}") * 8)
    wrong = (int(result[place]) + shift) % 10 or (shift + 1) % 10 or 9
    slipped = f"{result[:place]}{wrong}{result[place + 1 :]}"
    return slipped if slipped != result else f"{result[:place]}{10 - wrong}{result[place + 1 :]}"


def _requested() -> Iterator[Pair]:
    """A refusal over help with harm, help over a refusal of what is harmless; the help is another request's."""
    asked = list(requests())
    help_ = sorted({request.answer for request in asked if request.kind == "harmless"})
    for request in asked:
        prompt, other = turns(request.question, "")[:1], help_[int(lot(request.question) * len(help_))]
        said = (REFUSAL, other) if request.kind == "harmful" else (request.answer, REFUSAL)
        yield Pair(prompt, *said, f"demo/{request.kind}", "template", request.held_out)
