"""Parquet to token shards, whole jobs: ours beside the bare encoder, nanoGPT, llm.c, datatrove and litdata.

`python tests/bench/shard.py [--mb 48] [--prose] [--nanogpt DIR] [--llmc DIR] [--peers PYTHON] [--rounds 3] [--scale]`.
DIRs are checkouts, whose own prepare.py (with its eight processes, and with one) and fineweb.py are run, only that they
load our parquet file; PYTHON is an interpreter that has datatrove and litdata (with tiktoken, tokenizers and pyarrow).
`--prose` takes only documentation that is mostly words, without HTML's tags: what this stage gets after a filter.
gpt2's vocabulary must be in tiktoken's cache ($TIKTOKEN_CACHE_DIR). Each side is a process of its own: user + system
seconds of it and all it started, imports included. Every side runs once a round, but litdata and one process of
nanoGPT, which take minutes, in the first alone, and its best round counts: a machine's speed wanders. A digest over the
ids of every document must be the same.
`--scale` compares memory and CPU seconds of two corpora, one ten times the other, instead.
"""

import argparse
import gzip
import hashlib
import html
import json
import multiprocessing
import os
import random
import re
import resource
import runpy
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

EOT, PIECE = 50_256, 4_000
KINDS = {".py", ".md", ".txt", ".rst", ".html", ".jsonl", ".csv", ".gz"}
TAGS, BLANK_LINES = re.compile(r"<(script|style).*?</\1>|<[^>]+>", re.DOTALL), re.compile(r"[ \t]*\n\s*\n")
BESIDE = Path(__file__).parents[3] / "shared" / "data"


# -- what is encoded --------------------------------------------------------------------------------------------------


def texts(size: int, prose: bool = False) -> Iterator[str]:
    """Documentation, sources and books of this machine in pieces of at most 4,000 characters."""
    roots = (Path("/usr/share/doc"), Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib")), BESIDE)
    files = sorted({p for root in roots for p in root.rglob("*") if p.suffix in KINDS and p.is_file()})
    random.Random(1).shuffle(files)
    seen = set()
    for path in files:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        if (name := hashlib.sha256(raw).digest()) in seen:
            continue
        seen.add(name)
        whole = raw.decode(errors="ignore")[:400_000]
        for piece in pieces(words(path, whole) if prose else whole):
            yield piece
            size -= len(piece.encode())
            if size < 0:
                return
    raise SystemExit(f"this machine has {size / 1e6:.0f} MB less text; lower --mb")


def pieces(whole: str) -> Iterator[str]:
    """A text in documents; some sides would take what begins with <| for a special token."""
    whole = whole.replace("<|", "< |")
    return (whole[at : at + PIECE] for at in range(0, len(whole), PIECE))


def words(path: Path, whole: str) -> str:
    """A text without tags where it is HTML; nothing where it is not documentation, or less than 85 % letters."""
    if ".html" in path.name:
        whole = html.unescape(TAGS.sub("", whole))
    whole = BLANK_LINES.sub("\n\n", whole).strip()
    letters = sum(character.isalpha() or character == " " for character in whole[:PIECE])
    document = {".html", ".txt", ".rst", ".md"} & set(path.suffixes)
    return whole if document and letters > 0.85 * len(whole[:PIECE]) else ""


def corpus(work: Path, out: Path, size: str, prose: str = "") -> None:
    """One corpus part with row groups of about 4 MiB, and gpt2 as our tokenizer stage writes it.

    In a process of its own too, as this one's memory is no side's.
    """
    (work / "bytes").write_text(str(write_corpus(work / "corpus", int(size), bool(prose))))
    write_tokenizer(work / "tokenizer")


def prepared(work: Path, size: float, prose: bool) -> int:
    """Make them; the bytes of text."""
    work.mkdir()
    measured(sys.executable, work, "corpus", str(int(size)), "prose" * prose)
    return int((work / "bytes").read_text())


def write_corpus(folder: Path, size: int, prose: bool) -> int:
    """The part; its bytes of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = [{"id": f"{n:016x}-0", "text": text, "source": "bench"} for n, text in enumerate(texts(size, prose))]
    table = pa.Table.from_pylist(rows)
    group = max(1, len(rows) * (4 << 20) // size)
    pq.write_table(
        table, folder / "part-00000.parquet", row_group_size=group, compression="zstd", write_page_checksum=True
    )
    return sum(len(row["text"].encode()) for row in rows)


def write_tokenizer(folder: Path) -> None:
    """gpt2's vocabulary."""
    from tiktoken_ext.openai_public import r50k_base

    from gpt.tokenizer import Tokenizer, reserve

    folder.mkdir()
    known = r50k_base()
    ranks = known["mergeable_ranks"]
    Tokenizer(ranks, "gpt2", reserve(ranks, known["special_tokens"])).save(folder)


# -- the sides, each in a process of its own --------------------------------------------------------------------------


def ours(work: Path, out: Path, fast: bool = False, workers: int = 1) -> None:
    """The stage's body."""
    from tasks.artifacts import Corpus, Tokenizer
    from tasks.runtime import Runtime, running
    from tasks.shard import Shard, shard

    corpus = Corpus(stage="dedup", key="k", digest="c", path=work / "corpus")
    vocabulary = Tokenizer(stage="tokenizer", key="k", digest="t", path=work / "tokenizer")
    with running("shard", Runtime(workers=workers, fast=fast)):
        shard.fn(out, Shard(), corpus, vocabulary)


def bare(work: Path, out: Path, processes: str = "1") -> None:
    """encode_ordinary in a loop over texts in memory, and nothing else: only the loop's time counts.

    With several processes each has its share of the texts and all begin at once: what the machine itself gives to two.
    """
    spawn, count = multiprocessing.get_context("spawn"), int(processes)
    begin, spent = spawn.Barrier(count), spawn.Queue()
    shares = [spawn.Process(target=bare_loop, args=(work, n, count, begin, spent)) for n in range(count)]
    for share in shares:
        share.start()
    cpu, wall = zip(*(spent.get(timeout=600) for _ in shares), strict=True)
    for share in shares:
        share.join()
    (out / "seconds").write_text(f"{sum(cpu)} {max(wall)}")


def bare_loop(work: Path, number: int, count: int, begin: Barrier, spent: multiprocessing.Queue) -> None:
    """One process's row groups: CPU and wall seconds of the loop."""
    import pyarrow.parquet as pq
    import tiktoken

    encode = tiktoken.get_encoding("gpt2").encode_ordinary
    file = pq.ParquetFile(work / "corpus" / "part-00000.parquet")
    mine = file.read_row_groups(range(number, file.num_row_groups, count), ["text"])["text"].to_pylist()
    encode("warm")
    begin.wait()
    cpu, wall = time.process_time(), time.monotonic()
    for text in mine:
        encode(text)
    spent.put((time.process_time() - cpu, time.monotonic() - wall))


def nanogpt(work: Path, out: Path, checkout: str, processes: str = "") -> None:
    """data/openwebtext/prepare.py, only with a larger validation split: it writes 1,024 batches of each."""
    import datasets

    split, each = datasets.Dataset.train_test_split, datasets.DatasetDict.map
    found = datasets.load_dataset("parquet", data_dir=str(work / "corpus")).select_columns(["text"])
    datasets.load_dataset = lambda *_, **__: found
    datasets.Dataset.train_test_split = lambda self, **how: split(self, **{**how, "test_size": 0.25})
    if processes == "1":
        datasets.DatasetDict.map = lambda self, *what, **how: each(self, *what, **{**how, "num_proc": None})
    shutil.copy(Path(checkout) / "data" / "openwebtext" / "prepare.py", out)
    runpy.run_path(str(out / "prepare.py"), run_name="__main__")


def llmc(work: Path, out: Path, checkout: str) -> None:
    """dev/data/fineweb.py; on two cores it takes one process."""
    import datasets

    found = datasets.load_dataset("parquet", data_dir=str(work / "corpus"), split="train")
    datasets.load_dataset = lambda *_, **__: found
    for name in ("fineweb.py", "data_common.py"):
        shutil.copy(Path(checkout) / "dev" / "data" / name, out)
    sys.path.insert(0, str(out))
    sys.argv = ["fineweb.py"]
    runpy.run_path(str(out / "fineweb.py"), run_name="__main__")


def datatrove(work: Path, out: Path) -> None:
    """ParquetReader and DocumentTokenizer."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    words = str(work / "tokenizer" / "tokenizer.json")
    write = DocumentTokenizer(str(out / "tokens"), tokenizer_name_or_path=words, eos_token="<|endoftext|>")
    steps = [ParquetReader(str(work / "corpus")), write]
    LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=str(out / "logs")).run()


def litdata(work: Path, out: Path, encoder: str) -> None:
    """optimize with TokensLoader and one worker, texts encoded by tokenizers, as in its README, or by tiktoken."""
    from litdata import TokensLoader, optimize

    inputs = sorted(map(str, (work / "corpus").iterdir()))
    fill = {"tokenizers": by_tokenizers, "tiktoken": by_tiktoken}[encoder]
    optimize(fill, inputs, str(out / "tokens"), chunk_size=2**23, item_loader=TokensLoader(), num_workers=1)


def by_tokenizers(path: str) -> Iterator:
    """What litdata's README does, with litgpt's tokenizer, which is this one."""
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(Path(path).parents[1] / "tokenizer" / "tokenizer.json"))
    yield from tensors(path, lambda text: words.encode(text).ids)


def by_tiktoken(path: str) -> Iterator:
    """The same with the reference."""
    import tiktoken

    yield from tensors(path, tiktoken.get_encoding("gpt2").encode_ordinary)


def tensors(path: str, encode) -> Iterator:
    """Documents as litdata takes them."""
    import pyarrow.parquet as pq
    import torch

    for batch in pq.ParquetFile(path).iter_batches(8192, columns=["text"]):
        for text in batch["text"].to_pylist():
            yield torch.tensor([*encode(text), EOT], dtype=torch.uint16)


# -- measured ---------------------------------------------------------------------------------------------------------


def digest(out: Path) -> tuple[int, int] | int:
    """Documents and a sum of their ids' hashes, in whatever order they lie; of litdata's chunks the tokens."""
    import numpy as np

    if chunks := list(out.glob("tokens/index.json")):
        return sum(chunk["dim"] for chunk in json.loads(chunks[0].read_text())["chunks"])
    total, documents = 0, 0
    for file in [*out.rglob("*.bin"), *out.rglob("*.ds")]:
        ids = np.fromfile(file, np.uint16)
        ids = ids[512:] if ids[:2].tolist() == [20240520 % 2**16, 20240520 >> 16] else ids
        for document in np.split(ids, np.flatnonzero(ids == EOT)):
            body = document[document != EOT]
            total += int.from_bytes(hashlib.blake2b(body.tobytes(), digest_size=8).digest()) if len(body) else 0
            documents += bool(len(body))
    return documents, total % 2**64


def measured(python: str, work: Path, side: str, *args: str) -> dict[str, float]:
    """Run a side; CPU and wall seconds, the largest process's MB, and what it wrote."""
    out = Path(tempfile.mkdtemp(dir=work))
    env = {**os.environ, "HF_HOME": str(out / "hf"), "HF_HUB_OFFLINE": "1", "TMPDIR": tempfile.mkdtemp(dir=work)}
    begin = time.monotonic()
    process = subprocess.Popen([python, __file__, "--side", side, str(work), str(out), *args], env=env,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stderr
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{side} failed:\n{said.decode()[-2000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    only, wall = out / "seconds", time.monotonic() - begin
    cpu, wall = map(float, only.read_text().split()) if only.exists() else (cpu, wall)
    made = None if only.exists() else digest(out)
    result = {"cpu": cpu, "wall": wall, "rss": int((out / "peak").read_text()) / 1e3, "made": made}
    shutil.rmtree(out)
    return result


def note_peak(out: Path) -> None:
    """The largest process of a side, in kB: its own ru_maxrss begins with that of whoever started it."""
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    (out / "peak").write_text(str(max(int(own.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)))


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The round with the fewest CPU seconds, and the least wall time of all."""
    return {**min(rounds, key=lambda one: one["cpu"]), "wall": min(one["wall"] for one in rounds)}


def idle() -> float:
    """The share of all cores that nobody used during a second."""
    first = list(map(int, Path("/proc/stat").read_text().split()[1:8]))
    time.sleep(1)
    spent = [b - a for a, b in zip(first, map(int, Path("/proc/stat").read_text().split()[1:8]), strict=True)]
    return spent[3] / sum(spent)


def compare(work: Path, asked: argparse.Namespace) -> None:
    """All sides in one run."""
    print(f"{os.cpu_count()} cores, {idle():.0%} idle before the run, load {os.getloadavg()[0]:.1f}")
    size = prepared(work / "all", asked.mb * 1_000_000, asked.prose)
    own = [("ours, tiktoken", "ours", []), ("bare encode_ordinary", "bare", []), ("ours, gigatoken", "ours", ["fast"])]
    own += [("ours, tiktoken, two workers", "ours", ["", "2"]), ("bare encode_ordinary, twice", "bare", ["2"])]
    others = [("nanoGPT prepare.py", "nanogpt", [asked.nanogpt])] if asked.nanogpt else []
    others += [("llm.c fineweb.py", "llmc", [asked.llmc])] if asked.llmc else []
    others += [("datatrove DocumentTokenizer", "datatrove", [])] if asked.peers else []
    once = [("nanoGPT prepare.py, one process", "nanogpt", [asked.nanogpt, "1"])] if asked.nanogpt else []
    once += [(f"litdata optimize, {e}", "litdata", [e]) for e in ("tokenizers", "tiktoken") if asked.peers]
    found = {name: [] for name, *_ in own + others + once}
    for turn in range(asked.rounds):
        for name, side, args in own + others + (once if turn == 0 else []):
            python = asked.peers if side in ("datatrove", "litdata") else sys.executable
            found[name].append(measured(python, work / "all", side, *args))
    rows = {name: best(rounds) for name, rounds in found.items()}
    print("side                                MB   CPU s  MB/CPU s  ours faster: tiktoken  gigatoken  wall s  MB RSS")
    for name, row in rows.items():
        right, made = rows["ours, tiktoken"]["made"], row["made"]
        ratios = [row["cpu"] / rows[f"ours, {engine}"]["cpu"] for engine in ("tiktoken", "gigatoken")]
        ids = "" if made in (None, right) else f"  {made:,} tokens" if isinstance(made, int) else "  OTHER IDS"
        speed = size / 1e6 / row["cpu"]
        print(f"{name:<31} {size / 1e6:>6.0f} {row['cpu']:>7.2f} {speed:>9.1f} {ratios[0]:>22.2f}", end="")
        print(f" {ratios[1]:>10.1f} {row['wall']:>7.1f} {row['rss']:>7.0f}{ids}")
    pairs = [("wall", "ours, tiktoken", "ours, tiktoken, two workers")]
    pairs += [("wall", "bare encode_ordinary", "bare encode_ordinary, twice")]
    pairs += [("cpu", name, f"ours, {engine}") for name, *_ in others for engine in ("tiktoken", "gigatoken")]
    for what, slow, fast in pairs:
        faster = [a[what] / b[what] for a, b in zip(found[slow], found[fast], strict=True)]
        turns = ", ".join(f"{times:.2f}" for times in faster)
        print(f"{fast}: {turns} times {slow} ({what}), turn by turn; median {statistics.median(faster):.2f}")
    print(f"{idle():.0%} idle after the run")
    for name in ("nanogpt", "llmc", "peers"):
        if not getattr(asked, name):
            print(f"--{name} was not given: left out")


def scale(work: Path, asked: argparse.Namespace) -> None:
    """Memory and time of a corpus and of one ten times its size."""
    small, large = work / "small", work / "large"
    for folder, megabytes in ((small, asked.mb / 10), (large, asked.mb)):
        prepared(folder, megabytes * 1e6, asked.prose)
    for args in ([], ["fast"], ["", "2"], ["fast", "2"]):
        a, b = (best([measured(sys.executable, f, "ours", *args) for _ in range(asked.rounds)]) for f in (small, large))
        way = f"{'gigatoken' if 'fast' in args else 'tiktoken'}, {args[1] if len(args) > 1 else 1} worker(s), "
        print(
            way + f"{asked.mb / 10:.0f} and {asked.mb} MB: largest process {a['rss']:.0f} and {b['rss']:.0f} MB ",
            end="",
        )
        print(f"({b['rss'] / a['rss']:.2f}x), CPU {a['cpu']:.2f} and {b['cpu']:.2f} s ({b['cpu'] / a['cpu']:.1f}x)")


def main() -> None:
    """Run one side, or all of them."""
    if sys.argv[1:2] == ["--side"]:
        side, work, out, *args = sys.argv[2:]
        if side == "ours":
            args = [args[0] == "fast", int(args[1])] if len(args) > 1 else [args == ["fast"]]
        globals()[side](Path(work), Path(out), *args)
        return note_peak(Path(out))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--prose", action="store_true")
    for name in ("nanogpt", "llmc", "peers"):
        parser.add_argument(f"--{name}")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gptloom-bench-") as folder:
        (scale if asked.scale else compare)(Path(folder), asked)


if __name__ == "__main__":
    main()
