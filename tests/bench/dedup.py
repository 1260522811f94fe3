"""Near-duplicates out of a corpus, whole jobs: ours beside datatrove, datasketch, rensa, Daft and text-dedup.

`python tests/bench/dedup.py [--mb 150] [--rounds 3] [--peers PYTHON] [--sides NAME ...] [--work DIR]`: the corpus of
tests/bench/curated.py, parquet in, parquet out; PYTHON is an interpreter that has datatrove (with spacy), datasketch,
rensa, daft (with scipy) and text-dedup. All compare word 5-grams by 256 hashes in 32 bands of 8, threshold 0.7.
Each side is a process of its own: user + system seconds of it and all it started, imports included, best of the rounds.
datatrove and text-dedup get an eighth and a sixteenth of the text; the line through both says what the whole costs.
Then what each removed, against the exact truth. `--work` keeps the corpora, so that a second call finds them made.
`--scale DOCUMENTS` instead: CPU seconds, and memory of all processes together, at a tenth, three tenths and all of so
many documents of 2 KB with two workers.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

NGRAM, HASHES, BANDS, THRESHOLD = 5, 256, 32, 0.7
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

# -- the sides, each in a process of its own --------------------------------------------------------------------------


def ours(corpus: Path, out: Path, workers: int = 1, cold: int = 0) -> None:
    """The stage's body; cold: as on a machine that has compiled no kernel yet."""
    if cold:
        os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()
    from tasks.artifacts import Corpus
    from tasks.dedup import Dedup, dedup
    from tasks.runtime import Runtime, running

    with running("dedup", Runtime(workers=workers)):
        given = Corpus(stage="filter", key="k", digest="c", path=corpus)
        dedup.fn(out, Dedup(threshold=THRESHOLD, max_drop_share=1), given)


def datatrove(corpus: Path, out: Path) -> None:
    """Its four stages, one task a file and a band, one worker."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup import MinhashDedupSignature as Signature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.typeshelper import Languages

    config = MinhashConfig(NGRAM, BANDS, HASHES // BANDS, hash_config=HashConfig(precision=64))
    signatures, buckets, gone = (str(out / "work" / name) for name in ("signatures", "buckets", "gone"))
    stages = [
        (1, [ParquetReader(str(corpus)), Signature(signatures, config, language=Languages.english)]),
        (BANDS, [MinhashDedupBuckets(signatures, buckets, config=config)]),
        (1, [MinhashDedupCluster(buckets, gone, config=config)]),
        (1, [ParquetReader(str(corpus)), MinhashDedupFilter(gone), ParquetWriter(str(out / "clean"))]),
    ]
    for number, (tasks, steps) in enumerate(stages):
        logs = str(out / "work" / f"logs{number}")
        LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=logs).run()


def datasketch(corpus: Path, out: Path, scheme: str) -> None:
    """MinHash.generator (what bulk makes a list of) and MinHashLSH; a document goes that is like one which stayed."""
    from datasketch import MinHash, MinHashLSH
    from xxhash import xxh3_64_intdigest

    how = {"affine32": {"scheme": "affine32", "hashfunc": lambda token: xxh3_64_intdigest(token) & 0xFFFFFFFF}}
    lsh, stays, kept = MinHashLSH(THRESHOLD, HASHES, params=(BANDS, HASHES // BANDS)), dict[int, MinHash](), []
    for table in tables(corpus):
        grams = ([token.encode() for token in tokens(text)] for text in table["text"].to_pylist())
        for minhash in MinHash.generator(grams, num_perm=HASHES, **how.get(scheme, {})):
            like = (minhash.jaccard(stays[place]) for place in lsh.query(minhash))
            kept.append(max(like, default=0) < THRESHOLD)
            if kept[-1]:
                lsh.insert(len(kept), minhash, check_duplication=False)
                stays[len(kept)] = minhash
    write(corpus, out, kept)


def rensa(corpus: Path, out: Path) -> None:
    """Its inline deduplicator, which verifies on signatures; its flags over a matrix name all members of a group."""
    from rensa import RMinHash, RMinHashDeduplicator

    inline, kept = RMinHashDeduplicator(THRESHOLD, HASHES, True, BANDS), []
    for table in tables(corpus):
        grams = [tokens(text) for text in table["text"].to_pylist()]
        for minhash in RMinHash.from_token_sets(grams, HASHES, 42):
            kept.append(inline.add(str(len(kept)), minhash))
    write(corpus, out, kept)


def daft(corpus: Path, out: Path) -> None:
    """minhash() over normalised text; buckets by numpy, components by scipy, their first document stays."""
    import numpy as np
    from daft import col, read_parquet
    from daft.functions import lower, minhash, regexp_replace, strip
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    normal = strip(regexp_replace(lower(col("text")), r"\W+", " "))
    hashed = minhash(normal, num_hashes=HASHES, ngram_size=NGRAM, hash_function="xxhash3_64").alias("hashes")
    frame = read_parquet(sorted(str(path) for path in corpus.iterdir())).select(hashed).to_arrow()
    rows = frame["hashes"].combine_chunks().flatten().to_numpy().reshape(-1, BANDS, HASHES // BANDS)
    edges = []
    for band in range(BANDS):
        keys = np.ascontiguousarray(rows[:, band]).view("V32").ravel()
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)
        edges.append(np.stack([first[which], np.arange(len(rows))]))
    a, b = np.concatenate(edges, axis=1)
    _, component = connected_components(coo_array((np.ones(len(a), bool), (a, b)), (len(rows), len(rows))))
    kept = np.zeros(len(rows), bool)
    kept[np.unique(component, return_index=True)[1]] = True
    write(corpus, out, kept.tolist())


def textdedup(corpus: Path, out: Path) -> None:
    """Its minhash command with one process; what it saves is then written as parquet."""
    from datasets import load_from_disk
    from text_dedup.config.base import load_config_from_toml
    from text_dedup.minhash import main

    (out / "config.toml").write_text(
        f'[input]\ninput_type = "local_files"\nfile_type = "parquet"\n[input.read_arguments]\npath = "parquet"\n'
        f'data_dir = "{corpus}"\nsplit = "train"\n[algorithm]\nalgorithm_name = "minhash"\ntext_column = "text"\n'
        f"num_perm = {HASHES}\nbands = {BANDS}\nrows = {HASHES // BANDS}\nthreshold = {THRESHOLD}\nnum_proc = 1\n"
        f'ngram_size = {NGRAM}\n[output]\noutput_dir = "{out}/work"\n[debug]\nenable_profiling = false\n'
    )
    main(load_config_from_toml(out / "config.toml"))
    load_from_disk(str(out / "work")).to_parquet(str(out / "part-00000.parquet"))


def tables(corpus: Path) -> Iterator:
    """Row groups."""
    import pyarrow.parquet as pq

    for path in sorted(corpus.iterdir()):
        with pq.ParquetFile(path) as file:
            yield from (file.read_row_group(number) for number in range(file.num_row_groups))


def tokens(text: str) -> list[str]:
    """A document's word 5-grams, the words together where there are fewer."""
    words = WORD.findall(text.lower())
    grams = zip(*(words[n:] for n in range(NGRAM)), strict=False)
    return [" ".join(gram) for gram in grams] if len(words) >= NGRAM else [" ".join(words)]


def write(corpus: Path, out: Path, kept: list[bool]) -> None:
    """The documents that stay, as parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flags, writer = iter(kept), None
    for table in tables(corpus):
        table = table.filter(pa.array([next(flags) for _ in range(len(table))]))
        writer = writer or pq.ParquetWriter(out / "part-00000.parquet", table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()


# -- what is compared -------------------------------------------------------------------------------------------------


def curated(folder: Path, out: Path, megabytes: str, seed: str) -> None:
    """The corpus, in a process of its own: this one's size would count as that of every side it starts."""
    from curated import curate

    curate(folder, float(megabytes), int(seed))


def synthetic(folder: Path, out: Path, documents: str) -> None:
    """Documents of 2 KB from lines of real text in any order; a tenth repeats a late one but for a line."""
    import random

    import pyarrow as pa
    import pyarrow.parquet as pq
    from curated import pieces, take

    lines = [line for text in take(20e6, pieces(3)) for line in text.splitlines() if len(line) > 20]
    draw, each, late = random.Random(5), 2_000 * len(lines) // sum(len(line.encode()) + 1 for line in lines), []
    schema, writer = pa.schema({"id": pa.string(), "text": pa.string(), "source": pa.string()}), None
    for start in range(0, int(documents), 2_048):
        rows = []
        for number in range(start, min(start + 2_048, int(documents))):
            chosen = draw.choices(lines, k=each)
            if number % 10 == 9:
                chosen = [*draw.choice(late)[1:], chosen[0]]
            late = [*late[-999:], chosen] if number % 100 == 0 else late or [chosen]
            rows.append({"id": f"{number:08d}", "text": "\n".join(chosen), "source": "bench"})
        (folder / "corpus").mkdir(exist_ok=True, parents=True)
        writer = writer or pq.ParquetWriter(folder / "corpus" / "part-00000.parquet", schema, compression="zstd",
                                            write_page_checksum=True)  # fmt: skip
        writer.write_table(pa.Table.from_pylist(rows, schema))
    if writer:
        writer.close()


def quality(folder: Path, out: Path, made: str) -> None:
    """What a side removed against the truth: recall by similarity and by kind, and documents gone for nothing."""
    import numpy as np
    import pyarrow.parquet as pq

    sizes = [pq.read_metadata(path).num_rows for path in (folder / "corpus").iterdir()]
    gone = np.ones(sum(sizes), bool)
    gone[[int(name) for path in sorted(Path(made).rglob("*.parquet")) if "dropped" not in path.parts
          for name in pq.read_table(path, columns=["id"])["id"].to_pylist()]] = False  # fmt: skip
    pairs, copies = pq.read_table(folder / "truth.parquet"), pq.read_table(folder / "copies.parquet")
    a, b, values = (pairs[name].to_numpy() for name in ("a", "b", "jaccard"))
    found, result = gone[a] | gone[b], {"documents": len(gone), "removed": int(gone.sum())}
    for low, high in ((0.9, 2), (0.8, 0.9), (0.7, 0.8)):
        result[f"recall {low}"] = float(found[(values >= low) & (values < high)].mean())
    for least in (0.7, 0.5):
        near, like = values >= least, np.zeros(len(gone), bool)
        like[a[near & ~gone[b]]] = like[b[near & ~gone[a]]] = True
        result[f"chain {least}"] = float((gone & ~like).sum() / max(1, gone.sum()))
    kinds, caught = copies["kind"].to_numpy(zero_copy_only=False), gone[copies["copy"]] | gone[copies["original"]]
    result["kinds"] = {str(kind): float(caught[kinds == kind].mean()) for kind in np.unique(kinds)}
    (out / "quality.json").write_text(json.dumps(result))


# -- measured ---------------------------------------------------------------------------------------------------------


def measured(python: str, side: str, folder: Path, *args: str, keep: Path | None = None) -> dict[str, float]:
    """Run a side; CPU and wall seconds, MB of the largest process and of all together; what it wrote goes to `keep`."""
    folder.mkdir(exist_ok=True, parents=True)
    temporary = Path(tempfile.mkdtemp(dir=folder))
    out, given = temporary / "out", folder / "corpus" if side in SIDES else folder
    out.mkdir()
    own = {"HF_HOME": str(temporary), "HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary), "DO_NOT_TRACK": "1"}
    env = {name: value for name, value in (os.environ | own).items() if name != "PYTHONDONTWRITEBYTECODE"}
    begin = time.monotonic()
    process = subprocess.Popen([python, __file__, "--side", side, str(given), str(out), *args], env=env,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    most = [0.0]
    threading.Thread(target=watch, args=(process.pid, most), daemon=True).start()
    assert process.stderr
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{side} failed:\n{said.decode()[-3000:]}")
    result = {"cpu": usage.ru_utime + usage.ru_stime, "wall": time.monotonic() - begin}
    result |= {"rss": usage.ru_maxrss / 1e3, "all": most[0]}
    if keep:
        shutil.rmtree(keep, ignore_errors=True)
        out.rename(keep)
    shutil.rmtree(temporary)
    return result


def watch(pid: int, most: list[float]) -> None:
    """The most MB that a process and all below it hold together, shared pages counted once; looked at all the time."""
    while True:
        total, waiting = 0, [pid]
        while waiting:
            here = Path(f"/proc/{waiting.pop()}")
            try:
                total += int(re.search(r"Pss:\s+(\d+)", (here / "smaps_rollup").read_text())[1])  # ty: ignore[not-subscriptable]
                waiting += map(int, chain(*((t / "children").read_text().split() for t in (here / "task").iterdir())))
            except (OSError, TypeError):  # it has just ended
                if str(pid) == here.name:
                    return
        most[0] = max(most[0], total * 1024 / 1e6)
        time.sleep(0.1)


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The round with the fewest CPU seconds, and the least wall time of all."""
    return {**min(rounds, key=lambda one: one["cpu"]), "wall": min(one["wall"] for one in rounds)}


SIDES = {"ours": ours, "datatrove": datatrove, "datasketch": datasketch, "rensa": rensa, "daft": daft,
         "textdedup": textdedup}  # fmt: skip
ROWS = [
    ("ours", "ours", (), 1),
    ("ours, two workers", "ours", ("2",), 1),
    ("ours, kernels not yet compiled", "ours", ("1", "1"), 1),
    ("ours, an eighth", "ours", (), 8),
    ("datasketch, affine32 and xxh3", "datasketch", ("affine32",), 1),
    ("datasketch, as it comes", "datasketch", ("default",), 4),
    ("rensa, inline", "rensa", (), 1),
    ("Daft and scipy", "daft", (), 1),
    ("text-dedup", "textdedup", (), 8),
    ("datatrove", "datatrove", (), 8),
]
"""Name, side, its arguments, and which part of the text it gets: 8 is an eighth."""


def part(work: Path, asked: argparse.Namespace, share: int) -> Path:
    """The corpus with this part of the text, made once."""
    folder = work / f"{asked.mb}mb-{share}"
    if not (folder / "truth.parquet").exists():
        shutil.rmtree(folder, ignore_errors=True)
        measured(sys.executable, "curated", folder, str(asked.mb / share), str(asked.seed))
    return folder


def megabytes(folder: Path) -> float:
    """Its text."""
    import pyarrow.compute as pc

    return sum(pc.sum(pc.binary_length(t["text"])).as_py() for t in tables(folder / "corpus")) / 1e6  # ty: ignore[unresolved-attribute]


def judged(folder: Path, made: Path) -> dict:
    """The quality of what a side wrote."""
    measured(sys.executable, "quality", folder, str(made), keep=folder / "judged")
    return json.loads((folder / "judged" / "quality.json").read_text())


def compare(work: Path, asked: argparse.Namespace) -> None:
    """All sides in one run."""
    rows = [row for row in ROWS if (asked.peers or row[1] == "ours") and (not asked.sides or row[1] in asked.sides)]
    shares = {1} | {share * half for *_, share in rows if share > 1 for half in (1, 2)}
    folders = {share: part(work, asked, share) for share in sorted(shares)}
    size = {share: megabytes(folder) for share, folder in folders.items()}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {size[1]:.1f} MB, seed {asked.seed}", flush=True)
    found, halves, wrote = {name: [] for name, *_ in rows}, {}, {}
    for turn in range(asked.rounds):
        for name, side, args, share in rows:
            if turn and share > 1:
                continue
            python = sys.executable if side == "ours" else asked.peers
            wrote[name] = folders[share] / f"made by {name}"
            found[name].append(measured(python, side, folders[share], *args, keep=wrote[name]))
            if share > 1:
                halves[name] = measured(python, side, folders[2 * share], *args)
    costs(rows, {name: best(rounds) for name, rounds in found.items()}, halves, size)
    verdict({name: judged(folders[share], wrote[name]) for name, _, _, share in rows})


def costs(rows: list, found: dict[str, dict], halves: dict[str, dict], size: dict[int, float]) -> None:
    """The table of seconds and memory."""
    base = None
    print(
        "side                              MB   CPU s  whole: CPU s  MB/CPU s  times ours  wall s  MB largest     all"
    )
    for name, _, _, share in rows:
        row, cpu = found[name], found[name]["cpu"]
        if share > 1:
            cpu += (cpu - halves[name]["cpu"]) * (size[1] - size[share]) / (size[share] - size[2 * share])
        base = base or cpu
        print(f"{name:<30} {size[share]:>5.1f} {row['cpu']:>7.2f} {cpu:>13.2f} {size[1] / cpu:>9.1f}", end="")
        print(f" {cpu / base:>11.2f} {row['wall']:>7.2f} {row['rss']:>11.0f} {row['all']:>6.0f}", flush=True)


def verdict(verdicts: dict[str, dict]) -> None:
    """The tables of what was removed."""
    print("\nside                           documents removed  J>=.9  .8-.9  .7-.8  nothing like it left: J .7    .5")
    for name, one in verdicts.items():
        recall = " ".join(f"{one[f'recall {least}']:>6.4f}" for least in (0.9, 0.8, 0.7))
        print(f"{name:<30} {one['documents']:>9,} {one['removed']:>7,} {recall}", end="")
        print(f" {one['chain 0.7']:>28.2%} {one['chain 0.5']:>6.2%}")
    print("\nshare of injected copies of which one of the two is gone")
    print(f"{'kind':<26}" + "".join(f"{name[:16]:>18}" for name in verdicts))
    for kind in next(iter(verdicts.values()))["kinds"]:
        print(f"{kind:<26}" + "".join(f"{one['kinds'].get(kind, float('nan')):>18.3f}" for one in verdicts.values()))


def scale(work: Path, asked: argparse.Namespace) -> None:
    """CPU seconds and memory of three sizes."""
    first = None
    print("documents    CPU s  of the first  wall s  MB largest process   all together  of the first", flush=True)
    for documents in (asked.scale // 10, asked.scale * 3 // 10, asked.scale):
        folder = work / f"synthetic-{documents}"
        if not folder.exists():
            measured(sys.executable, "synthetic", folder, str(documents))
        row = measured(sys.executable, "ours", folder, "2")
        first = first or row
        print(f"{documents:>9,} {row['cpu']:>8.1f} {row['cpu'] / first['cpu']:>13.2f} {row['wall']:>7.1f}", end="")
        print(f" {row['rss']:>19.0f} {row['all']:>14.0f} {row['all'] / first['all']:>13.2f}", flush=True)


def main() -> None:
    """Run one side, or all of them."""
    if sys.argv[1:2] == ["--side"]:
        side, given, out, *args = sys.argv[2:]
        values = [int(arg) for arg in args] if side == "ours" else args
        return globals()[side](Path(given), Path(out), *values)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--scale", type=int)
    parser.add_argument("--peers")
    parser.add_argument("--sides", nargs="+", choices=SIDES)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gptloom-bench-") as folder:
        (scale if asked.scale else compare)(asked.work or Path(folder), asked)


if __name__ == "__main__":
    main()
