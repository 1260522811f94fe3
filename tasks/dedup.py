"""Drop exact and near-duplicates: a document goes if and only if it is like an earlier one that stays.

In: Corpus. Out: Corpus without them; `dropped/` names the kept document of each with the estimated Jaccard similarity.
Method: MinHash LSH (Broder 1997) in three passes: `sign` every row group (tasks/text/minhash.py), `link` every band by
sorted runs on disk (tasks/likeness.py), judge by the signatures in order of arrival: of what unverified components
remove, a third is like nothing that stays. A part knows only the parts before it, so a corpus that grows at its end
gives what one run over all of it would, and of the old parts nothing is read but signatures, ids and runs.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from tasks.artifacts import Corpus, Metrics
from tasks.columns import int64
from tasks.corpus import Facts, Part, Sieve, Verdict, groups, place, settle, sift, tables
from tasks.files import file_digest
from tasks.likeness import Likeness
from tasks.manifest import key_of
from tasks.runtime import progress
from tasks.stage import stage
from tasks.text import runs

STAYS = "stays.npy"


class Dedup(Sieve):
    """What counts as a duplicate, and which one stays."""

    threshold: float = Field(0.7, gt=0, le=1)
    """Jaccard similarity of word n-grams from which two documents count as one. Higher keeps more."""
    ngram: int = Field(5, ge=1)
    """Words in a row that are compared."""
    num_perm: int = Field(256, ge=16)
    """Permutations: 256 estimate a similarity of 0.7 with a standard deviation of 0.029."""
    policy: Literal["greedy", "components"] = "greedy"
    """greedy: who is like one that stays goes. components: of all that hang together by pairs only one stays."""
    prefer: Literal["earliest", "longest"] = Field("earliest", title="Which stays")  # a stage is called prefer too
    """Which of two stays. With longest, as with components, every refresh judges the whole corpus again."""


@stage(Corpus, version="2")
def dedup(out: Path, config: Dedup, corpus: Corpus) -> Metrics:
    """Drop exact and near-duplicates, naming the document kept for each."""
    judge = Judge(config, corpus.parts, out / "logs")
    for number, path in enumerate(progress(corpus.parts, "parts", len(corpus.parts))):
        judge.learn(place(out, number, judge.identities[number], partial(_build, path, number, judge)))
    return settle(out, "dedup", judge.parts, config.max_drop_share, "raise dedup.threshold")


class Judgement(NamedTuple):
    """Of the documents of some parts, the last ones of a corpus: who stays, else who is kept for it, how like it is."""

    stays_D: np.ndarray
    kept_D: np.ndarray
    """Ordinals in the corpus."""
    scores_D: np.ndarray
    same_D: np.ndarray
    """Whether the words are the same, all in their order."""


class Judge:
    """Decides who stays, for a part and all behind it at once."""

    def __init__(self, config: Dedup, paths: Sequence[Path], logs: Path):
        chain, settings = [""], config.model_dump_json(exclude={"max_drop_share"})
        for path in paths:  # a part depends on all parts before it
            chain.append(key_of("judged", settings, chain[-1], file_digest(path)))
        self.known = Likeness(paths, config.threshold, (config.ngram, config.num_perm), logs, chain)
        self.config, self.parts = config, list[Part]()
        self.whole = config.policy == "components" or config.prefer == "longest"
        self.identities = [[chain[-1], number] for number in range(len(paths))] if self.whole else chain[1:]
        self.start, self.judgement = len(paths), None

    def learn(self, made: Part) -> None:
        """Take in the next part as it was judged, in this run or an earlier one."""
        self.parts.append(made)
        self.known.past.append(made[1])

    def of(self, number: int) -> Judgement:
        """The judgement on one part, made together with that on all parts behind it."""
        if self.judgement is None or number < self.start:
            self.start = 0 if self.whole else number
            self.judgement = self._judge()
        firsts = self.known.firsts
        low, high = (first - firsts[self.start] for first in firsts[number : number + 2])
        return Judgement(*(values[low:high] for values in self.judgement))

    def _judge(self) -> Judgement:
        """Judge the parts from `start` on against each other and all before them."""
        first, total = self.known.firsts[self.start], self.known.firsts[-1]
        later_P, earlier_P, estimates_P = self.known.alike(self.start)
        stays_D = np.ones(total, bool)
        stays_D[:first] = np.concatenate([[], *(np.load(folder / STAYS) for folder, _ in self.parts[: self.start])])
        kept_D, scores_D = np.zeros(total - first, np.uint32), np.zeros(total - first, np.float32)
        order_D = self._order(total)
        ranks_D = np.argsort(order_D).astype(np.uint32) if self.whole else order_D
        ends = np.stack([ranks_D[later_P], ranks_D[earlier_P]])
        late_P, soon_P = ends.max(axis=0), ends.min(axis=0)
        turn = np.lexsort((soon_P, late_P))
        judge = runs.greedy if self.config.policy == "greedy" else runs.components
        judge(late_P[turn], soon_P[turn], estimates_P[turn], stays_D, kept_D, scores_D)
        if self.whole:  # back from ranks to ordinals
            stays_D, kept_D, scores_D = stays_D[ranks_D], order_D[kept_D[ranks_D]], scores_D[ranks_D]
        gone, same_D = np.flatnonzero(~stays_D[first:]), np.zeros(total - first, bool)
        same_D[gone] = self.known.content(gone + first) == self.known.content(kept_D[gone])
        return Judgement(stays_D[first:], kept_D, scores_D, same_D)

    def _order(self, total: int) -> np.ndarray:
        """Ordinals by preference: as they came, or the longest first."""
        if self.config.prefer == "earliest":
            return np.arange(total, dtype=np.uint32)
        return np.argsort(-self.known.sizes().astype(np.int64), kind="stable").astype(np.uint32)


def _build(path: Path, number: int, judge: Judge, folder: Path) -> Facts:
    """One part: who goes and why; who stays is noted for the parts to come."""
    judged = judge.of(number)
    np.save(folder / STAYS, judged.stays_D)
    wanted_N, names = judge.known.names(judged.kept_D[~judged.stays_D])
    ends = np.cumsum([0, *(pq.read_metadata(path).row_group(group.number).num_rows for group in groups(path))])
    told = (_verdicts(Judgement(*(each[a:b] for each in judged)), wanted_N, names) for a, b in pairwise(ends.tolist()))
    facts = sift(folder, pq.read_schema(path), zip(tables(path), told, strict=True))
    return facts | {"linked": [judge.start, len(judge.identities)], "merged": judge.known.merged}


def _verdicts(judged: Judgement, wanted_N: np.ndarray, names: pa.Table) -> list[Verdict]:
    """What is said of each document of a row group."""
    verdicts: list[Verdict] = [None] * len(judged.stays_D)
    gone = np.flatnonzero(~judged.stays_D)
    kept = names.take(int64(np.searchsorted(wanted_N, judged.kept_D[gone])))
    named = zip(gone.tolist(), *(column.to_pylist() for column in kept.columns), strict=True)
    for row, name, excerpt in named:
        verdicts[row] = "exact" if judged.same_D[row] else "near", float(judged.scores_D[row]), (name, excerpt)
    return verdicts
