"""What the stages that gather talk share (chats, pairs, prompts): sources, checks, the split, arrays for training.

In: rows of files and hubs in known shapes. Out: checked messages; `ids.npy`, `mask.npy`, `offsets.npy`, `split.npy`.
A question is on one side of the split only, whatever its case and blanks.
"""

import hashlib
import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from gpt.chat import ROLES, Message
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer
from tasks.artifacts import Config
from tasks.files import hash_file
from tasks.manifest import canonical
from tasks.records import column_types, rows
from tasks.runtime import say
from tasks.shard import lot
from tasks.sources import Source, find

Shape = tuple[str, ...]
"""Columns that a row must have together."""
ROLE_OF = {"Human": "user", "Assistant": "assistant"}
DEMO = [*Path(__file__).parent.glob("demo_*"), Path(__file__).with_name("arithmetic.py")]
MAX_BYTES = 1_000_000  # of one row; no model reads longer conversations
MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


class Talk(Config):
    """Where talk comes from and how much of it is held out."""

    sources: tuple[str, ...] = ("demo",)
    """demo; files and hf: names."""
    heldout: float = Field(0.1, gt=0, lt=1)
    """Share of the questions held out for evaluation (the demo brings its own choice)."""
    max_tokens: int = Field(256, ge=8)
    """Longer ones are dropped; more than the model's context is of no use."""
    seed: int = 0
    """Draws the questions that are held out."""

    def outside(self) -> dict[str, Any]:
        """The sources by content; the demo's is its modules' and the documentation that comes with this Python."""
        return {"sources": [source.identity for source in self.origins()]}

    def origins(self) -> list[Source]:
        """The demo, if it is among the sources, and the files."""
        made = {"demo": platform.python_version(), "modules": [hash_file(file) for file in sorted(DEMO)]}
        demo = Source("demo", "demo", "demo", hashlib.sha256(canonical(made)).hexdigest(), 0, made)
        return [demo] * ("demo" in self.sources) + self.files()

    def files(self) -> list[Source]:
        """The sources but for the demo."""
        named = [entry for entry in self.sources if entry != "demo"]
        return find(named) if named or not self.sources else []

    def is_held_out(self, group: str, decided: bool | None = None) -> bool:
        """As its maker decided, else by the lot of its group or question."""
        drawn = lot(f"{self.seed} {' '.join(group.casefold().split())}") < self.heldout
        return drawn if decided is None else decided

    def read(self, stage: str, shapes: Sequence[Shape], more: Shape = ()) -> Iterator[tuple[dict[str, Any], str]]:
        """(row, why it cannot be read) of every file; `_source` is added. UserError where no shape's columns are."""
        columns = (*dict.fromkeys(name for shape in shapes for name in shape), *more)
        for source in self.files():
            found = column_types(source)
            if not any(found.keys() >= set(shape) for shape in shapes):
                given, known = ", ".join(found) or "(none)", " or ".join(map(" and ".join, shapes))
                raise UserError(f"{stage}.sources: {source.path} has columns {given}; needed are {known}")
            for row, trouble in rows(source, columns, MAX_BYTES):
                yield {**row, "_source": source.digest[:16]}, trouble


def turns(question: str, answer: str) -> list[Message]:
    """One question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def dialogue(value: Any, role: str) -> Any:
    """Messages of what a column holds: messages as they are, HH text turn by turn, other text as one message."""
    if not isinstance(value, str):
        return value if value is None or isinstance(value, list) else [value]
    lead, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", value)
    if not parts:
        return [{"role": role, "content": value}]
    messages = [{"role": ROLE_OF[who], "content": said.strip()} for who, said in zip(*[iter(parts)] * 2, strict=True)]
    return [*([{"role": role, "content": lead.strip()}] if lead.strip() else []), *messages]


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


def annotator(row: Mapping[str, Any]) -> str:
    """Who judged a row, where it says so."""
    return str(row.get("annotator") or "").encode(errors="replace").decode()


def first_question(messages: Sequence[Message]) -> str:
    """What the user asks first: by default it draws the side of the split."""
    return next(message["content"] for message in messages if message["role"] == "user")


def account(stage: str, what: str, kept: int, dropped: Counter[str]) -> None:
    """Say what was kept and dropped; UserError when it was not mostly kept."""
    say("; ".join([f"{kept:,} kept", *(f"{count:,} dropped: {why}" for why, count in dropped.most_common())]))
    if dropped.total() >= kept:
        why = next((f", most dropped as: {why}" for why, _ in dropped.most_common(1)), "")
        raise UserError(f"{stage} keeps {kept:,} of {dropped.total() + kept:,} {what}{why}; mend that")


def save(out: Path, encoded: Sequence[tuple[list[int], list[int]]], held_out: Sequence[bool]) -> None:
    """Ids and masks of rows as arrays for training."""
    np.save(out / "ids.npy", np.array([token for ids, _ in encoded for token in ids], np.uint32))
    np.save(out / "mask.npy", np.array([bit for _, mask in encoded for bit in mask], np.uint8))
    np.save(out / "offsets.npy", np.cumsum([0, *(len(ids) for ids, _ in encoded)], dtype=np.int64))
    np.save(out / "split.npy", np.array(held_out, np.uint8))


def note(out: Path, config: Talk, kept: Iterable[str], name: str, tokenizer: Tokenizer, content: str) -> None:
    """`name`.json: which tokenizer made the ids, and the sha256 of the content: the trainer goes on with no other.

    `logs/sources.json`, as of ingest: each source and how many rows were kept of it; `kept` has the source of each.
    """
    rows_of, report = Counter(source.partition("/")[0] for source in kept), []
    for source in config.origins():
        size = {"bytes": source.size_bytes, "documents": rows_of[source.path] or rows_of[source.digest[:16]]}
        report.append({"path": source.path, "kind": source.kind, "digest": source.digest, **size})
    (out / "logs").mkdir(exist_ok=True)
    (out / "logs" / "sources.json").write_text(json.dumps(report, indent=1))
    facts = {"tokenizer": tokenizer.digest, "vocab_size": tokenizer.vocab_size, "sha256": hash_file(out / content)}
    (out / f"{name}.json").write_text(json.dumps(facts))
