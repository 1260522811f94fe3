"""Train one BPE with Hugging Face's trainer and with gigatoken, the same corpus and size, and compare the ranks.

`python tests/bench/bpe.py [--mb 100] [--vocab 32768] [--rounds 1]`. The corpus is this machine's documentation and
sources, as tests/bench/shard.py gathers them. Each side is a process of its own that reads the corpus from a file: user
+ system seconds of it and all it started, imports, self-test and last check included, and the most memory any of them
took; best of the rounds. Without gigatoken (`pip install "gptloom[fast]"`) that side is said to be absent.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from shard import texts

SIDES = {"Hugging Face tokenizers": "plain", "ours with gigatoken": "fast", "gigatoken alone": "bare"}


def child(side: str, file: Path, size: int) -> None:
    """Train, and say what came out."""
    from tasks import bpe

    if side == "plain":
        ranks = bpe.plain(bpe.saved(file), size, "gpt2")
    else:
        ranks = bpe.train_bpe(bpe.saved(file), size) if side == "fast" else bpe.by_gigatoken(file, size)
    digest = hashlib.sha256(repr(sorted(ranks.items(), key=lambda item: item[1])).encode()).hexdigest()
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"tokens": len(ranks), "ranks": digest[:12], "mib": most // 1024}))


def timed(side: str, file: Path, size: int) -> tuple[float, dict]:
    """CPU seconds of one training, and what it says."""
    before = os.times()
    command = [sys.executable, __file__, "--child", side, str(file), str(size)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, json.loads(said)


def main() -> None:
    """One line for each side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--vocab", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child[0], Path(args.child[1]), int(args.child[2]))
    with tempfile.TemporaryDirectory() as folder:
        file, reference = Path(folder) / "texts", 0.0
        file.write_bytes(b"\xff".join(text.encode() for text in texts(args.mb * 1_000_000)))
        print(f"{file.stat().st_size / 1e6:.0f} MB, {args.vocab:,} tokens with GPT-2's pattern")
        for name, side in SIDES.items():
            if side != "plain" and not find_spec("gigatoken"):
                print(f"{name}: absent")
                continue
            spent, said = min((timed(side, file, args.vocab) for _ in range(args.rounds)), key=lambda run: run[0])
            reference = reference or spent
            print(f"{name:<24} {spent:7.1f} CPU s  {reference / spent:5.2f}x  {said}", flush=True)


if __name__ == "__main__":
    main()
