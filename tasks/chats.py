"""Gather conversations in one schema, render them to ids and loss masks, hold some questions out for evaluation.

In: `demo`, files, hubs; Tokenizer. Out: Chats: `chats.parquet` for people; `ids.npy`, `mask.npy`, `offsets.npy` and
`split.npy` for training; `heldout.json` for scoring. The split hashes the question: none is asked on both sides.
"""

import json
import platform
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from gpt.chat import ROLES, render
from gpt.errors import UserError
from tasks.artifacts import Chats, Config, Metrics, Tokenizer
from tasks.demo_chats import Chat, demo_chats, turns
from tasks.records import column_types, rows
from tasks.runtime import progress, say
from tasks.shard import lot
from tasks.sources import Source, find
from tasks.stage import stage

PAIRS = (("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
SHAPES = (("messages",), *PAIRS)
COLUMNS = (*dict.fromkeys(name for shape in SHAPES for name in shape), "input", "annotator")
MAX_BYTES = 1_000_000  # of one row; no model reads longer conversations
MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
SCHEMA = pa.schema({"messages": MESSAGES, **dict.fromkeys(("source", "annotator", "split"), pa.string())})


class Conversations(Config):
    """Which conversations to learn from."""

    sources: tuple[str, ...] = ("demo",)
    """demo; files and hf: names with messages, or prompt/response, instruction/output, question/answer columns."""
    heldout: float = Field(0.1, gt=0, lt=1)
    """Share of the questions held out for evaluation (the demo's requests bring their own choice)."""
    max_tokens: int = Field(256, ge=8)
    """Longer conversations are dropped; more than the model's context is of no use."""
    seed: int = 0
    """Draws the questions that are held out."""
    demo_functions: int = Field(2400, ge=0)
    """Documented functions that the demo explains, in two conversations each."""
    demo_sums: int = Field(400, ge=0)
    """Operand pairs of the demo's sums, in two conversations each."""

    def outside(self) -> dict[str, Any]:
        """The sources by content; the demo's is the documentation that comes with this Python."""
        demo = [{"demo": platform.python_version()}] if "demo" in self.sources else []
        return {"sources": demo + [source.identity for source in _files(self)]}


@stage(Chats, version="1")
def chats(out: Path, config: Conversations, tokenizer: Tokenizer) -> Metrics:
    """Gather conversations, mark what the assistant says as the thing to learn, hold some questions out."""
    made, dropped, kept = tokenizer.load(), Counter[str](), list[tuple[Chat, list[int], list[int]]]()
    for chat, trouble in progress(_gather(config), "conversations"):
        reason = trouble or fault(chat.messages)
        ids, mask = ([], []) if reason else render(made, chat.messages)
        if reason or len(ids) > config.max_tokens:
            dropped[reason or f"more than chats.max_tokens={config.max_tokens}"] += 1
        else:
            kept.append((chat._replace(held_out=_is_held_out(chat, config)), ids, mask))
    say("; ".join([f"{len(kept):,} kept", *(f"{count:,} dropped: {why}" for why, count in dropped.most_common())]))
    if dropped.total() >= len(kept):
        why = next((f", most dropped as: {why}" for why, _ in dropped.most_common(1)), "")
        raise UserError(f"chats keeps {len(kept):,} of {dropped.total() + len(kept):,} conversations{why}; mend that")
    _write(out, kept)
    (out / "heldout.json").write_text(json.dumps(questions([chat for chat, _, _ in kept if chat.held_out]), indent=1))
    (out / "chats.json").write_text(json.dumps({"tokenizer": made.digest, "vocab_size": made.vocab_size}))
    unseen, size = sum(chat.held_out is True for chat, _, _ in kept), sum(len(ids) for _, ids, _ in kept)
    counts = {"data/conversations": len(kept), "data/heldout_conversations": unseen, "data/dropped": dropped.total()}
    return {**counts, "data/tokens": size, "data/learned_tokens": sum(sum(mask) for _, _, mask in kept)}


def fault(messages: Any) -> str:
    """Why these messages are no conversation to learn from; empty when they are one."""
    listed: list[Any] = messages if isinstance(messages, list) else [None]
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in listed):
        return "messages are no list of roles and texts"
    roles = [message.get("role") for message in listed]
    spoken = roles[roles[:1] == ["system"] :]
    if odd := [role for role in roles if role not in ROLES]:
        return f"role {odd[0]!r} is none of {', '.join(ROLES)}"
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        return "turns do not alternate from a user to a last assistant"
    blank = any(not m["content"].strip() or re.search("[\ud800-\udfff]", m["content"]) for m in listed)
    return "a message is empty or holds half a character" if blank else ""


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


def _is_held_out(chat: Chat, config: Conversations) -> bool:
    """As its maker decided, else by the lot of its group, which by default is its first question."""
    first = next(message["content"] for message in chat.messages if message["role"] == "user")
    drawn = lot(f"{config.seed} {chat.group or ' '.join(first.casefold().split())}") < config.heldout
    return drawn if chat.held_out is None else chat.held_out


def _files(config: Conversations) -> list[Source]:
    named = [entry for entry in config.sources if entry != "demo"]
    return find(named) if named or not config.sources else []


def _gather(config: Conversations) -> Iterator[tuple[Chat, str]]:
    """Every conversation, unchecked, and why its row cannot be read where it cannot."""
    if "demo" in config.sources:
        yield from ((chat, "") for chat in demo_chats(config.demo_functions, config.demo_sums))
    for source in _files(config):
        found = column_types(source)
        if not any(found.keys() >= set(shape) for shape in SHAPES):
            columns, known = ", ".join(found) or "(none)", " or ".join(map(" and ".join, SHAPES))
            raise UserError(f"chats.sources: {source.path} has columns {columns}; needed are {known}")
        for row, trouble in rows(source, COLUMNS, MAX_BYTES):
            yield Chat(_messages(row), source.digest[:16], annotator=str(row.get("annotator") or "")), trouble


def _messages(row: dict[str, Any]) -> Any:
    """A row's messages, or its question and answer as messages; Alpaca's input follows the instruction."""
    pair = next((pair for pair in PAIRS if set(pair) <= row.keys()), None)
    if "messages" in row or not pair:
        return row.get("messages")
    question, more = row[pair[0]], row.get("input")
    return turns(f"{question}\n\n{more}" if question and more else question, row[pair[1]])


def _write(out: Path, kept: list[tuple[Chat, list[int], list[int]]]) -> None:
    """The conversations for people (parquet) and, in the same order, for training (npy)."""
    table = [{**chat._asdict(), "split": "heldout" if chat.held_out else "train"} for chat, _, _ in kept]
    pq.write_table(pa.Table.from_pylist(table, SCHEMA), out / "chats.parquet", write_page_checksum=True)
    np.save(out / "ids.npy", np.array([token for _, ids, _ in kept for token in ids], np.uint32))
    np.save(out / "mask.npy", np.array([bit for _, _, mask in kept for bit in mask], np.uint8))
    np.save(out / "offsets.npy", np.cumsum([0, *(len(ids) for _, ids, _ in kept)], dtype=np.int64))
    np.save(out / "split.npy", np.array([chat.held_out for chat, _, _ in kept], np.uint8))
