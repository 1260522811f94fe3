"""What the stages that yield a Corpus share: reading and writing parts, dropping rows, counting, stopping in time.

In: rows. Out: `part-*.parquet` and `dropped/part-*.parquet` in the artifact, metrics, examples to look at.
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
DROPPED = pa.schema([*((name, pa.string()) for name in ("id", "reason", "detail", "kept_id")), ("score", pa.float64())])
GROUP_BYTES, GROUP_ROWS = 4 << 20, 4_096
EXCERPT_CHARS, EXAMPLES, TOP_REASONS = 200, 20, 12

Facts = dict[str, Any]
"""What a part says of itself: documents, bytes, dropped {reason: count}."""


def tables(path: Path) -> Iterator[pa.Table]:
    """A part's row groups in order, page checksums verified."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield from map(file.read_row_group, range(file.num_row_groups))


class Sieve:
    """Writes one part: the rows that stay, the rows that go with their reason, and the count of both in `facts`.

    Row groups hold about 4 MiB: the most that a reader must hold at once.
    """

    def __init__(self, folder: Path, schema: pa.Schema):
        files = {folder / "part.parquet": schema, folder / "dropped.parquet": DROPPED}
        self.facts: Facts = {"documents": 0, "bytes": 0, "dropped": {}}
        self.writers = [pq.ParquetWriter(p, s, compression="zstd", write_page_checksum=True) for p, s in files.items()]
        self.rows: tuple[list, list] = ([], [])
        self.waiting_bytes = 0

    def keep(self, row: Mapping[str, Any]) -> None:
        """Let one document through."""
        size_bytes = len(row["text"].encode())
        self.facts["documents"] += 1
        self.facts["bytes"] += size_bytes
        self.waiting_bytes += size_bytes
        self._add(0, row)

    def drop(self, name: str, reason: str, text: str, score: float | None = None, kept_id: str | None = None) -> None:
        """Drop one document; the reason is one word, the detail an excerpt."""
        self.facts["dropped"][reason] = self.facts["dropped"].get(reason, 0) + 1
        row = {"id": name, "reason": reason, "detail": text[:EXCERPT_CHARS], "score": score, "kept_id": kept_id}
        self._add(1, row)

    def _add(self, file: int, row: Mapping[str, Any]) -> None:
        self.rows[file].append(row)
        if len(self.rows[file]) >= GROUP_ROWS or (file == 0 and self.waiting_bytes >= GROUP_BYTES):
            self._flush(file)

    def _flush(self, file: int) -> None:
        if self.rows[file]:
            self.writers[file].write_table(pa.Table.from_pylist(self.rows[file], self.writers[file].schema))
            self.rows[file].clear()
            self.waiting_bytes *= file

    def close(self) -> Facts:
        """Finish both files."""
        for file, writer in enumerate(self.writers):
            self._flush(file)
            writer.close()
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
    dropped, top = reasons.total(), sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:TOP_REASONS]
    share = dropped / max(1, documents + dropped)
    if share > max_drop_share or not documents:
        why = ", ".join(f"{reason} {count:,}" for reason, count in top) or "there are no rows"
        what = f"{stage} would drop {dropped:,} of {documents + dropped:,} documents ({share:.0%}: {why})"
        rule = f"at most {max_drop_share:.0%} may go and one must stay ({stage}.max_drop_share)"
        raise UserError(f"{what}; {rule}; {way_out.format(reason=top[0][0] if top else '')}")
    (out / "report").mkdir(exist_ok=True)
    examples = json.dumps(_examples(out, EXAMPLES // max(1, len(reasons))), ensure_ascii=False, indent=1)
    (out / "report" / "examples.json").write_text(examples, encoding="utf-8")
    sizes = {"documents": documents, "bytes": size_bytes, "tokens_estimate": size_bytes // 4}
    counts = sizes | {"dropped": dropped, "dropped_share": share} | {f"dropped/{reason}": n for reason, n in top}
    return {f"data/{name}": float(count) for name, count in counts.items()}


def _examples(out: Path, each: int) -> list[dict[str, Any]]:
    """The first dropped rows of each reason, with an excerpt of the document kept in a duplicate's place."""
    taken: Counter[str] = Counter()
    examples = []
    for row in (row for path in sorted((out / "dropped").iterdir()) for t in tables(path) for row in t.to_pylist()):
        taken[row["reason"]] += 1
        if taken[row["reason"]] <= each:
            examples.append(row)
    if wanted := {row["kept_id"] for row in examples} - {None}:
        parts = [pq.read_table(p, columns=["id", "text"], filters=[("id", "in", wanted)]) for p in out.glob("part-*")]
        kept = {row["id"]: row["text"][:EXCERPT_CHARS] for table in parts for row in table.to_pylist()}
        examples = [{**row, "kept": kept[row["kept_id"]]} for row in examples]
    return examples
