"""The two spellings of each pattern in tiktoken: MB per CPU second of encode_ordinary, the same ids.

`python tests/bench/spellings.py [--mb 5] [--rounds 5]`. Text and ranks are the same for both, taken in turn in one
process; ranks are gpt2's from tiktoken's cache. Best of the rounds. The other spellings stand in
tests/tasks/test_identity.py: plain for gpt2, possessive for the others (OpenAI's own for cl100k_base).
"""

import argparse
import runpy
import time
from pathlib import Path

import tiktoken
from shard import texts

from gpt.tokenizer import PATTERNS
from tasks.openai import vocabulary


def main() -> None:
    """One line for each pattern."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    others = runpy.run_path(str(Path(__file__).parents[1] / "tasks" / "test_identity.py"))["SPELLINGS"]
    ranks, sample = vocabulary("gpt2")["mergeable_ranks"], list(texts(args.mb * 1_000_000))
    size_mb = sum(len(text.encode()) for text in sample) / 1e6
    for name in ("gpt2", "cl100k_base", "o200k_base"):
        spelled = {"in the code": PATTERNS[name], "other": others[name]}
        sides = {
            who: tiktoken.Encoding(who, pat_str=p, mergeable_ranks=ranks, special_tokens={})
            for who, p in spelled.items()
        }
        ids = {who: [side.encode_ordinary(text) for text in sample] for who, side in sides.items()}
        best = dict.fromkeys(sides, float("inf"))
        for who in [*sides] * args.rounds:
            start = time.process_time()
            for text in sample:
                sides[who].encode_ordinary(text)
            best[who] = min(best[who], time.process_time() - start)
        rates = ", ".join(f"{who} {size_mb / spent:.1f} MB/s" for who, spent in best.items())
        print(f"{name:<12} {rates}, same ids: {ids['in the code'] == ids['other']}", flush=True)


if __name__ == "__main__":
    main()
