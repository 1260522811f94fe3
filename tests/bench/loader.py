"""Tokens a CPU second of the pretraining loader, beside nanoGPT's get_batch, torch's DataLoader and plain copies.

`python tests/bench/loader.py [--nanogpt DIR] [--tokens N] [--rounds N] [--seconds S]`: DIR is a checkout of nanoGPT, of
whose train.py the function get_batch itself is run. All sides read the same tokens, warm, in turns, with one thread,
and end with int64 tensors x and y on the CPU where nothing else is said. CPU seconds are user + system, workers
included; the table has each side's median and the ratio of ours to it.
"""

import argparse
import ast
import itertools
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gpt.config import ModelConfig
from gpt.data import Stream, write_shard
from gpt.model import GPT
from gpt.objectives import on
from gpt.windows import Windows

EOT, MEAN_DOCUMENT, FILES = 50_256, 700, 4
SHAPES = ((16, 1024), (12, 64))
Step = Callable[[int], object]
Side = Callable[[Path, int, int], Iterator[Step]]


class Cut(Dataset):
    """A map-style dataset: window i as int64, x and y cast one by one as get_batch does, or (`once`) as one array."""

    def __init__(self, file: Path, time: int, once: bool) -> None:
        self.tokens, self.time, self.once = np.memmap(file, np.uint16, "r"), time, once

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.time

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        begin, end = i * self.time, (i + 1) * self.time
        if self.once:
            ids = torch.from_numpy(self.tokens[begin : end + 1].astype(np.int64))
            return ids[:-1], ids[1:]
        x, y = self.tokens[begin:end].astype(np.int64), self.tokens[begin + 1 : end + 1].astype(np.int64)
        return torch.from_numpy(x), torch.from_numpy(y)


def ours(folder: Path, rows: int, time: int, **how) -> Iterator[Step]:
    loader, model = windows(folder, time, **how), GPT(ModelConfig(depth=1, width=2, heads=1), 2)
    yield lambda step: on(model, loader.batch(1, step, rows))


def ours_uint16(folder: Path, rows: int, time: int) -> Iterator[Step]:
    loader = windows(folder, time)
    yield lambda step: loader.batch(1, step, rows)


def windows(folder: Path, time: int, **how) -> Windows:
    with redirect_stdout(None):
        return Windows(folder, time, **how)


def copied(folder: Path, rows: int, time: int, dtype: type = np.uint16) -> Iterator[Step]:
    """64 steps' windows at once at places that are known: what memory allows."""
    part = Stream(sorted(folder.glob("train-*.bin"))).parts[0]
    view = np.ndarray((len(part) - time, time + 1), part.dtype, part, 0, (2, 2))
    starts = np.random.default_rng(0).integers(0, len(view), (16, 64 * rows))

    def step(number: int) -> object:
        if number % 64 == 0:
            step.ids = view[starts[number // 64 % 16]]
        here = step.ids[number % 64 * rows : (number % 64 + 1) * rows]
        return torch.from_numpy(here).long() if dtype is np.int64 else here

    yield step


def nanogpt(folder: Path, rows: int, time: int, source: Path) -> Iterator[Step]:
    tree = ast.parse(source.read_text())
    body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_batch"]
    place = {"os": os, "np": np, "torch": torch, "data_dir": str(folder), "block_size": time, "batch_size": rows}
    place |= {"device_type": "cpu", "device": "cpu"}
    exec(compile(ast.Module(body, []), str(source), "exec"), place)
    yield lambda _: place["get_batch"]("train")


def dataloader(folder: Path, rows: int, time: int, workers: int, once: bool) -> Iterator[Step]:
    loader = DataLoader(Cut(folder / "train.bin", time, once), rows, shuffle=True, num_workers=workers, drop_last=True)
    batches = (batch for _ in itertools.count() for batch in loader)
    yield lambda _: next(batches)
    batches.close()  # ends its worker, so that its seconds are counted


def rate(side: Iterator[Step], seconds: float, tokens: int) -> float:
    """Tokens a CPU second, after a warm-up. A worker's start is not counted against it, its read-ahead is."""
    step = next(side)
    for number in range(128):
        step(number)
    before, until, number = cpu_s(), time.monotonic() + seconds, 128
    while time.monotonic() < until:
        for _ in range(8):
            step(number)
            number += 1
    next(side, None)
    return (number - 128) * tokens / (cpu_s() - before)


def cpu_s() -> float:
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in both)


def make(folder: Path, tokens: int) -> None:
    """The same tokens as our shards, the first half of them as other shards, and as nanoGPT's file."""
    dice = np.random.default_rng(0)
    ids = dice.integers(0, EOT, tokens).astype(np.uint16)
    ids[np.cumsum(dice.exponential(MEAN_DOCUMENT, tokens // MEAN_DOCUMENT).astype(int) + 2) % tokens] = EOT
    ids.tofile(folder / "train.bin")
    (folder / "other").mkdir()
    for n, part in enumerate(np.array_split(ids, FILES)):
        write_shard(folder / f"train-{n:06d}.bin", part)
        if n < FILES // 2:
            os.link(folder / f"train-{n:06d}.bin", folder / "other" / f"train-{n:06d}.bin")
    write_shard(folder / "val-000000.bin", ids[:5000])


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--nanogpt", type=Path)
    ask.add_argument("--tokens", type=int, default=40_000_000)
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--seconds", type=float, default=0.8)
    args = ask.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, args.tokens)
        sides: dict[str, Side] = {"**ours**": ours, "ours, uint16 as a GPU is sent it": ours_uint16}
        sides["ours, two corpora mixed"] = lambda f, b, t: ours(f, b, t, mix=[(f / "other", 0.3)])
        sides["ours, packing: bfd, with document numbers"] = lambda f, b, t: ours(f, b, t, pack_at=EOT)
        if args.nanogpt:
            sides["nanoGPT get_batch"] = lambda f, b, t: nanogpt(f, b, t, args.nanogpt / "train.py")
        else:
            print("nanoGPT is absent: give its checkout by --nanogpt DIR")
        for workers, once in ((0, False), (0, True), (1, True)):
            label = f"DataLoader, {workers} workers, cast {'once' if once else 'as get_batch does'}"
            sides[label] = lambda f, b, t, w=workers, o=once: dataloader(f, b, t, w, o)
        sides["bound: copy of known windows, cast to int64"] = lambda f, b, t: copied(f, b, t, np.int64)
        sides["bound: copy of known windows, uint16"] = copied
        found = {(side, shape): [] for shape in SHAPES for side in sides}
        for _ in range(args.rounds):
            for (side, (rows, length)), rates in found.items():
                rates.append(rate(sides[side](folder, rows, length), args.seconds, rows * length) / 1e6)
    print("| Mtok per CPU second |" + "".join(f" B{rows} T{length} | ours is |" for rows, length in SHAPES))
    print("|---|" + "---|---|" * len(SHAPES))
    for side in sides:
        cells = ""
        for shape in SHAPES:
            one = statistics.median(found[side, shape])
            ratio = statistics.median(a / b for a, b in zip(found["**ours**", shape], found[side, shape], strict=True))
            cells += f" {one:,.4g} | {ratio:,.3g}x |"
        print(f"| {side} |{cells}")


if __name__ == "__main__":
    main()
