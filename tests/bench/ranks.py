"""One process of two threads beside two processes of one: `python tests/bench/ranks.py`, two minutes, CPU only.

Both train the same model on the same rows (random characters) through gpt.train, in turns, and say tokens a second
of wall time: the median of the journal's points after the first. Other work on the machine falsifies both.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from gpt.data import write_shard
from gpt.tokenizer import Tokenizer, reserve
from tasks.trainer import ENVIRONMENT

TURNS, STEPS = 2, 60
MODEL = {"depth": 4, "width": 128, "heads": 2, "context": 128}
TRAIN = {"steps": STEPS, "batch": 32, "micro_batch": 16, "lr": 0.02, "adam_lr": 4e-3, "compile": "off"}
TRAIN |= {"eval_every": 20, "eval_windows": 1, "checkpoint_every": STEPS, "sample_every": 0}
WAYS = {"1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}


def main() -> None:
    """A line for each way."""
    found = {way: list[float]() for way in WAYS}
    for turn in range(TURNS):
        for way, (processes, threads) in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                found[way] += tokens_per_s(Path(folder), processes, threads)
        print(f"turn {turn + 1} of {TURNS}", file=sys.stderr, flush=True)
    base = statistics.median(found[next(iter(WAYS))])
    for way, rates in found.items():
        middle = statistics.median(rates)
        print(f"{way:<28} {middle:>9,.0f} tokens/s  {middle / base:.2f}")


def tokens_per_s(folder: Path, processes: int, threads: int) -> list[float]:
    """One run's points."""
    (folder / "shards").mkdir()
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokenizer = Tokenizer(ranks, "gpt2", reserve(ranks))
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    text = np.random.default_rng(0).integers(97, 123, 400_000).astype(np.uint16)
    for split, ids in {"train": text, "val": text[:1000]}.items():
        write_shard(folder / "shards" / f"{split}-00000.bin", ids)
    (folder / "shards" / "shards.json").write_text(json.dumps({"tokenizer": tokenizer.digest}))
    (folder / "out").mkdir()
    paths = {"out": "out", "lock": "lock", "data": "shards", "tokenizer": "tokenizer"}
    run = {name: str(folder / path) for name, path in paths.items()} | {"model": MODEL, "train": TRAIN, "init": None}
    run |= {"task": "pretrain", "vocab_size": tokenizer.vocab_size, "device": "cpu", "threads": threads}
    (folder / "run.json").write_text(json.dumps(run))
    many = ["-m", "gpt.dist", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *many, "-m", "gpt.train", str(folder / "run.json")]
    environment = {**ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.getcwd()}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    lines = (folder / "out" / "logs" / "metrics.jsonl").read_text().splitlines()
    points = [values for _, step, values in map(json.loads, lines) if step > 20 and step % 20]
    return [point["perf/tokens_per_s"] for point in points]


if __name__ == "__main__":
    main()
