"""Drop exact and near-duplicates: a document goes if and only if it is like an earlier one that stays.

In: Corpus. Out: Corpus without them; `dropped/` names the kept document of each with the estimated Jaccard similarity.
Method: MinHash LSH (Broder 1997) in three passes: `sign` every row group (tasks/text/minhash.py), `link` every band by
sorted runs on disk (tasks/text/runs.py), judge by the signatures in order of arrival: of what unverified components
remove, a third is like nothing that stays. A part knows only the parts before it, so a corpus that grows at its end
gives what one run over all of it would, and of the old parts nothing is read but signatures, ids and runs.
"""

from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from tasks.artifacts import Corpus, Metrics
from tasks.corpus import Facts, Group, Sieve, Verdict, groups, place, settle, sift, tables
from tasks.files import file_digest, link
from tasks.manifest import key_of
from tasks.parts import Job, built
from tasks.runtime import progress
from tasks.stage import stage
from tasks.store import part
from tasks.text import runs
from tasks.text.minhash import bands, permutations, sign, sketch
from tasks.text.runs import Run
from tasks.workers import spread

SIGNATURES, ABOUT, IDS, PAIRS, STAYS = "signatures.npy", "about.npy", "ids.parquet", "pairs.npy", "stays.npy"
MOST_RUNS, PAIRS_AT_ONCE, IDS_AT_ONCE = 16, 1 << 20, 1 << 16


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
    prefer: Literal["earliest", "longest"] = "earliest"
    """Which of two stays. With longest, as with components, every refresh judges the whole corpus again."""


@stage(Corpus, version="2")
def dedup(out: Path, config: Dedup, corpus: Corpus) -> Metrics:
    """Drop exact and near-duplicates, naming the document kept for each."""
    index, parts = Index(config, corpus.parts, out / "logs"), []
    for number, path in enumerate(progress(corpus.parts, "parts", len(corpus.parts))):
        parts.append(place(out, number, index.identities[number], partial(_build, path, number, index)))
        index.judged.append(parts[-1])
    return settle(out, "dedup", parts, config.max_drop_share, "raise dedup.threshold")


class Judgement(NamedTuple):
    """Of the documents of some parts, the last ones of a corpus: who stays, else who is kept for it, how like it is."""

    stays_D: np.ndarray
    kept_D: np.ndarray
    """Ordinals in the corpus."""
    scores_D: np.ndarray
    same_D: np.ndarray
    """Whether the words are the same, all in their order."""


class Index:
    """What is known of a corpus's documents but their text: signed parts, runs, and who stays of the parts before."""

    def __init__(self, config: Dedup, paths: Sequence[Path], logs: Path):
        self.config, self.logs = config, logs
        self.bands, self.rows = bands(config.threshold, config.num_perm)
        logs.mkdir(exist_ok=True)
        jobs = progress(built([self._signing(path) for path in paths], counts=False), "parts signed", len(paths))
        signed = [(self._held(folder, SIGNATURES), facts) for folder, facts in jobs]
        self.folders, counts = [folder for folder, _ in signed], [facts["documents"] for _, facts in signed]
        self.firsts = [0, *np.cumsum(counts).tolist()]
        chain, settings = [""], config.model_dump_json(exclude={"max_drop_share"})
        for path in paths:  # a part depends on all parts before it
            chain.append(key_of("judged", settings, chain[-1], file_digest(path)))
        self.chain, self.judged = chain, list[tuple[Path, Facts]]()
        self.whole = config.policy == "components" or config.prefer == "longest"
        self.identities = [[chain[-1], number] for number in range(len(paths))] if self.whole else chain[1:]
        self.start, self.merged, self.judgement = len(paths), 0, None

    def of(self, number: int) -> Judgement:
        """The judgement on one part, made together with that on all parts behind it."""
        if self.judgement is None or number < self.start:
            self.start = 0 if self.whole else number
            self.judgement = self._judge()
        low, high = (first - self.firsts[self.start] for first in self.firsts[number : number + 2])
        return Judgement(*(values[low:high] for values in self.judgement))

    def files(self, name: str) -> list[tuple[Path, int, int]]:
        """(file, first ordinal, documents) of every part."""
        spans = zip(self.folders, self.firsts, self.firsts[1:], strict=False)
        return [(folder / name, first, after - first) for folder, first, after in spans]

    def _signing(self, path: Path) -> Job:
        """A part's signatures and run, made once whatever comes before it."""
        config = self.config
        identity = ["signed, mixed", file_digest(path), config.ngram, config.num_perm, self.bands, self.rows]
        return identity, partial(_sign, path, config, self.bands, self.rows)

    def _held(self, folder: Path, name: str) -> Path:
        """The folder, one file of it linked into the artifact: so it lives as long as that does."""
        link(folder / name, self.logs / f"{folder.name[:16]}-{name}")
        return folder

    # -- runs ---------------------------------------------------------------------------------------------------------

    def _linked(self, start: int, stop: int) -> Path:
        """The pairs of some parts with all before them, and these parts' run."""

        def build(folder: Path) -> Facts:
            return _link(self._runs(start), self._singles(start, stop), self.bands, folder)

        identity = ["linked", self.chain[start], self.chain[stop]]
        return self._held(part(identity, build, counts=False)[0], PAIRS)

    def _singles(self, start: int, stop: int) -> list[Run]:
        spans = zip(self.folders[start:stop], self.firsts[start:], self.firsts[start + 1 :], strict=False)
        return [Run(folder, first, after - first) for folder, first, after in spans]

    def _runs(self, stop: int) -> list[Run]:
        """Runs over all documents before a part, as earlier runs of the stage left them; above 16 one for all."""
        past = [facts for _, facts in self.judged[:stop]]
        at = max((facts["merged"] for facts in past), default=0)
        found = [self._all(at)] if at else []
        while at < stop:
            start, end = past[at]["linked"]
            known = start == at and end <= stop and end - start > 1
            found += [self._run(self._linked(start, end), start, end)] if known else self._singles(at, at + 1)
            at = end if known else at + 1
        if len(found) > MOST_RUNS:
            self.merged, found = stop, [self._all(stop)]
        return found

    def _run(self, folder: Path, start: int, stop: int) -> Run:
        return Run(folder, self.firsts[start], self.firsts[stop] - self.firsts[start])

    def _all(self, stop: int) -> Run:
        """One run over all parts before one."""
        build = partial(_merge, self._singles(0, stop), self.bands)
        folder, _ = part(["merged", self.chain[stop]], build, counts=False)
        return self._run(self._held(folder, "keys.npy"), 0, stop)

    # -- judging ------------------------------------------------------------------------------------------------------

    def _judge(self) -> Judgement:
        """Judge the parts from `start` on against each other and all before them."""
        first, total = self.firsts[self.start], self.firsts[-1]
        later_P, earlier_P, estimates_P = self._alike(np.load(self._linked(self.start, len(self.folders)) / PAIRS))
        stays_D = np.ones(total, bool)
        stays_D[:first] = np.concatenate([[], *(np.load(f / STAYS) for f, _ in self.judged[: self.start])])
        kept_D, scores_D = np.zeros(total - first, np.uint32), np.zeros(total - first, np.float32)
        order_D = self._order(total)
        ranks_D = np.argsort(order_D).astype(np.uint32) if self.whole else np.arange(total, dtype=np.uint32)
        ends = np.stack([ranks_D[later_P], ranks_D[earlier_P]])
        late_P, soon_P = ends.max(axis=0), ends.min(axis=0)
        turn = np.lexsort((soon_P, late_P))
        judge = runs.greedy if self.config.policy == "greedy" else runs.components
        judge(late_P[turn], soon_P[turn], estimates_P[turn], stays_D, kept_D, scores_D)
        if self.whole:  # back from ranks to ordinals
            stays_D, kept_D, scores_D = stays_D[ranks_D], order_D[kept_D[ranks_D]], scores_D[ranks_D]
        gone = np.flatnonzero(~stays_D[first:])
        same_D = np.zeros(total - first, bool)
        same_D[gone] = self._content(gone + first) == self._content(kept_D[gone])
        return Judgement(stays_D[first:], kept_D, scores_D, same_D)

    def _order(self, total: int) -> np.ndarray:
        """Ordinals by preference: as they came, or the longest first."""
        if self.config.prefer == "earliest":
            return np.arange(total, dtype=np.uint32)
        sizes = np.concatenate([np.load(path)[:, 1] for path, *_ in self.files(ABOUT)])
        return np.argsort(-sizes.astype(np.int64), kind="stable").astype(np.uint32)

    def _alike(self, pairs_P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(later, earlier, estimate) of the pairs that reach the threshold."""
        found = [(np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.float32))]
        for start in range(0, len(pairs_P), PAIRS_AT_ONCE):
            later_P = (pairs_P[start : start + PAIRS_AT_ONCE] >> np.uint64(32)).astype(np.uint32)
            earlier_P = (pairs_P[start : start + PAIRS_AT_ONCE] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
            wanted_N = np.union1d(later_P, earlier_P)
            places = np.searchsorted(wanted_N, later_P), np.searchsorted(wanted_N, earlier_P)
            estimates_P = runs.estimate(runs.rows_of(self.files(SIGNATURES), wanted_N), *places)
            alike = estimates_P >= self.config.threshold
            found.append((later_P[alike], earlier_P[alike], estimates_P[alike]))
        later_P, earlier_P, estimates_P = map(np.concatenate, zip(*found, strict=True))
        return later_P, earlier_P, estimates_P

    def _content(self, docs_N: np.ndarray) -> np.ndarray:
        wanted_N, back = np.unique(docs_N, return_inverse=True)
        return runs.rows_of(self.files(ABOUT), wanted_N)[back, 0] if len(docs_N) else docs_N

    def names(self, docs_N: np.ndarray) -> dict[int, str]:
        """Ids by ordinals."""
        found, wanted_N = dict[int, str](), np.unique(docs_N).astype(np.int64)
        owners_N = np.searchsorted(self.firsts, wanted_N, side="right") - 1
        for owner in np.unique(owners_N).tolist():
            rows = wanted_N[owners_N == owner] - self.firsts[owner]
            for number in np.unique(rows // IDS_AT_ONCE).tolist():
                near = rows[rows // IDS_AT_ONCE == number]
                ids = Group(self.folders[owner] / IDS, number).table()["id"].take(near - number * IDS_AT_ONCE)
                found.update(zip((near + self.firsts[owner]).tolist(), ids.to_pylist(), strict=True))
        return found


def _signs(permutations_2K: np.ndarray, ngram: int, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Of a row group's documents the sketches, and the words' hash beside the length in bytes."""
    texts = group.table(["text"])["text"]
    signed = sign(texts, permutations_2K, ngram)
    sizes_D = pc.binary_length(texts).to_numpy().astype(np.uint64)  # ty: ignore[missing-attribute]
    return sketch(signed.signatures_DK), np.stack([signed.content_D, sizes_D], axis=1)


def _sign(path: Path, config: Dedup, bands: int, rows: int, folder: Path) -> Facts:
    """Signatures, contents, ids and the run of a part, a row group in memory at a time."""
    count, about = pq.read_metadata(path).num_rows, [np.zeros((0, 2), np.uint64)]
    signs = partial(_signs, permutations(config.num_perm), config.ngram)
    with open(folder / SIGNATURES, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, config.num_perm)}
        np.lib.format.write_array_header_2_0(file, header)
        for _, (lows_DK, about_D2) in progress(spread(signs, groups(path)), "row groups"):
            file.write(lows_DK.data)
            about.append(about_D2)
    np.save(folder / ABOUT, np.concatenate(about))
    ids = pq.read_table(path, columns=["id"])
    pq.write_table(ids, folder / IDS, IDS_AT_ONCE, use_dictionary=False, compression="zstd", write_page_checksum=True)
    runs.write_run(folder, folder / SIGNATURES, bands, rows)
    return {"documents": count}


def _link(old: list[Run], new: list[Run], bands: int, folder: Path) -> Facts:
    """The run of new parts, where it is not that of the one new part, and their pairs with old ones and each other."""
    found, several = [np.zeros(0, np.uint64)], len(new) > 1
    with runs.BandFile(folder, bands if several else 0, sum(run.count for run in new)) as file:
        for _, (run, pairs_P) in progress(spread(partial(_pairs, old, new), range(bands)), "bands", bands):
            if several:
                file.append(*run)
            found.append(pairs_P)
    np.save(folder / PAIRS, np.unique(np.concatenate(found)))
    return {}


def _pairs(old: list[Run], new: list[Run], band: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    run = runs.merged(new, band)
    return run, runs.pairs(old, *run, new[0].first, band)


def _merge(singles: list[Run], bands: int, folder: Path) -> Facts:
    """One run of many."""
    with runs.BandFile(folder, bands, sum(run.count for run in singles)) as file:
        for _, run in spread(partial(runs.merged, singles), range(bands)):
            file.append(*run)
    return {}


def _build(path: Path, number: int, index: Index, folder: Path) -> Facts:
    """One part: who goes and why; who stays is noted for the parts to come."""
    judged = index.of(number)
    np.save(folder / STAYS, judged.stays_D)
    gone = np.flatnonzero(~judged.stays_D)
    names = index.names(judged.kept_D[gone])
    verdicts: list[Verdict] = [None] * len(judged.stays_D)
    for row in gone.tolist():
        reason = "exact" if judged.same_D[row] else "near"
        verdicts[row] = reason, float(judged.scores_D[row]), names[int(judged.kept_D[row])]
    rows = iter(verdicts)
    judged_tables = ((table, list(islice(rows, len(table)))) for table in tables(path))
    facts = sift(folder, pq.read_schema(path), judged_tables)
    return facts | {"linked": [index.start, len(index.folders)], "merged": index.merged}
