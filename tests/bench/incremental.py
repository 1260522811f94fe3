"""Dedup of few new documents against many old ones, of which nothing but signatures is there.

`python tests/bench/incremental.py [--old 5000000] [--new 100000] [--work DIR]`. Old: random signatures, filed in a
store as an earlier run of the stage files them; the file that their text would be in is no parquet, so opening it is an
error. New: 2 KB of made-up words each, a tenth of them old ones. Told: CPU seconds of the refresh and of the same
documents without old ones, from which a full run's are reckoned.
"""

import argparse
import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import dedup as module
from tasks import likeness
from tasks.artifacts import Artifact, Corpus
from tasks.corpus import DOCUMENT, GROUP_ROWS
from tasks.dedup import Dedup, dedup
from tasks.likeness import ABOUT, IDS, IDS_AT_ONCE, SIGNATURES
from tasks.runtime import Runtime
from tasks.stage import Session, using
from tasks.store import Store
from tasks.text import runs
from tasks.text.minhash import permutations, sign, sketch

DRAW = np.random.default_rng(1)
CONFIG = Dedup(max_drop_share=1)


def texts(count: int) -> pa.Array:
    """Documents of about 2 KB: 300 words of a vocabulary of 50,000."""
    words = np.array([f"w{n:x}" for n in DRAW.integers(0, 16**6, 50_000)], object)
    return pa.array([" ".join(row) for row in words[DRAW.integers(0, len(words), (count, 300))]])


def write(path: Path, rows: pa.Array, label: str) -> None:
    """A part of a corpus."""
    ids = pa.array([f"{label}-{n}" for n in range(len(rows))])
    table = pa.table([ids, rows, pa.array([label] * len(rows))], DOCUMENT)
    pq.write_table(table, path, row_group_size=GROUP_ROWS // 2, compression="zstd", write_page_checksum=True)


def sign_old(
    count: int, known: np.ndarray, path: Path, ngram: int, width: int, number: int, rows: int, folder: Path
) -> dict:
    """What `_sign` writes, of documents whose signatures are random but for the known ones."""
    with open(folder / SIGNATURES, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_2_0(file, header)
        file.write(known.data)
        for start in range(len(known), count, 100_000):
            file.write(DRAW.integers(0, 256, (min(100_000, count - start), width), np.uint8).data)
    np.save(folder / ABOUT, DRAW.integers(0, 2**63, (count, 2), np.uint64))
    ids = pa.table([pa.array([f"old-{n}" for n in range(count)]), pa.array(["excerpt"] * count)], likeness.NAMES)
    pq.write_table(ids, folder / IDS, IDS_AT_ONCE, use_dictionary=False, compression="zstd")
    runs.write_run(folder, folder / SIGNATURES, number, rows)
    return {"documents": count}


def judge_old(count: int, path: Path, number: int, judge: module.Judge, folder: Path) -> dict:
    """What `_build` writes of a part that keeps all."""
    np.save(folder / module.STAYS, np.ones(count, bool))
    for name in ("part.parquet", "dropped.parquet"):
        (folder / name).write_bytes(b"")
    return {"documents": count, "bytes": 2_000 * count, "dropped": {}, "linked": [0, 1], "merged": 0}


def timed(name: str, work) -> float:
    """CPU seconds of a call, with those of what it starts."""

    def spent() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in both)

    begin, wall = spent(), time.monotonic()
    work()
    seconds = spent() - begin
    print(f"{name:<50} {seconds:8.2f} CPU s {time.monotonic() - wall:8.2f} s", flush=True)
    return seconds


def run(store: Path, folder: Path, names: list[str]) -> Artifact:
    """The stage over some parts."""
    given = Corpus(stage="filter", key="k", digest="-".join(names), path=folder)
    parts = mock.patch.object(Corpus, "parts", [folder / name for name in names])
    with parts, using(Session(Store(store), Runtime(workers=1))):
        return dedup(CONFIG, given)


def main() -> None:
    """Old, then new."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=int, default=5_000_000)
    parser.add_argument("--new", type=int, default=100_000)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=asked.work))
    fresh = texts(asked.new)
    write(work / "new.parquet", fresh, "new")
    (work / "old.parquet").write_text("nobody can read this")
    twice = fresh.slice(0, asked.new // 10)
    known = sketch(sign(pa.chunked_array([twice]), permutations(CONFIG.num_perm), CONFIG.ngram).signatures_DK)
    timed("new alone", lambda: run(work / "alone", work, ["new.parquet"]))  # compiled kernels come into memory
    alone = timed("new alone, again", lambda: run(work / "alone2", work, ["new.parquet"]))
    with (
        mock.patch.object(likeness, "_sign", partial(sign_old, asked.old, np.ascontiguousarray(known))),
        mock.patch.object(module, "_build", partial(judge_old, asked.old)),
        mock.patch.object(module, "settle", return_value={"data/documents": asked.old}),
    ):
        timed("(filing the old ones)", lambda: run(work / "store", work, ["old.parquet"]))
    with mock.patch.object(module, "settle", return_value={"data/documents": asked.old}):
        found = []
        refresh = timed("old and new", lambda: found.append(run(work / "store", work, ["old.parquet", "new.parquet"])))
    gone = pq.read_table(found[0].path / "dropped" / "part-00001.parquet").to_pylist()
    named = sum(row["kept_id"] == row["id"].replace("new", "old") for row in gone)
    print(f"{len(gone):,} of {len(twice):,} that were old went, {named:,} with the right one named")
    full = alone / asked.new * (asked.old + asked.new)
    each = alone / asked.new * 1e6
    print(f"a full run, from {each:.0f} us a document: {full:.0f} CPU s; the refresh {refresh / full:.1%} of it")


if __name__ == "__main__":
    main()
