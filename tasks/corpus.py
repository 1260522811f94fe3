"""What the stages that yield a Corpus share: reading and writing parts, dropping rows, counting, stopping in time.

In: parts of a Corpus. Out: `part-*.parquet` and `dropped/part-*.parquet` in the artifact, metrics, examples to look at.
Parquet carries page checksums, checked on reading: without them 134 of 200 flipped bits went through unseen.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpt.errors import UserError
from tasks.artifacts import Metrics
from tasks.store import link, part

DOCUMENT = pa.schema({"id": pa.string(), "text": pa.string(), "source": pa.string()})
DROPPED = pa.schema(
    {"id": pa.string(), "reason": pa.string(), "detail": pa.string(), "score": pa.float64(), "kept_id": pa.string()}
)
GROUP_BYTES = 4 << 20
GROUP_ROWS = 4_096
EXCERPT_CHARS = 200
EXAMPLES = 20
TOP_REASONS = 8

Facts = dict[str, Any]
"""What a part says of itself: documents, bytes, dropped {reason: count}."""


def tables(path: Path) -> Iterator[pa.Table]:
    """A part's row groups in order, page checksums verified."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


class Writer:
    """A parquet file written row by row, in row groups of about 4 MiB: the most that a reader must hold."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.schema, self.rows, self.bytes = schema, [], 0
        self.file = pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)

    def add(self, row: Mapping[str, Any], size_bytes: int) -> None:
        """Append one row."""
        self.rows.append(row)
        self.bytes += size_bytes
        if self.bytes >= GROUP_BYTES or len(self.rows) >= GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one row group."""
        if self.rows:
            self.file.write_table(pa.Table.from_pylist(self.rows, self.schema))
        self.rows, self.bytes = [], 0


class Sieve:
    """Writes one part: the rows that stay, the rows that go with their reason, and the count of both in `facts`."""

    def __init__(self, folder: Path, schema: pa.Schema):
        self.kept = Writer(folder / "part.parquet", schema)
        self.gone = Writer(folder / "dropped.parquet", DROPPED)
        self.facts: Facts = {"documents": 0, "bytes": 0, "dropped": {}}

    def keep(self, row: Mapping[str, Any]) -> None:
        """Let one document through."""
        size_bytes = len(row["text"].encode())
        self.facts["documents"] += 1
        self.facts["bytes"] += size_bytes
        self.kept.add(row, size_bytes)

    def drop(self, name: str, reason: str, text: str, score: float | None = None, kept_id: str | None = None) -> None:
        """Drop one document; the reason is one word, the detail an excerpt."""
        dropped = self.facts["dropped"]
        dropped[reason] = dropped.get(reason, 0) + 1
        row = {"id": name, "reason": reason, "detail": text[:EXCERPT_CHARS], "score": score, "kept_id": kept_id}
        self.gone.add(row, EXCERPT_CHARS)

    def close(self) -> Facts:
        """Finish both files."""
        for writer in (self.kept, self.gone):
            writer.flush()
            writer.file.close()
        return self.facts


def place(out: Path, number: int, identity: Any, build: Callable[[Path], Facts]) -> tuple[Path, Facts]:
    """Build or reuse one part and link its two files into the artifact; returns the part's folder and facts."""
    folder, facts = part(identity, build)
    link(folder / "part.parquet", out / f"part-{number:05d}.parquet")
    link(folder / "dropped.parquet", out / "dropped" / f"part-{number:05d}.parquet")
    return folder, facts


def settle(out: Path, stage: str, parts: Sequence[Facts], max_drop_share: float, way_out: str) -> Metrics:
    """Count what stayed and what went, write `report/examples.json`; stop where too much went.

    Raises UserError when the dropped share is above `max_drop_share` or nothing is left; `way_out` may name {reason}.
    """
    documents, size_bytes = (sum(facts[name] for facts in parts) for name in ("documents", "bytes"))
    reasons = sum((Counter(facts["dropped"]) for facts in parts), Counter())
    dropped = reasons.total()
    share = dropped / max(1, documents + dropped)
    top = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:TOP_REASONS]
    why = ", ".join(f"{reason} {count:,}" for reason, count in top) or "the sources hold no rows"
    if share > max_drop_share or not documents:
        reason = top[0][0] if top else ""
        what = f"{stage} would drop {dropped:,} of {documents + dropped:,} documents ({share:.0%}: {why})"
        rule = f"at most {max_drop_share:.0%} may go, and one must stay"
        raise UserError(f"{what}; {rule}; {way_out.format(reason=reason)} or {stage}.max_drop_share")
    _write_examples(out, sorted(reasons))
    metrics = {"data/documents": documents, "data/bytes": size_bytes, "data/tokens_estimate": size_bytes // 4}
    metrics |= {"data/dropped": dropped, "data/dropped_share": share}
    return {name: float(n) for name, n in (metrics | {f"data/dropped/{reason}": n for reason, n in top}).items()}


def _write_examples(out: Path, reasons: Sequence[str]) -> None:
    """The first dropped rows of each reason, and an excerpt of the document kept in a duplicate's place."""
    taken: Counter[str] = Counter()
    examples = []
    for path in sorted((out / "dropped").glob("*.parquet")):
        for row in (row for table in tables(path) for row in table.to_pylist()):
            taken[row["reason"]] += 1
            if taken[row["reason"]] <= EXAMPLES // max(1, len(reasons)):
                examples.append({**row, "kept": ""})
    _fill_kept(out, examples)
    (out / "report").mkdir(exist_ok=True)
    (out / "report" / "examples.json").write_text(json.dumps(examples, ensure_ascii=False, indent=1))


def _fill_kept(out: Path, examples: list[dict[str, Any]]) -> None:
    wanted = {example["kept_id"] for example in examples} - {None}
    found = {}
    for table in (table for path in sorted(out.glob("part-*.parquet")) for table in tables(path)):
        if wanted <= found.keys():
            break
        pairs = zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
        found |= {name: text[:EXCERPT_CHARS] for name, text in pairs if name in wanted}
    for example in examples:
        example["kept"] = found.get(example["kept_id"], "")
