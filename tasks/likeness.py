"""What dedup knows of a corpus's documents but their text: signatures, ids and sorted runs, part by part, in the store.

In: parts of a corpus. Out: which documents are alike, by ordinals that count through all parts in order.
A part is signed once, whatever stands before it; who shares a key with whom is found band by band (tasks/text/runs.py).
Old parts are never read again: of them only what lies here is looked at.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.columns import int64, strings
from tasks.corpus import EXCERPT_CHARS, Facts, Group, Part, groups
from tasks.files import file_digest, link
from tasks.parts import Job, built
from tasks.runtime import progress
from tasks.store import part
from tasks.text import runs
from tasks.text.minhash import bands, permutations, sign, sketch
from tasks.text.runs import Run
from tasks.text.scan import plain
from tasks.workers import spread

SIGNATURES, ABOUT, IDS, PAIRS = "signatures.npy", "about.npy", "ids.parquet", "pairs.npy"
MOST_RUNS, PAIRS_AT_ONCE, IDS_AT_ONCE = 16, 1 << 16, 1 << 15
NAMES = pa.schema({"id": pa.string(), "excerpt": pa.string()})


class Likeness:
    """The signed parts of a corpus; `logs` is where the artifact at work holds on to them.

    `chain` names what each part and all before it are; `past` are the facts of the parts judged so far, which tell
    what runs were made on the way: `linked`, the parts whose run was made together, and `merged`, up to where one is.
    """

    def __init__(self, paths: Sequence[Path], threshold: float, shape: tuple[int, int], logs: Path, chain: list[str]):
        """`shape`: words of an n-gram, permutations."""
        self.threshold, self.logs, self.chain, self.past = threshold, logs, chain, list[Facts]()
        self.bands, rows = bands(threshold, shape[1])
        logs.mkdir(exist_ok=True)
        jobs = [_signing(path, *shape, self.bands, rows) for path in paths]
        signed = progress(built(jobs, counts=False), "parts signed", len(jobs))
        found: list[Part] = [(self._held(folder, SIGNATURES), facts) for folder, facts in signed]
        self.folders, self.merged = [folder for folder, _ in found], 0
        self.firsts = [0, *np.cumsum([facts["documents"] for _, facts in found]).tolist()]

    def files(self, name: str) -> list[tuple[Path, int, int]]:
        """(file, first ordinal, documents) of every part."""
        spans = zip(self.folders, self.firsts, self.firsts[1:], strict=False)
        return [(folder / name, first, after - first) for folder, first, after in spans]

    def _held(self, folder: Path, name: str) -> Path:
        """The folder, one file of it linked into the artifact: so it lives as long as that does."""
        link(folder / name, self.logs / f"{folder.name[:16]}-{name}")
        return folder

    # -- who is like whom ---------------------------------------------------------------------------------------------

    def alike(self, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(later, earlier, estimate) of the pairs that reach the threshold, later ones in the parts from `start` on."""
        pairs_P = np.load(self._linked(start, len(self.folders)) / PAIRS)
        found = [(np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.float32))]
        for start in range(0, len(pairs_P), PAIRS_AT_ONCE):
            later_P = (pairs_P[start : start + PAIRS_AT_ONCE] >> np.uint64(32)).astype(np.uint32)
            earlier_P = (pairs_P[start : start + PAIRS_AT_ONCE] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
            wanted_N = np.union1d(later_P, earlier_P)
            places = np.searchsorted(wanted_N, later_P), np.searchsorted(wanted_N, earlier_P)
            estimates_P = runs.estimate(runs.rows_of(self.files(SIGNATURES), wanted_N), *places)
            alike = estimates_P >= self.threshold
            found.append((later_P[alike], earlier_P[alike], estimates_P[alike]))
        later_P, earlier_P, estimates_P = map(np.concatenate, zip(*found, strict=True))
        return later_P, earlier_P, estimates_P

    def content(self, docs_N: np.ndarray) -> np.ndarray:
        """The words' hash of each document."""
        wanted_N, back = np.unique(docs_N, return_inverse=True)
        return runs.rows_of(self.files(ABOUT), wanted_N)[back, 0] if len(docs_N) else docs_N

    def names(self, docs_N: np.ndarray) -> tuple[np.ndarray, pa.Table]:
        """Distinct ordinals in order, and a row each of `id` and `excerpt`."""
        wanted_N, found = np.unique(docs_N).astype(np.int64), [pa.table([strings([]), strings([])], NAMES)]
        owners_N = np.searchsorted(self.firsts, wanted_N, side="right") - 1
        for owner in np.unique(owners_N).tolist():
            rows = wanted_N[owners_N == owner] - self.firsts[owner]
            for number in np.unique(rows // IDS_AT_ONCE).tolist():
                near = rows[rows // IDS_AT_ONCE == number] - number * IDS_AT_ONCE
                found.append(Group(self.folders[owner] / IDS, number).table().take(int64(near)))
        return wanted_N, pa.concat_tables(found)

    def sizes(self) -> np.ndarray:
        """Bytes of every document."""
        return np.concatenate([np.load(path)[:, 1] for path, *_ in self.files(ABOUT)])

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
        at = max((facts["merged"] for facts in self.past[:stop]), default=0)
        found = [self._all(at)] if at else []
        while at < stop:
            start, end = self.past[at]["linked"]
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


def _signing(path: Path, ngram: int, num_perm: int, bands: int, rows: int) -> Job:
    """A part's signatures and run, made once whatever comes before it."""
    identity = ["signed", file_digest(path), ngram, num_perm, bands, rows]
    return identity, partial(_sign, path, ngram, num_perm, bands, rows)


def _signs(permutations_2K: np.ndarray, ngram: int, group: Group) -> tuple[np.ndarray, np.ndarray, pa.Table]:
    """Of a row group's documents the sketches, the words' hash beside the length in bytes, ids and excerpts."""
    table = group.table(["id", "text"])
    signed = sign(table["text"], permutations_2K, ngram)
    sizes_D = np.diff(plain(table["text"]).ends_D1).astype(np.uint64)
    excerpts = pc.utf8_slice_codeunits(table["text"], 0, EXCERPT_CHARS)  # ty: ignore[missing-attribute]
    names = pa.table([table["id"], excerpts], NAMES)
    return sketch(signed.signatures_DK), np.stack([signed.content_D, sizes_D], axis=1), names


def _sign(path: Path, ngram: int, num_perm: int, bands: int, rows: int, folder: Path) -> Facts:
    """Signatures, contents, ids and the run of a part, a row group in memory at a time."""
    count, about, waiting = pq.read_metadata(path).num_rows, [np.zeros((0, 2), np.uint64)], list[pa.Table]()
    signs, ids = partial(_signs, permutations(num_perm), ngram), partial(pq.ParquetWriter, folder / IDS, NAMES)
    how = {"compression": "zstd", "write_page_checksum": True, "use_dictionary": False}
    with open(folder / SIGNATURES, "wb") as file, ids(**how) as writer:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, num_perm)}
        np.lib.format.write_array_header_2_0(file, header)
        for _, (sketches_DK, about_D2, names) in progress(spread(signs, groups(path)), "row groups"):
            file.write(sketches_DK.data)
            about.append(about_D2)
            waiting = _written(writer, [*waiting, names], IDS_AT_ONCE)
        _written(writer, waiting, 1)
    np.save(folder / ABOUT, np.concatenate(about))
    runs.write_run(folder, folder / SIGNATURES, bands, rows)
    return {"documents": count}


def _written(writer: pq.ParquetWriter, waiting: list[pa.Table], least: int) -> list[pa.Table]:
    """Write row groups of IDS_AT_ONCE, so that a row's number tells its group; what is left, below `least`."""
    while sum(map(len, waiting)) >= least:
        joined = pa.concat_tables(waiting)
        writer.write_table(joined.slice(0, IDS_AT_ONCE), IDS_AT_ONCE)
        waiting = [joined.slice(IDS_AT_ONCE)]
    return waiting


def _link(old: list[Run], new: list[Run], bands: int, folder: Path) -> Facts:
    """The run of new parts, where it is not that of the one new part, and their pairs with old ones and each other."""
    found, several = runs.Distinct(), len(new) > 1
    with runs.BandFile(folder, bands if several else 0, sum(run.count for run in new)) as file:
        for _, (run, pairs_P) in progress(spread(partial(_pairs, old, new), range(bands)), "bands", bands):
            if run:
                file.append(*run)
            found.add(pairs_P)
    np.save(folder / PAIRS, found.all())
    return {}


def _pairs(old: list[Run], new: list[Run], band: int) -> tuple[tuple[np.ndarray, np.ndarray] | None, np.ndarray]:
    run = runs.merged(new, band)
    return run if len(new) > 1 else None, runs.pairs(old, *run, new[0].first, band)


def _merge(singles: list[Run], bands: int, folder: Path) -> Facts:
    """One run of many."""
    with runs.BandFile(folder, bands, sum(run.count for run in singles)) as file:
        for _, run in spread(partial(runs.merged, singles), range(bands)):
            file.append(*run)
    return {}
