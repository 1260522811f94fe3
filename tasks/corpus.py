"""What the stages that yield a Corpus share: reading and writing parts, dropping rows, counting, stopping in time.

In: rows. Out: `part-*.parquet` and `dropped/part-*.parquet` in the artifact, metrics, examples to look at.
Parquet carries page checksums, checked on reading: without them 134 of 200 flipped bits went through unseen.
"""

import heapq
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from gpt.errors import UserError
from tasks.artifacts import Config, Metrics
from tasks.columns import booleans, doubles, int64, strings
from tasks.files import link
from tasks.parts import Job, built
from tasks.parts import Part as Part
from tasks.store import part

STRING, DOUBLE = pa.string(), pa.float64()
DOCUMENT = pa.schema({"id": STRING, "text": STRING, "source": STRING})
DROPPED = pa.schema(
    {"id": STRING, "detail": STRING, "reason": STRING, "score": DOUBLE, "kept_id": STRING, "kept": STRING}
)
GROUP_BYTES, GROUP_ROWS = 4 << 20, 4_096
EXCERPT_CHARS, EXAMPLES, LEAST_EXAMPLES, TOP_REASONS = 200, 20, 5, 12

Facts = dict[str, Any]
"""What a part says of itself: documents, bytes, dropped {reason: count}."""
Kept = tuple[str, str]
"""A document that is kept in another's place: its id, an excerpt."""
Verdict = tuple[str, float | None, Kept | None] | None
"""Why a row goes: a one-word reason, the number behind it, what is kept in its place; None: it stays."""


class Sieve(Config):
    """Settings of a stage that drops what is no good."""

    max_drop_share: float = Field(0.5, ge=0, le=1)
    """Stop when a greater share of the documents would go."""


class Group(NamedTuple):
    """A row group of a part: what workers are handed, and read for themselves."""

    path: Path
    number: int

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Its rows, page checksums verified."""
        with pq.ParquetFile(self.path, metadata=_about(self.path), page_checksum_verification=True) as file:
            return file.read_row_group(self.number, columns, use_threads=False)  # a third less work for one column


def groups(path: Path) -> list[Group]:
    """A part's row groups in order."""
    return [Group(path, number) for number in range(pq.read_metadata(path).num_row_groups)]


def _about(path: Path) -> pq.FileMetaData:
    """What the end of a file tells; read once for all its groups, of which it has a word on each."""
    told = path.stat()
    return _read_about(path, told.st_mtime_ns, told.st_size)


@lru_cache(1)
def _read_about(path: Path, mtime_ns: int, size: int) -> pq.FileMetaData:
    return pq.read_metadata(path)


def tables(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The row groups' tables in order."""
    return (group.table(columns) for group in groups(path))


def documents(parts: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    """(id, text, source) of each document in order, a row group in memory at a time."""
    for table in (table for path in parts for table in tables(path, DOCUMENT.names)):
        yield from zip(*(table[name].to_pylist() for name in DOCUMENT.names), strict=True)


def sift(
    folder: Path,
    schema: pa.Schema,
    judged: Iterable[tuple[pa.Table, Sequence[Verdict]]],
) -> Facts:
    """Write one part: rows that stay in part.parquet, the others in dropped.parquet with an excerpt; count both."""
    documents, size_bytes, reasons = 0, 0, Counter[str]()
    writer = partial(
        pq.ParquetWriter, compression="zstd", write_page_checksum=True, use_dictionary=["source", "reason"]
    )
    with writer(folder / "part.parquet", schema) as kept, writer(folder / "dropped.parquet", DROPPED) as dropped:
        for table in _filled(_parted(judged, dropped, reasons)):
            kept.write_table(table)
            documents += len(table)
            size_bytes += pc.sum(pc.binary_length(table["text"])).as_py()  # ty: ignore[missing-attribute]
    return {"documents": documents, "bytes": size_bytes, "dropped": dict(reasons)}


def _parted(judged: Iterable, dropped: pq.ParquetWriter, reasons: Counter[str]) -> Iterator[pa.Table]:
    """What stays of each table; what goes is written to `dropped` and counted."""
    for table, verdicts in judged:
        gone = [(row, *verdict) for row, verdict in enumerate(verdicts) if verdict]
        if not gone:
            yield table
            continue
        places, why, scores, kept = map(list, zip(*gone, strict=True))
        lost = table.take(int64(np.array(places)))
        details = pc.utf8_slice_codeunits(lost["text"], 0, EXCERPT_CHARS)  # ty: ignore[missing-attribute]
        ids, texts = zip(*(one or (None, None) for one in kept), strict=True)
        told = strings(why), doubles(scores), strings(ids), strings(texts)
        dropped.write_table(pa.table([lost["id"], details, *told], DROPPED))
        reasons.update(why)
        yield table.filter(booleans(np.array([verdict is None for verdict in verdicts])))


def _filled(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, small tables joined to row groups of about 4 MiB, the most that a reader must hold at once."""
    waiting = list[pa.Table]()
    for table in filter(len, tables):
        joined = [*waiting, table]
        if waiting and (sum(t.nbytes for t in joined) > GROUP_BYTES * 5 // 4 or sum(map(len, joined)) > GROUP_ROWS):
            yield pa.concat_tables(waiting)
            joined = [table]
        waiting = joined
    if waiting:
        yield pa.concat_tables(waiting)


def gathered(pairs: Iterable[tuple[Mapping[str, Any], Verdict]], schema: pa.Schema) -> Iterator[tuple[pa.Table, list]]:
    """Rows and their verdicts one by one to tables of about 4 MiB with theirs."""
    rows, verdicts, size = list[Mapping](), list[Verdict](), 0
    for row, verdict in pairs:
        rows.append(row)
        verdicts.append(verdict)
        size += len(row["text"])
        if size >= GROUP_BYTES or len(rows) >= GROUP_ROWS:
            yield pa.Table.from_pylist(rows, schema), verdicts
            rows, verdicts, size = [], [], 0
    yield pa.Table.from_pylist(rows, schema), verdicts


def place(out: Path, number: int, identity: Any, build: Callable[[Path], Facts]) -> Part:
    """Build or reuse one part and link its two files into the artifact."""
    return linked(out, number, part(identity, build))


def placed(out: Path, jobs: Sequence[Job], *, gil: bool = False) -> Iterator[Part]:
    """As `place`, for parts that know nothing of each other: side by side where many are missing. `gil`: see spread."""
    return (linked(out, number, made) for number, made in enumerate(built(jobs, gil=gil)))


def linked(out: Path, number: int, made: Part) -> Part:
    """Link a part's two files into the artifact."""
    link(made[0] / "part.parquet", out / f"part-{number:05d}.parquet")
    link(made[0] / "dropped.parquet", out / "dropped" / f"part-{number:05d}.parquet")
    return made


def settle(out: Path, stage: str, parts: Sequence[Part], max_drop_share: float, way_out: str) -> Metrics:
    """Count what stayed and what went, write a sample of each reason (`report/`); stop where too much went.

    Raises UserError when the dropped share is above `max_drop_share` or nothing is left; `way_out` may name {reason}.
    """
    documents, size_bytes = (sum(facts[name] for _, facts in parts) for name in ("documents", "bytes"))
    reasons = sum((Counter(facts["dropped"]) for _, facts in parts), Counter())
    dropped, top = reasons.total(), sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:TOP_REASONS]
    share = dropped / max(1, documents + dropped)
    if share > max_drop_share or not documents:
        why = ", ".join(f"{reason} {count:,}" for reason, count in top) or "there are no rows"
        what = f"{stage} would drop {dropped:,} of {documents + dropped:,} documents ({share:.0%}: {why})"
        rule = f"at most {max_drop_share:.0%} may go and one must stay ({stage}.max_drop_share)"
        raise UserError(f"{what}; {rule}; {way_out.format(reason=top[0][0] if top else '')}")
    (out / "report").mkdir(exist_ok=True)
    examples = _examples(out, max(LEAST_EXAMPLES, EXAMPLES // max(1, len(reasons))))
    _report(out / "report" / "examples.json", examples, indent=1)
    rows = [[row[name] for name in DROPPED.names] for row in examples]
    _report(out / "report" / "dropped.table.json", {"columns": DROPPED.names, "data": rows})
    sizes = {"documents": documents, "bytes": size_bytes, "tokens_estimate": size_bytes // 4}
    counts = sizes | {"dropped": dropped, "dropped_share": share} | {f"dropped/{reason}": n for reason, n in top}
    return {f"data/{name}": float(count) for name, count in counts.items()}


def _report(path: Path, content: Any, **form: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, **form), encoding="utf-8")


def _examples(out: Path, each: int) -> list[dict[str, Any]]:
    """A fair sample of the dropped rows of each reason: those whose ids have the least hashes."""
    found = defaultdict[str, list[tuple[int, Group, int]]](list)
    for group in (group for path in sorted((out / "dropped").iterdir()) for group in groups(path)):
        table = group.table(["id", "reason"])
        for row, (name, reason) in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True)):
            best, one = found[reason], (-zlib.crc32(name.encode()), group, row)
            (heapq.heappush if len(best) < each else heapq.heappushpop)(best, one)
    wanted = [sorted(best, key=itemgetter(1, 2)) for best in found.values()]
    return [group.table().slice(row, 1).to_pylist()[0] for best in wanted for _, group, row in best]
