"""The spellings of each pattern in tiktoken: MB per CPU second of encode_to_numpy, the same ids.

`python tests/bench/spellings.py [--mb 5] [--rounds 10]`. Text and ranks are the same for all, and they take turns, 40th
by 40th of the text; of each 40th the best round counts, so that what else the machine does hits none. Ranks are gpt2's
from tiktoken's cache. `grouped` is what tiktoken gets in gptloom; the other spellings stand in
tests/tasks/test_identity.py: plain for gpt2, possessive for the others (OpenAI's own for cl100k_base).
"""

import argparse
import runpy
import time
from pathlib import Path

import tiktoken
from shard import texts

from gpt.tokenizer import PATTERNS, grouped
from tasks.openai import vocabulary

PARTS = 40


def main() -> None:
    """One line for each pattern."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    others = runpy.run_path(str(Path(__file__).parents[1] / "tasks" / "test_identity.py"))["SPELLINGS"]
    ranks, sample = vocabulary("gpt2")["mergeable_ranks"], list(texts(args.mb * 1_000_000))
    size_mb = sum(len(text.encode()) for text in sample) / 1e6
    for name in ("gpt2", "cl100k_base", "o200k_base"):
        spelled = {"grouped": grouped(PATTERNS[name]), "listed": PATTERNS[name], "other": others[name]}
        sides = {
            who: tiktoken.Encoding(who, pat_str=p, mergeable_ranks=ranks, special_tokens={})
            for who, p in spelled.items()
        }
        ids = [[side.encode_ordinary(text) for text in sample] for side in sides.values()]
        spent = {
            who: sum(min(each) for each in zip(*rounds, strict=True))
            for who, rounds in taken(sides, sample, args.rounds).items()
        }
        rates = ", ".join(f"{who} {size_mb / spent[who]:.1f} MB/s" for who in sides)
        print(f"{name:<12} {rates}, same ids: {ids[0] == ids[1] == ids[2]}", flush=True)


def taken(sides: dict[str, tiktoken.Encoding], sample: list[str], rounds: int) -> dict[str, list[list[float]]]:
    """CPU seconds of each side, round and 40th of the sample."""
    spent = {who: [[0.0] * PARTS for _ in range(rounds)] for who in sides}
    for turn in range(rounds):
        for part in range(PARTS):
            for who, side in sides.items():
                start = time.process_time()
                for text in sample[part::PARTS]:
                    side.encode_to_numpy(text, disallowed_special=())
                spent[who][turn][part] = time.process_time() - start
    return spent


if __name__ == "__main__":
    main()
