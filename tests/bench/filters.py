"""The filter's rules beside datatrove's Gopher filters, and its personal data beside datatrove's formatter.

`python tests/bench/filters.py CORPUS PEER [--docs 5000] [--pii-mb 40] [--whole]`: CORPUS is a folder that
tests/bench/curated.py wrote (injected copies are left out; `--plain` makes none), PEER a Python with datatrove 0.10 and
spaCy. Both get the same documents, drawn by chance; each side is a process of its own that reads parquet, document
after document or row group after row group as in a pipeline, and does nothing else. CPU seconds are those of the whole
process (imports, numba's cache), and those after start-up; ours does all of the corpus as well, since start-up is most
of its time on 5,000 documents; with `--whole` datatrove takes personal data out of all of it too. Limits are Gopher's
own, English for every document, as datatrove's.
Prints tables, the share of equal decisions and what rules the others break, the share of equal texts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SIDES, HUGE = ("ours", "datatrove"), 10**9


def main() -> None:
    """Both tasks, both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("peer")
    parser.add_argument("--docs", type=int, default=5_000)
    parser.add_argument("--pii-mb", type=float, default=40)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.parquet" for name in ("gopher", "pii", "all")}
        for file, docs, mb in zip(files.values(), (given.docs, HUGE, HUGE), (HUGE, given.pii_mb, HUGE), strict=True):
            draw(given.corpus, file, docs, mb * 1e6)
        for what, compare in (("gopher", equal), ("pii", same_texts)):
            made = {side: measured(side, what, files[what], given.peer) for side in SIDES}
            compare(*(one.pop("result") for one in made.values()))
            whole = SIDES if given.whole and what == "pii" else SIDES[:1]
            all_of_it = {f"{s}, whole corpus": measured(s, what, files["all"], given.peer, tell=False) for s in whole}
            table(what, made | all_of_it)


def draw(corpus: Path, file: Path, docs: int, size_bytes: float) -> None:
    """Write that many documents, or that many bytes of them, in an order drawn by chance."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pa.concat_tables([pq.read_table(path) for path in sorted(corpus.glob("*.parquet"))])
    table = table.filter(pc.equal(table["source"], "text"))
    table = table.take(np.random.default_rng(7).permutation(len(table))[:docs])
    lengths = np.cumsum(pc.binary_length(table["text"]).to_numpy())
    table = table.slice(0, int(np.searchsorted(lengths, size_bytes)) + 1)
    pq.write_table(table.select(["text"]), file, row_group_size=1_500, compression="zstd")


def measured(side: str, what: str, file: Path, peer: str, tell: bool = True) -> dict[str, Any]:
    """Run a side; its CPU and wall seconds as a process, and what it found if it is to tell."""
    import resource

    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    out = file.with_suffix(f".{side}.json")
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    python = sys.executable if side == "ours" else peer
    subprocess.run([python, __file__, "--side", side, what, str(file), str(out), "tell" * tell], check=True)
    wall_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    texts = pq.read_table(file)["text"]
    facts = {"docs": len(texts), "mb": pc.sum(pc.binary_length(texts)).as_py() / 1e6}
    return json.loads(out.read_text()) | facts | {"cpu_s": cpu_s, "wall_s": wall_s}


def table(what: str, made: dict[str, Any]) -> None:
    """A line a side, then how many times datatrove's rates ours are."""
    columns = (what, "documents", "MB", "CPU s", "wall s", "after start-up", "MB per CPU s", "after start-up")
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for side, one in made.items():
        rates = f"{one['mb'] / one['cpu_s']:.2f} | {one['mb'] / one['work_s']:.2f}"
        times = f"{one['cpu_s']:.2f} | {one['wall_s']:.2f} | {one['work_s']:.2f}"
        print(f"| {side} | {one['docs']:,} | {one['mb']:.1f} | {times} | {rates} |")
    some, peer, whole, *others = made.values()
    pairs = (some, peer), (whole, others[0] if others else peer)
    for kind in ("cpu_s", "work_s"):
        first, last = (one["mb"] / one[kind] / other["mb"] * other[kind] for one, other in pairs)
        print(f"times datatrove by {kind}: {first:.1f} on the same documents, {last:.1f} on the whole corpus")


def equal(ours: list[str], theirs: list[str]) -> None:
    """How many documents both keep or both drop, and what rules the others break."""
    same = sum((a == "") == (b == "") for a, b in zip(ours, theirs, strict=True))
    dropped = [sum(reason != "" for reason in side) for side in (ours, theirs)]
    kept = [a == "" and b == "" for a, b in zip(ours, theirs, strict=True)]
    either = sum(a == "" or b == "" for a, b in zip(ours, theirs, strict=True))
    print(f"\nequal decisions: {same / len(ours):.2%}; dropped: ours {dropped[0]:,}, datatrove {dropped[1]:,}")
    print(f"of {either:,} documents that either keeps both keep {sum(kept):,} ({sum(kept) / max(1, either):.1%})")
    odd = Counter((a or "kept", b or "kept") for a, b in zip(ours, theirs, strict=True) if (a == "") != (b == ""))
    for (a, b), count in odd.most_common(14):
        print(f"  {count:5,}  ours {a}, datatrove {b}")


def same_texts(ours: list[str], theirs: list[str]) -> None:
    """Documents whose e-mail and IP spans are the same, of those in which either found any."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if "[EMAIL]" in a + b or "[IP]" in a + b]
    counts = {mark: [sum(text.count(mark) for text in side) for side in (ours, theirs)] for mark in ("[EMAIL]", "[IP]")}
    print(f"\nequal spans in {sum(a == b for a, b in pairs):,} of {len(pairs):,} documents that have any; {counts}")
    for a, b in [pair for pair in pairs if pair[0] != pair[1]][:5]:
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
        print(f"  ours {a[max(0, at - 30) : at + 40]!r}\n  datatrove {b[max(0, at - 30) : at + 40]!r}")


def warm(what: str) -> None:
    """Imports, and the kernels from numba's cache: start-up."""
    import pyarrow as pa

    from tasks.columns import strings

    list(globals()[f"ours_{what}"]([pa.chunked_array([strings(["some text"])])]))


# -- one side, in a process of its own --------------------------------------------------------------------------------


def ours_read(file: Path) -> Iterator[Any]:
    """Arrow columns, a row group each."""
    from tasks.corpus import groups

    return (group.table(["text"])["text"] for group in groups(file))


def ours_gopher(columns: Iterable[Any]) -> Iterator[str]:
    """The first rule that each document breaks."""
    from tasks.filter import Filter
    from tasks.text.quality import counted
    from tasks.text.rules import judge
    from tasks.text.scan import lowered
    from tasks.text.study import grams

    limits = Filter(preset="gopher", by_language={}).limits()
    verdicts = (v for column in columns for v in judge(counted(lowered(column), grams(None)), limits))
    return (verdict[0] if verdict else "" for verdict in verdicts)


def ours_pii(columns: Iterable[Any]) -> Iterator[Any]:
    """Texts with placeholders, as Arrow columns."""
    from tasks.text.pii import replaced, spans
    from tasks.text.scan import plain

    return (replaced(texts, spans(texts, ("email", "ip"))) for texts in map(plain, columns))


def datatrove_read(file: Path) -> Iterator[str]:
    """Python's strings."""
    import pyarrow.parquet as pq

    return (text for batch in pq.ParquetFile(file).iter_batches(1_000) for text in batch["text"].to_pylist())


def datatrove_gopher(texts: Iterable[str]) -> Iterator[str]:
    """Quality first, then repetition; the order does not matter to the decision."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    filters = GopherQualityFilter(), GopherRepetitionFilter()
    for number, text in enumerate(texts):
        found = (each.filter(Document(text=text, id=str(number))) for each in filters)
        yield next((answer[1] for answer in found if answer is not True), "")


def datatrove_pii(texts: Iterable[str]) -> Iterator[str]:
    """Texts with our placeholders, so that they can be compared."""
    from datatrove.pipeline.formatters import PIIFormatter

    formatter = PIIFormatter(email_replacement="[EMAIL]", ip_replacement="[IP]")
    return map(formatter.format, texts)


def work(side: str, what: str, file: Path, out: Path, tell: bool) -> None:
    """Do it, and write the CPU seconds that it took after start-up, and the result where that is to be told."""
    if side == "ours":
        sys.path.insert(0, str(Path(__file__).parents[2]))
        warm(what)
    else:
        import datatrove.pipeline.filters  # noqa: F401
    start = time.process_time()
    stream = globals()[f"{side}_{what}"](globals()[f"{side}_read"](file))
    result = list(stream) if tell else deque(stream, maxlen=0)
    work_s = time.process_time() - start
    if tell and side == "ours" and what == "pii":
        result = [text for column in result for text in column.to_pylist()]
    out.write_text(json.dumps({"work_s": work_s, "result": result if tell else None}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        work(*sys.argv[2:4], *map(Path, sys.argv[4:6]), tell=sys.argv[6] == "tell")
    else:
        main()
