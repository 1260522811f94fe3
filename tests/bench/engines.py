"""The engines beside each other: ingest, filter and dedup of the same files, whole processes, start-up included.

`python tests/bench/engines.py FOLDER [--workers 2] [ENGINE ...]` reads FOLDER/*.parquet (as tests/bench/curated.py
makes them), writes its text as 16 JSON lines files and as 16 parquet files, and prints for each engine and stage wall
and CPU seconds, MB of text per CPU second, and the largest memory of all processes together; the digests must agree.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

RUN = """
import json, resource, sys, time
from pathlib import Path
from tasks.dedup import Dedup, dedup
from tasks.filter import Filter, filter
from tasks.ingest import Ingest, ingest
from tasks.runtime import Runtime
from tasks.stage import Session, using
from tasks.store import Store

def main(store, engine, workers, source):
    def cpu_s():
        uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(use.ru_utime + use.ru_stime for use in uses)

    with using(Session(Store(Path(store)), Runtime(engine=engine, workers=int(workers)))) as session:
        found, made = {}, None
        for stage, config in ((ingest, Ingest(sources=(source,))), (filter, Filter(max_drop_share=1)),
                              (dedup, Dedup(max_drop_share=1))):
            wall, cpu = time.monotonic(), cpu_s()
            made = stage(config, made) if made else stage(config)
            found[stage.name] = [time.monotonic() - wall, cpu_s() - cpu, made.digest]
    print(json.dumps(found))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def split(folder: Path, out: Path, count: int = 16) -> int:
    """The texts as `count` files of both formats; their bytes."""
    texts = [text for path in sorted(folder.glob("*.parquet")) for text in pq.read_table(path)["text"].to_pylist()]
    for kind in ("jsonl", "parquet"):
        (out / kind).mkdir(parents=True)
    for number in range(count):
        mine = texts[number * len(texts) // count : (number + 1) * len(texts) // count]
        rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in mine)
        (out / "jsonl" / f"{number:02}.jsonl").write_text(rows)
        pq.write_table(pa.table({"text": mine}), out / "parquet" / f"{number:02}.parquet", compression="zstd")
    return sum(len(text.encode()) for text in texts)


def measured(script: Path, *arguments: str) -> tuple[float, float, int, dict]:
    """(wall s, CPU s of all processes, peak MB of all together, what it printed)."""
    start, peak = time.monotonic(), 0
    run = psutil.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True)
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.05):
            with suppress(psutil.Error):  # one ended while it was looked at
                family = [run, *run.children(recursive=True)]
                peak = max(peak, sum(process.memory_full_info().pss for process in family))

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed = run.communicate()[0]
    over.set()
    watcher.join()
    assert run.returncode == 0, arguments
    found = json.loads(printed.splitlines()[-1])
    return time.monotonic() - start, sum(cpu for _, cpu, _ in found.values()), peak >> 20, found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("engines", nargs="*", default=["serial", "threads", "processes", "dask", "auto"])
    parser.add_argument("--workers", default="2")
    parser.add_argument("--formats", nargs="*", default=["jsonl", "parquet"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work, digests = Path(name), dict[str, list[str]]()
        (work / "run.py").write_text(RUN)
        mb = split(asked.folder, work / "in") / 1e6
        print(f"{mb:.0f} MB of text; wall s / CPU s / MB per wall s of each stage")
        for kind in asked.formats:
            for engine in asked.engines:
                store = work / f"{kind}-{engine}"
                wall, _, peak, found = measured(
                    work / "run.py", str(store), engine, asked.workers, str(work / "in" / kind)
                )
                cells = [f"{name} {w:5.1f} / {c:5.1f} / {mb / w:4.0f}" for name, (w, c, _) in found.items()]
                print(f"{kind:8} {engine:10} whole {wall:5.1f} s  {'  '.join(cells)}  {peak:,} MB", flush=True)
                digests[f"{kind} {engine}"] = [digest for *_, digest in found.values()]
            one = [made for name, made in digests.items() if name.startswith(kind)]
            assert all(made == one[0] for made in one), digests


if __name__ == "__main__":
    main()
