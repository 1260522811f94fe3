"""Drop exact and near-duplicates: a document goes if and only if it is like an earlier one that stays.

In: Corpus. Out: Corpus without them; `dropped/` names the kept document of each with the estimated Jaccard similarity.
Method: MinHash LSH (Broder 1997) with datasketch's permutations and index, candidates verified on their signatures, in
order of arrival: of what unverified components remove, a third is like nothing that stays. A part knows only the parts
before it, so a corpus that grows at its end gives what one run over all of it would. Signatures know no other document:
where a part before it has changed, a part is judged again from those that were made once.
"""

from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasketch import LeanMinHash, MinHash, MinHashLSH
from pydantic import Field

from tasks.artifacts import Corpus, Metrics
from tasks.corpus import Facts, Sieve, Verdict, groups, place, settle, sift, tables
from tasks.files import file_digest, link
from tasks.manifest import key_of
from tasks.runtime import progress
from tasks.stage import stage
from tasks.store import part
from tasks.text.minhash import sign
from tasks.workers import spread

SEED, EXACT = 1, 4
ROWS, KEPT = "rows.npy", "kept.npy"
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
    index, parts = Index(config), []
    identity = key_of("signatures apart", config.model_dump_json(exclude={"max_drop_share"}))
    for number, path in enumerate(progress(corpus.parts, "parts", len(corpus.parts))):
        rows = index.sign(path)
        link(rows, out / "logs" / f"signatures-{number:05d}.npy")  # so they live as long as the artifact does
        identity = key_of(identity, file_digest(path))  # a chain: a part depends on all parts before it
        parts.append(place(out, number, identity, partial(_build, path, rows, index)))
        index.parts.append((parts[-1][0], rows))
    return settle(out, "dedup", parts, config.max_drop_share, "raise dedup.threshold")


class Index:
    """The documents that stay: their ids and rows (signature, exact digest), and buckets that propose candidates."""

    def __init__(self, config: Dedup):
        self.config = config
        self.permutations_2K = np.asarray(MinHash(config.num_perm, SEED, scheme="affine32").permutations)
        self.lsh = MinHashLSH(config.threshold, config.num_perm, WEIGHTS)
        self.ids, self.rows = list[str](), list[np.ndarray]()
        self.parts, self.known = list[tuple[Path, Path]](), 0

    def sign(self, path: Path) -> Path:
        """The file of a part's rows, made once whatever comes before it."""
        identity = ["signatures", file_digest(path), self.config.ngram, self.config.num_perm]
        return part(identity, partial(_sign, path, self.permutations_2K, self.config.ngram), counts=False)[0] / ROWS

    def judge(self, name: str, row: np.ndarray) -> Verdict:
        """(exact or near, estimated similarity, kept id) of the most like document, the first of equals; else keep."""
        if places := sorted(map(int, self.lsh.query(_lean(row)))):  # ty: ignore[invalid-argument-type]
            equal = np.stack([self.rows[place] for place in places]) == row
            estimates = equal[:, :-EXACT].mean(axis=1)
            best = int(estimates.argmax())
            if estimates[best] >= self.config.threshold:
                return "exact" if equal[best].all() else "near", float(estimates[best]), self.ids[places[best]]
        return self.keep(name, row)

    def keep(self, name: str, row: np.ndarray) -> None:
        """Take in a document that stays."""
        self.lsh.insert(len(self.ids), _lean(row), check_duplication=False)
        self.ids.append(name)
        self.rows.append(row)

    def catch_up(self) -> None:
        """Take in the parts that were reused, so not judged in this run."""
        for folder, rows in self.parts[self.known :]:
            names = pq.read_table(folder / "part.parquet", columns=["id"])["id"].to_pylist()
            for name, row in zip(names, np.load(rows)[np.load(folder / KEPT)], strict=True):
                self.keep(name, row)
        self.known = len(self.parts) + 1  # with the one that is judged next


def _lean(row: np.ndarray) -> LeanMinHash:
    return LeanMinHash(seed=SEED, hashvalues=row[:-EXACT], scheme="affine32")


def _sign(path: Path, permutations_2K: np.ndarray, ngram: int, folder: Path) -> Facts:
    """The row of every document of a part."""
    signed = progress(spread(partial(sign, permutations_2K, ngram), groups(path)), "row groups")
    none = np.empty((0, permutations_2K.shape[1] + EXACT), np.uint32)
    np.save(folder / ROWS, np.concatenate([none, *(rows for _, rows in signed)]))
    return {}


def _build(path: Path, rows: Path, index: Index, folder: Path) -> Facts:
    """One part against the parts before it and itself; which rows stay is noted for the parts to come."""
    index.catch_up()
    names = pq.read_table(path, columns=["id"])["id"].to_pylist()
    verdicts = [index.judge(name, row) for name, row in zip(names, np.load(rows), strict=True)]
    np.save(folder / KEPT, np.array([verdict is None for verdict in verdicts], bool))
    stream = iter(verdicts)
    return sift(folder, pq.read_schema(path), ((table, list(islice(stream, len(table)))) for table in tables(path)))
