"""The language of documents: our kernel beside py3langid, whose model it reads.

`python tests/bench/languages.py CORPUS [--docs 5000] [--rounds 5]`: CORPUS is a folder of parquet with a column `text`,
such as tests/bench/curated.py writes (without `--plain`: a hundred languages). Both sides judge the same KiB of each
document and take turns; CPU seconds of the best round, the model read before. Prints microseconds a document and how
many answers are the same.
"""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from tasks.text.language import identify, middle
from tasks.text.scan import Texts, plain

Found = list[tuple[str, float]]


def main() -> None:
    """Both sides, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--docs", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    column = pa.chunked_array([c for f in asked.corpus.glob("*.parquet") for c in pq.read_table(f)["text"].chunks])
    step = max(1, len(column) // asked.docs)
    texts = plain(column.take(list(range(0, len(column), step))))
    judge = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    sides: dict[str, Callable[[Texts], Found]] = {"ours": identify, "py3langid": lambda t: peer(judge, t)}
    answers = {name: side(texts) for name, side in sides.items()}  # kernels and models are ready now
    taken = {name: min(seconds(side, texts) for _ in range(asked.rounds)) for name, side in sides.items()}
    count = len(texts.ends_D1) - 1
    pairs = list(zip(*answers.values(), strict=True))
    same, near = sum(a[0] == b[0] for a, b in pairs), max(abs(a[1] - b[1]) for a, b in pairs)
    each = ", ".join(f"{name} {1e6 * s / count:.1f} us a document" for name, s in taken.items())
    print(f"{count:,} documents: {each}: {taken['py3langid'] / taken['ours']:.1f} times")
    print(f"same language in {same / count:.2%}, scores differ by {near:.1e} at most")


def peer(judge: LanguageIdentifier, texts: Texts) -> Found:
    """As it was called before there was a kernel."""
    data = texts.data.data
    pieces = (middle(data[start:end]).encode() for start, end in pairwise(texts.ends_D1.tolist()))
    return [judge.classify(piece) for piece in pieces]


def seconds(work: Callable[[Texts], Any], texts: Texts) -> float:
    """CPU seconds of one turn."""
    begin = time.process_time()
    work(texts)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
