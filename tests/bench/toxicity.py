"""Toxicity: what the model finds, what it flags without need, and how fast, beside scikit-learn and word lists.

`python tests/bench/toxicity.py DATA [--mb 40] [--speed-mb 100] [--peer-mb 2] [--other N]`: DATA is a CSV: text, label.
Clean lines are the documentation of the installed packages; every fourth package is kept from training, threshold and
all. The peer is TfidfVectorizer (words 1-2, letters 3 within words) and LogisticRegression on the same rows, its
threshold set by the same promises. Speed is that of a process that reads parquet, lowers, scores and flags every line,
less one that only starts and reads. `--other N` trains with another seed.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import pydocs
from tasks.artifacts import Corpus
from tasks.corpus import DOCUMENT, groups
from tasks.toxicity import LEARNED, LIMITED, Toxicity, _share, auc, limit, parts_of, read_clean, read_labelled, toxicity
from tasks.wordlists import SHIPPED, entries

SENTENCES = Path(__file__).parents[1] / "tasks" / "text" / "sentences"


def main(options: argparse.Namespace, work: Path) -> None:
    """Print the tables."""
    from tasks.text.scan import lowered
    from tasks.text.toxicity import load, phrases, rate

    corpus, unseen = packages(work, options.mb)
    config = Toxicity(data=(options.data,), seed=options.other)
    (work / "model").mkdir()
    began = time.process_time()
    figures = toxicity.fn(work / "model", config, corpus)
    print(f"trained in {time.process_time() - began:.1f} CPU s, reading included")
    model, listed = load(work / "model"), phrases(entries(SHIPPED))
    rows = read_labelled(work, config)
    place = np.array([_share(text) for text in rows.texts])
    test = rows.take(place >= LIMITED)
    sets = {
        "toxic tweets (recall)": [t for t, bad in zip(test.texts, test.toxic, strict=True) if bad],
        "neutral tweets": [t for t, bad in zip(test.texts, test.toxic, strict=True) if not bad],
        "lines of unseen packages": unseen,
        **{path.stem: path.read_text().splitlines() for path in sorted(SENTENCES.glob("*.txt"))},
    }
    peer = Peer(rows.take(place < LEARNED), rows.take((place >= LEARNED) & (place < LIMITED)), corpus, config)
    print(f"AUC {figures['eval/auc']:.4f}, peer {auc(peer.scores(test.texts), test.toxic):.4f}\n")
    print("| share flagged of | lines | gptloom | without lists | any listed word | scikit-learn |")
    print("|---|---|---|---|---|---|")
    for name, lines in sets.items():
        r = rate(lowered(pa.chunked_array([[line.replace("\n", " ") for line in lines]])), model, listed)
        ours = [r.flagged(model).mean(), (r.scores_L >= model.threshold).mean(), (r.listed_L > 0).mean()]
        theirs = (peer.scores(lines[:20_000]) >= peer.threshold).mean()
        print(f"| {name} | {len(lines):,} | {' | '.join(f'{x:.2%}' for x in (*ours, theirs))} |")
    speed(options, work, peer, unseen)


def packages(work: Path, mb: float) -> tuple[Corpus, list[str]]:
    """A corpus of documentation, and the different lines of the packages that it lacks."""
    rows = [{"id": str(n), **row} for n, row in enumerate(pydocs.documents(mb))]
    held_out = set(sorted({row["source"] for row in rows}, key=_share)[::4])
    (work / "clean").mkdir()
    kept = [row for row in rows if row["source"] not in held_out]
    pq.write_table(pa.Table.from_pylist(kept, DOCUMENT), work / "clean" / "part-00000.parquet")
    lines = {line for row in rows if row["source"] in held_out for line in row["text"].split("\n")}
    count = len({row["source"] for row in kept})
    print(f"clean: {count} packages; not seen: {len(held_out)} ({', '.join(sorted(held_out)[:9])} ...)")
    return Corpus(stage="ingest", key="k", digest="d", path=work / "clean"), sorted(filter(str.strip, lines))


class Peer:
    """scikit-learn's usual pipeline, trained on what ours was trained on, its threshold set by the same promises."""

    def __init__(self, learned, limits, corpus, config):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union

        clean = read_clean(corpus, config.max_rows)
        part = parts_of(clean.groups)
        texts = [*learned.texts, *clean.take(part == "train").texts]
        toxic = np.zeros(len(texts), bool)
        toxic[: len(learned.texts)] = learned.toxic
        words, letters = (
            TfidfVectorizer(ngram_range=(1, 2), min_df=2),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3)),
        )
        self.pipeline = make_pipeline(
            make_union(words, letters), LogisticRegression(class_weight="balanced", max_iter=300)
        )
        began = time.process_time()
        self.pipeline.fit(texts, toxic)
        print(f"scikit-learn trained in {time.process_time() - began:.1f} CPU s")
        hard = limits.take(~limits.toxic)
        self.threshold = limit(self.scores(clean.take(part == "limit").texts), self.scores(hard.texts), config)[0]

    def scores(self, lines: list[str]) -> np.ndarray:
        """Log-odds."""
        return self.pipeline.decision_function(lines)


def speed(options: argparse.Namespace, work: Path, peer: Peer, lines: list[str]) -> None:
    """MB a CPU second on one thread."""
    text = pq.read_table(work / "clean" / "part-00000.parquet", columns=["text"])["text"].to_pylist()
    size = sum(map(len, text))
    rows = [
        {"id": "x", "text": t, "source": "s"} for _ in range(max(1, round(options.speed_mb * 1e6 / size))) for t in text
    ]
    pq.write_table(pa.Table.from_pylist(rows, DOCUMENT), work / "speed.parquet", row_group_size=2_000)
    found = {}
    for what in ("warm", "read + start", "read + start + score"):
        arguments = [sys.executable, __file__, "--score", str(work), "--what", what]
        found[what] = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    mb, base, whole = (
        found["read + start"]["mb"],
        found["read + start"]["cpu_s"],
        found["read + start + score"]["cpu_s"],
    )
    sample, began = lines[:: max(1, len(lines) // 40_000)], time.process_time()
    sample = sample[: int(np.searchsorted(np.cumsum([len(x) for x in sample]), options.peer_mb * 1e6))]
    peer.scores(sample)
    theirs = sum(len(x.encode()) for x in sample) / 1e6 / (time.process_time() - began)
    ours = mb / (whole - base)
    print(f"\n{mb:.0f} MB: {ours:.0f} MB a CPU second lowered and rated; {mb / whole:.0f} with start-up and parquet")
    print(f"scikit-learn {theirs:.2f} MB a CPU second, without start-up: ours is {ours / theirs:.0f} times as fast")


def score(work: Path, what: str) -> None:
    """The timed process."""
    from tasks.text.scan import lowered
    from tasks.text.toxicity import load, phrases, rate

    model, listed = load(work / "model"), phrases(entries(SHIPPED))
    rate(lowered(pa.chunked_array([["warm"]])), model, listed)
    size, flagged = 0, 0
    for group in groups(work / "speed.parquet") if what != "warm" else ():
        column = group.table(["text"])["text"]
        size += column.nbytes
        if what.endswith("score"):
            flagged += int(rate(lowered(column), model, listed).flagged(model).sum())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"mb": size / 1e6, "cpu_s": usage.ru_utime + usage.ru_stime, "flagged": flagged}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?")
    parser.add_argument("--mb", type=float, default=40)
    parser.add_argument("--speed-mb", type=float, default=100)
    parser.add_argument("--peer-mb", type=float, default=2)
    parser.add_argument("--other", type=int, default=0)
    parser.add_argument("--score", type=Path)
    parser.add_argument("--what")
    asked = parser.parse_args()
    if asked.score:
        score(asked.score, asked.what)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(asked, Path(folder))
