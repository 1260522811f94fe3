"""Drop exact and near-duplicates: a document goes if and only if it is like an earlier one that stays.

In: Corpus. Out: Corpus without them; `dropped/` names the kept document of each with the estimated Jaccard similarity.
Method: MinHash LSH (Broder 1997) with datasketch's permutations and index, candidates verified on their signatures, in
order of arrival: of what unverified components remove, a third is like nothing that stays. A part knows only the parts
before it, so a corpus that grows at its end gives what one run over all of it would.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasketch import LeanMinHash, MinHash, MinHashLSH
from pydantic import Field

from tasks.artifacts import Corpus, Metrics
from tasks.corpus import Facts, Part, Sieve, Verdict, place, settle, sift, studied
from tasks.files import file_digest
from tasks.manifest import key_of
from tasks.runtime import progress
from tasks.stage import stage
from tasks.text.minhash import sign

SEED, EXACT = 1, 4
WEIGHTS = (0.1, 0.9)  # candidates are verified: a missed pair costs more than a needless candidate


class Dedup(Sieve):
    """What counts as a duplicate."""

    threshold: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of word n-grams from which two documents count as one. Higher keeps more."""
    ngram: int = Field(5, ge=1)
    """Words in a row that are compared."""
    num_perm: int = Field(128, ge=16)
    """Permutations: 128 estimate a similarity of 0.8 with a standard deviation of 0.035."""


@stage(Corpus, version="1")
def dedup(out: Path, config: Dedup, corpus: Corpus) -> Metrics:
    """Drop exact and near-duplicates, naming the document kept for each."""
    index, identity, parts = Index(config), config.model_dump_json(exclude={"max_drop_share"}), []
    for number, path in enumerate(progress(corpus.parts, "parts", len(corpus.parts))):
        identity = key_of(identity, file_digest(path))  # a chain: a part depends on all parts before it
        parts.append(place(out, number, identity, partial(_build, path, index, parts)))
    return settle(out, "dedup", parts, config.max_drop_share, "raise dedup.threshold")


class Index:
    """The documents that stay: their ids and rows (signature, exact digest), and buckets that propose candidates."""

    def __init__(self, config: Dedup):
        self.config, self.parts = config, 0
        self.permutations_2K = np.asarray(MinHash(config.num_perm, SEED, scheme="affine32").permutations)
        self.lsh = MinHashLSH(config.threshold, config.num_perm, WEIGHTS)
        self.ids, self.rows = list[str](), list[np.ndarray]()

    def judge(self, name: str, row: np.ndarray) -> Verdict:
        """(exact or near, estimated similarity, kept id) of the most like document, the first of equals; else keep."""
        lean = LeanMinHash(seed=SEED, hashvalues=row[:-EXACT], scheme="affine32")
        if places := sorted(map(int, self.lsh.query(lean))):  # ty: ignore[invalid-argument-type]
            equal = np.stack([self.rows[place] for place in places]) == row
            estimates = equal[:, :-EXACT].mean(axis=1)
            best = int(estimates.argmax())
            if estimates[best] >= self.config.threshold:
                return "exact" if equal[best].all() else "near", float(estimates[best]), self.ids[places[best]]
        self.lsh.insert(len(self.ids), lean, check_duplication=False)
        self.ids.append(name)
        self.rows.append(row)
        return None

    def catch_up(self, parts: list[Part]) -> None:
        """Take in the parts that were reused, so not judged in this run."""
        for folder, _ in parts[self.parts :]:
            names = pq.read_table(folder / "part.parquet", columns=["id"])["id"].to_pylist()
            for name, row in zip(names, np.load(folder / "rows.npy"), strict=True):
                self.judge(name, row)
        self.parts = len(parts) + 1  # with the one that is judged next


def _build(path: Path, index: Index, before: list[Part], folder: Path) -> Facts:
    """One part against the parts before it and itself; its kept rows are left for the parts to come."""
    index.catch_up(before)
    start, signed = len(index.ids), studied(partial(sign, index.permutations_2K, index.config.ngram), path)
    facts = sift(folder, pq.read_schema(path), ((row, index.judge(row["id"], signature)) for row, signature in signed))
    np.save(folder / "rows.npy", np.array(index.rows[start:], np.uint32).reshape(-1, index.config.num_perm + EXACT))
    return facts
