"""Gather preference pairs in one schema, one prompt with a chosen and a rejected answer, and render them to ids.

In: `demo`, files, hubs; Tokenizer. Out: Pairs: `pairs.parquet` for people (TRL's columns); `ids.npy`, `mask.npy`,
`offsets.npy`, `split.npy` for training, two rows a pair, the chosen one first, learned on the last answer alone.
Method for text of dialogues (HH-RLHF): split at its `Human:` and `Assistant:` marks. The longest common beginning, as
TRL takes it, moves the shared start of two answers into the prompt in 19 % of HH.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from gpt.chat import Message, render
from gpt.tokenizer import Tokenizer as Loaded
from tasks.artifacts import Metrics, Pairs, Tokenizer
from tasks.demo_pairs import Pair, demo_pairs
from tasks.runtime import progress
from tasks.stage import stage
from tasks.talk import MESSAGES, Talk, account, annotator, dialogue, fault, first_question, note, save

SHAPES = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))
SCHEMA = pa.schema(
    {name: MESSAGES for name in SHAPES[0]} | dict.fromkeys(("source", "annotator", "split"), pa.string())
)


class Preferences(Talk):
    """Which preferences to learn from."""

    sources: tuple[str, ...] = ("demo",)
    """demo; files and hf: names with chosen and rejected, perhaps prompt, as text, HH dialogues or messages."""
    demo_functions: int = Field(1000, ge=0)
    """Documented functions that the demo's pairs explain well and badly."""
    demo_sums: int = Field(300, ge=0)
    """The demo's right and wrong sums; a third as many are held out."""


@stage(Pairs, version="1")
def pairs(out: Path, config: Preferences, tokenizer: Tokenizer) -> Metrics:
    """Gather pairs of a chosen and a rejected answer, mark the answers, hold some prompts out."""
    made, dropped, kept = tokenizer.load(), Counter[str](), list[Pair]()
    encoded, lengths = list[tuple[list[int], list[int]]](), list[tuple[int, int]]()
    for pair, trouble in progress(_gather(config), "pairs"):
        rows = [] if trouble else [answered(made, pair.prompt, said) for said in (pair.chosen, pair.rejected)]
        if trouble or max(len(ids) for ids, _ in rows) > config.max_tokens:
            dropped[trouble or f"more than pairs.max_tokens={config.max_tokens}"] += 1
            continue
        kept.append(pair._replace(held_out=config.is_held_out(first_question(pair.prompt), pair.held_out)))
        encoded += rows
        lengths.append((sum(rows[0][1]), sum(rows[1][1])))
    account("pairs", "pairs", len(kept), dropped)
    pq.write_table(pa.Table.from_pylist([_row(pair) for pair in kept], SCHEMA), out / "pairs.parquet")
    save(out, encoded, [pair.held_out is True for pair in kept for _ in range(2)])
    note(out, config, (pair.source for pair in kept), "pairs", made, "ids.npy")
    counts = {"pairs": len(kept), "heldout_pairs": sum(pair.held_out is True for pair in kept)}
    sides = zip(*lengths, strict=True)
    means = {f"{name}_tokens": sum(side) / len(kept) for name, side in zip(SHAPES[1], sides, strict=True)}
    return {f"data/{name}": float(value) for name, value in (counts | {"dropped": dropped.total()} | means).items()}


def answered(tokenizer: Loaded, prompt: list[Message], answer: str) -> tuple[list[int], list[int]]:
    """Ids of a prompt with one answer, and a mask that is 1 on that answer and its end alone."""
    asked, said = render(tokenizer, prompt, reply=True)[0], [*tokenizer.encode(answer), tokenizer.end]
    return [*asked, *said], [*[0] * len(asked), *[1] * len(said)]


def paired(row: dict[str, Any]) -> tuple[Pair | None, str]:
    """(pair, "") of a row, or (None, why it is none)."""
    before: list[Any] = dialogue(row.get("prompt"), "user") or []
    chosen, rejected = ([*before, *(dialogue(row.get(name), "assistant") or [{}])] for name in SHAPES[1])
    if trouble := fault(chosen) or fault(rejected):
        return None, trouble
    if chosen[:-1] != rejected[:-1]:
        return None, "the two differ before their last answers"
    if chosen == rejected:
        return None, "both answers are the same"
    said = chosen[-1]["content"], rejected[-1]["content"]
    return Pair(chosen[:-1], *said, row["_source"], annotator(row)), ""


def _gather(config: Preferences) -> Iterator[tuple[Any, str]]:
    """Every pair, and why its row is none where it is none."""
    if "demo" in config.sources:
        yield from ((pair, "") for pair in demo_pairs(config.demo_functions, config.demo_sums, config.is_held_out))
    for row, trouble in config.read("pairs", SHAPES, ("annotator",)):
        yield (None, trouble) if trouble else paired(row)


def _row(pair: Pair) -> dict[str, Any]:
    said = {name: [{"role": "assistant", "content": getattr(pair, name)}] for name in SHAPES[1]}
    return {**pair._asdict(), **said, "split": "heldout" if pair.held_out else "train"}
