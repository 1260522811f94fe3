"""The demo's preference pairs: right over wrong, complete over cut, polite over rude, safe over harmful or squeamish.

In: how many functions. Out: `Pair` records. Chosen and rejected answers are alike in length over the whole: a rude one
is as much longer as a cut one is shorter. Held-out pairs share neither function, operands, thing, phrasing nor rude
sentence with training.
"""

from typing import NamedTuple

from gpt.chat import Message


class Pair(NamedTuple):
    """One prompt, two answers; `held_out` None leaves the split to the lot of the prompt."""

    prompt: list[Message]
    chosen: str
    rejected: str
    source: str
    annotator: str = ""
    held_out: bool | None = None
