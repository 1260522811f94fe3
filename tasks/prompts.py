"""Gather prompts with checkable answers, for practice and for its examination.

In: `demo`, files, hubs; Tokenizer. Out: Prompts: `prompts.jsonl` with messages, answer and split, `prompts.json`.
The demo's are sums (tasks/arithmetic.py); GSM8K's columns work as they are, its answers end in `#### 72`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.chat import Message, render
from gpt.rewards import number
from tasks.arithmetic import question, sums
from tasks.artifacts import Metrics, Prompts, Tokenizer
from tasks.runtime import progress
from tasks.stage import stage
from tasks.talk import Talk, account, fault, first_question, note, turns

SHAPES = (("messages", "answer"), ("question", "answer"), ("prompt", "answer"))


class Problems(Talk):
    """Which prompts to practise on."""

    sources: tuple[str, ...] = ("demo",)
    """demo; files and hf: names with question (or prompt, or messages) and answer columns."""


@stage(Prompts, version="1")
def prompts(out: Path, config: Problems, tokenizer: Tokenizer) -> Metrics:
    """Gather prompts whose answers can be checked, hold some of them out."""
    made, dropped, kept, origins = tokenizer.load(), Counter[str](), list[dict[str, Any]](), list[str]()
    for messages, answer, decided, origin, trouble in progress(_gather(config), "prompts"):
        reason = trouble or fault([*messages, {"role": "assistant", "content": answer}])
        if not reason and len(render(made, messages, reply=True)[0]) > config.max_tokens:
            reason = f"more than prompts.max_tokens={config.max_tokens}"
        if not reason and number(answer) is None:
            reason = "the answer holds no number"
        dropped[reason] += 1
        if not reason:
            split = "heldout" if config.is_held_out(first_question(messages), decided) else "train"
            kept.append({"messages": messages, "answer": answer, "split": split})
            origins.append(origin)
    del dropped[""]
    account("prompts", "prompts", len(kept), dropped)
    (out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    note(out, config, origins, "prompts", made, "prompts.jsonl")
    unseen = sum(row["split"] == "heldout" for row in kept)
    return {"data/prompts": len(kept), "data/heldout_prompts": unseen, "data/dropped": dropped.total()}


def _gather(config: Problems) -> Iterator[tuple[list[Message], str, bool | None, str, str]]:
    """(messages, answer, side of the split where it is decided, source, why there is none of it)."""
    if "demo" in config.sources:
        for hand, held_out in (("rl", False), ("heldout", True)):
            yield from ((turns(question(sum_), "")[:1], result, held_out, "demo", "") for sum_, result in sums(hand))
    for row, trouble in config.read("prompts", SHAPES):
        listed, text = row.get("messages"), str(row.get("question") or row.get("prompt") or "")
        asked = listed if isinstance(listed, list) else turns(text, "")[:1]
        yield asked, str(row.get("answer", "")), None, row["_source"], trouble
