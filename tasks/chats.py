"""Gather conversations in one schema, render them to ids and loss masks, hold some questions out for evaluation.

In: `demo`, files, hubs; Tokenizer. Out: Chats: `chats.parquet` for people; `ids.npy`, `mask.npy`, `offsets.npy` and
`split.npy` for training; `heldout.json` for scoring. The split hashes the question: none is asked on both sides.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from gpt.chat import render
from tasks.artifacts import Chats, Metrics, Tokenizer
from tasks.demo_chats import Chat, demo_chats
from tasks.runtime import progress
from tasks.shard import lot
from tasks.stage import stage
from tasks.talk import MESSAGES, Talk, account, annotator, dialogue, fault, first_question, note, save, turns

PAIRS = (("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
SHAPES = (("messages",), *PAIRS, ("chosen",))
SCHEMA = pa.schema({"messages": MESSAGES, **dict.fromkeys(("source", "annotator", "split"), pa.string())})


class Conversations(Talk):
    """Which conversations to learn from."""

    sources: tuple[str, ...] = ("demo",)
    """demo; files and hf: names with messages, prompt/response, instruction/output, question/answer, or chosen."""
    demo_functions: int = Field(2400, ge=0)
    """Documented functions that the demo explains, in two conversations each."""
    demo_sums: int = Field(2100, ge=0)
    """The demo's conversations about sums of two-digit numbers."""


@stage(Chats, version="2")
def chats(out: Path, config: Conversations, tokenizer: Tokenizer) -> Metrics:
    """Gather conversations, mark what the assistant says as the thing to learn, hold some questions out."""
    made, dropped, kept, encoded = tokenizer.load(), Counter[str](), list[Chat](), list[tuple[list[int], list[int]]]()
    for chat, trouble in progress(_gather(config), "conversations"):
        reason = trouble or fault(chat.messages)
        ids, mask = ([], []) if reason else render(made, chat.messages)
        if reason or len(ids) > config.max_tokens:
            dropped[reason or f"more than chats.max_tokens={config.max_tokens}"] += 1
        else:
            group = chat.group or first_question(chat.messages)
            kept.append(chat._replace(held_out=config.is_held_out(group, chat.held_out)))
            encoded.append((ids, mask))
    account("chats", "conversations", len(kept), dropped)
    table = [{**chat._asdict(), "split": "heldout" if chat.held_out else "train"} for chat in kept]
    pq.write_table(pa.Table.from_pylist(table, SCHEMA), out / "chats.parquet", write_page_checksum=True)
    save(out, encoded, [chat.held_out is True for chat in kept])
    (out / "heldout.json").write_text(json.dumps(questions([chat for chat in kept if chat.held_out]), indent=1))
    note(out, config, (chat.source for chat in kept), "chats", made, "ids.npy")
    unseen, size = sum(chat.held_out is True for chat in kept), sum(len(ids) for ids, _ in encoded)
    counts = {"data/conversations": len(kept), "data/heldout_conversations": unseen, "data/dropped": dropped.total()}
    return {**counts, "data/tokens": size, "data/learned_tokens": sum(sum(mask) for _, mask in encoded)}


def questions(held: Sequence[Chat]) -> dict[str, list]:
    """heldout.json: choices of four, harmful and harmless requests, prompts; as many as there are, up to 200 and 50.

    Four questions whose answers are alike in length share these four answers, each right once: so the longest answer,
    a constant choice and any preference that ignores the question score exactly 1/4.
    """
    single = {chat.messages[0]["content"]: chat for chat in held if len(chat.messages) == 2}
    kinds = {kind: [q for q, c in single.items() if c.source == f"demo/{kind}"] for kind in ("harmful", "harmless")}
    plain = [q for q, c in single.items() if c.source == "demo/functions" or not c.source.startswith("demo/")]
    asked = {single[question].messages[1]["content"]: question for question in plain}
    answers = sorted(asked, key=lambda answer: (len(answer), answer))
    fours = sorted((answers[n : n + 4] for n in range(0, len(answers) - 3, 4)), key=lambda four: lot(four[0]))[:50]
    choices = [{"question": asked[a], "answers": four, "correct": n} for four in fours for n, a in enumerate(four)]
    return {"choices": choices, **kinds, "prompts": sorted(single, key=lot)[:50]}


def _gather(config: Conversations) -> Iterator[tuple[Chat, str]]:
    """Every conversation, unchecked, and why its row cannot be read where it cannot."""
    if "demo" in config.sources:
        yield from ((chat, "") for chat in demo_chats(config.demo_functions, config.demo_sums))
    for row, trouble in config.read("chats", SHAPES, ("input", "annotator")):
        yield Chat(_messages(row), row["_source"], annotator=annotator(row)), trouble


def _messages(row: dict[str, Any]) -> Any:
    """A row's messages, its question and answer as messages (Alpaca's input follows the instruction), or its choice."""
    pair = next((pair for pair in PAIRS if set(pair) <= row.keys()), None)
    if "chosen" in row:  # preferences: what was chosen is worth imitating
        return [*(dialogue(row.get("prompt"), "user") or []), *(dialogue(row["chosen"], "assistant") or [])]
    if "messages" in row or not pair:
        return row.get("messages")
    question, more = row[pair[0]], row.get("input")
    return turns(f"{question}\n\n{more}" if question and more else question, row[pair[1]])
