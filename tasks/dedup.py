"""Drop exact and near-duplicates: a document goes if and only if it is like an earlier one that stays.

In: Corpus. Out: Corpus without them; `dropped/` names the kept document of each with the estimated Jaccard similarity.
Method: MinHash LSH (Broder 1997) with datasketch's permutations and index, candidates verified on their signatures, in
order of arrival: of what unverified components remove, a third is like nothing that stays. A part knows only the parts
before it, so a corpus that grows at its end gives what one run over all of it would.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasketch import LeanMinHash, MinHash, MinHashLSH
from pydantic import Field

from tasks.artifacts import Config, Corpus, Metrics
from tasks.corpus import Facts, Sieve, place, settle, tables
from tasks.runtime import progress
from tasks.stage import stage
from tasks.store import file_digest
from tasks.text.minhash import EMPTY, sign
from tasks.workers import spread

SEED = 1
WEIGHTS = (0.1, 0.9)
"""Candidates are verified, so a missed pair costs more than a needless candidate: more bands, shorter ones."""


class Dedup(Config):
    """What counts as a duplicate."""

    threshold: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of word n-grams from which two documents count as one. Higher keeps more."""
    ngram: int = Field(5, ge=1)
    """Words in a row that are compared."""
    num_perm: int = Field(128, ge=16)
    """Permutations: 128 estimate a similarity of 0.8 with a standard deviation of 0.035."""
    max_drop_share: float = Field(0.5, ge=0, le=1)
    """Stop when a greater share of the documents would go."""


@stage(Corpus, version="1")
def dedup(out: Path, config: Dedup, corpus: Corpus) -> Metrics:
    """Drop exact and near-duplicates, naming the document kept for each."""
    settings = config.model_dump(exclude={"max_drop_share"})
    digests = [file_digest(path) for path in corpus.parts]
    index, done, parts = Index(config), [], []
    for number, path in enumerate(corpus.parts):
        identity = [settings, digests[: number + 1]]
        folder, facts = place(out, number, identity, partial(_build, path, index, tuple(done)))
        done.append(folder)
        parts.append(facts)
    return settle(out, "dedup", parts, config.max_drop_share, "raise dedup.threshold")


class Index:
    """The documents that stay: their ids, exact digests and signatures, and the buckets that propose candidates."""

    def __init__(self, config: Dedup):
        self.config, self.parts = config, 0
        self.permutations_2K = np.asarray(MinHash(config.num_perm, SEED, scheme="affine32").permutations)
        self.lsh = MinHashLSH(config.threshold, config.num_perm, WEIGHTS)
        self.ids: list[str] = []
        self.exact: dict[str, int] = {}
        self.signatures: list[np.ndarray] = []

    def twin(self, exact: str, signature_K: np.ndarray) -> tuple[str, float, str] | None:
        """(reason, estimated similarity, kept id) of the most similar document that stays, the earliest among equals."""
        if (place := self.exact.get(exact)) is not None:
            return "exact", 1.0, self.ids[place]
        places = sorted(self.lsh.query(_lean(signature_K))) if signature_K[0] != EMPTY else []
        if not places:
            return None
        estimates = (np.stack([self.signatures[place] for place in places]) == signature_K).mean(axis=1)
        best = int(estimates.argmax())
        return (
            ("near", float(estimates[best]), self.ids[places[best]])
            if estimates[best] >= self.config.threshold
            else None
        )

    def add(self, name: str, exact: str, signature_K: np.ndarray) -> None:
        """A document stays."""
        place = len(self.ids)
        self.ids.append(name)
        self.exact[exact] = place
        self.signatures.append(signature_K)
        if signature_K[0] != EMPTY:
            self.lsh.insert(place, _lean(signature_K), check_duplication=False)

    def load(self, folders: Sequence[Path]) -> None:
        """Catch up with the parts that were reused."""
        for folder in folders[self.parts :]:
            names = pq.read_table(folder / "part.parquet", columns=["id"])["id"].to_pylist()
            exacts, signatures = np.load(folder / "exact.npy").tolist(), np.load(folder / "signatures.npy")
            for name, exact, signature in zip(names, exacts, signatures, strict=True):
                self.add(name, exact, signature)
        self.parts = len(folders)


def _build(path: Path, index: Index, before: Sequence[Path], folder: Path) -> Facts:
    """One part against the parts before it and itself; its kept signatures are left for the parts to come."""
    index.load(before)
    start = len(index.ids)
    sieve = Sieve(folder, pq.read_schema(path))
    work = partial(sign, index.permutations_2K, index.config.ngram)
    for table, (exacts, signatures) in progress(spread(work, tables(path)), "row groups"):
        for row, exact, signature in zip(table.to_pylist(), exacts, signatures, strict=True):
            if found := index.twin(exact, signature):
                sieve.drop(row["id"], found[0], row["text"], score=found[1], kept_id=found[2])
            else:
                index.add(row["id"], exact, signature)
                sieve.keep(row)
    index.parts += 1
    shape = (-1, index.config.num_perm)
    np.save(folder / "signatures.npy", np.array(index.signatures[start:], np.uint32).reshape(shape))
    np.save(folder / "exact.npy", np.array(list(index.exact)[start:], "U32"))
    return sieve.close()


def _lean(signature_K: np.ndarray) -> LeanMinHash:
    return LeanMinHash(seed=SEED, hashvalues=signature_K, scheme="affine32")
