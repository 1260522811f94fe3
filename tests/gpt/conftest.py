"""A byte-level tokenizer, a small stream of real words, a few conversations: enough to train for real in a second."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpt.chat import render
from gpt.data import write_shard
from gpt.tokenizer import Tokenizer, reserve

RANKS = {bytes([byte]): byte for byte in range(256)}
TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune must be in want. "


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One token a byte, and the special tokens."""
    return Tokenizer(RANKS, "gpt2", reserve(RANKS))


@pytest.fixture
def make_run(tmp_path, tokenizer):
    """A run.json's content over real folders; keyword arguments go to its `train` part."""
    for name in ("tokenizer", "shards", "chats", "pairs", "prompts", "out"):
        (tmp_path / name).mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    ids = np.array([tokenizer.eot, *tokenizer.encode(TEXT * 8), tokenizer.eot], np.uint16)
    for name, part in {"train-00000": ids[:300], "train-00001": ids[300:700], "val-00000": ids[700:]}.items():
        write_shard(tmp_path / "shards" / f"{name}.bin", part)
    (tmp_path / "shards" / "shards.json").write_text(json.dumps({"tokenizer": tokenizer.digest}))
    write_chats(tmp_path / "chats", tokenizer)
    write_pairs(tmp_path / "pairs", tokenizer)
    write_prompts(tmp_path / "prompts", tokenizer)
    model = {"depth": 2, "width": 16, "heads": 2, "kv_heads": 1, "hidden": 32, "context": 32, "dropout": 0.1}
    base = {"lock": str(tmp_path / "lock"), "tokenizer": str(tmp_path / "tokenizer"), "device": "cpu", "threads": 1}

    def run(task: str = "pretrain", out: str = "out", init: Path | None = None, **train) -> dict:
        (tmp_path / out).mkdir(exist_ok=True)
        data = tmp_path / {"pretrain": "shards", "sft": "chats", "prefer": "pairs", "rl": "prompts"}[task]
        settings = {
            "steps": 12,
            "batch": 4,
            "eval_every": 5,
            "eval_windows": 3,
            "checkpoint_every": 4,
            "sample_every": 6,
        }
        what = {"task": task, "out": str(tmp_path / out), "data": str(data), "init": init and str(init)}
        return {**base, **what, "model": model, "vocab_size": tokenizer.vocab_size, "train": settings | train}

    return run


def write_chats(folder: Path, tokenizer: Tokenizer) -> None:
    """Eight short conversations, every fourth held out; the sixth is too long for its answer to fit in 32 tokens."""
    asked = ["hi", "who?", "2+2", "bye", "sum", "a much too long question about nothing", "why", "so"]
    pairs = [
        render(tokenizer, [{"role": "user", "content": q}, {"role": "assistant", "content": q[::-1]}]) for q in asked
    ]
    save_rows(folder, pairs, [n % 4 == 3 for n in range(len(pairs))])
    (folder / "chats.json").write_text(json.dumps({"tokenizer": tokenizer.digest}))


def save_rows(folder: Path, rows: list, held_out: list[bool]) -> None:
    np.save(folder / "ids.npy", np.array([token for ids, _ in rows for token in ids], np.uint32))
    np.save(folder / "mask.npy", np.array([bit for _, mask in rows for bit in mask], np.uint8))
    np.save(folder / "offsets.npy", np.cumsum([0, *(len(ids) for ids, _ in rows)]).astype(np.int64))
    np.save(folder / "split.npy", np.array(held_out, np.uint8))


def write_pairs(folder: Path, tokenizer: Tokenizer) -> None:
    """Twelve pairs, every third held out: `yes!` is chosen, `no.` rejected; the fifth does not fit in 32 tokens."""
    rows = []
    for n in range(12):
        asked = render(tokenizer, [{"role": "user", "content": f"q{n}" * (20 if n == 4 else 1)}], reply=True)[0]
        for said in ("yes!", "no."):
            answer = [*tokenizer.encode(said), tokenizer.end]
            rows.append(([*asked, *answer], [*[0] * len(asked), *[1] * len(answer)]))
    save_rows(folder, rows, [n // 2 % 3 == 2 for n in range(24)])
    (folder / "pairs.json").write_text(json.dumps({"tokenizer": tokenizer.digest}))


def write_prompts(folder: Path, tokenizer: Tokenizer) -> None:
    """Eight prompts, every fourth held out, whose answer is always 7; the third does not fit."""
    asked = ["n" * 60 if n == 2 else f"say {n}" for n in range(8)]
    rows = [
        {"messages": [{"role": "user", "content": text}], "answer": "7", "split": "heldout" if n % 4 == 3 else "train"}
        for n, text in enumerate(asked)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.json").write_text(json.dumps({"tokenizer": tokenizer.digest}))
