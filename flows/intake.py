"""What a refresh takes in: how the sources differ from those it knew, and a report on what became of the new ones.

In: sources found and remembered, the session that read them. Out: `Change`, `Report` as lines, JSON or Markdown.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from tasks.artifacts import Config, Metrics
from tasks.corpus import tables
from tasks.measures import headline
from tasks.sources import Source
from tasks.stage import Result, Session

SIEVES, PARTED = ("ingest", "filter", "dedup"), ("ingest", "filter", "dedup", "shard")
SHOWN, EXCERPT_CHARS = 20, 80
"""Sources named in text and Markdown, JSON has all; characters of a dropped document shown."""


class Known(Config):
    """A source that a refresh took in."""

    entry: str
    """What a recipe would list to name this one source, from any working folder."""
    digest: str
    """Of its content."""
    documents: int | None = None
    """What ingest made of it; null where it skipped the file."""
    bytes: int = 0
    """On disk; of its text where it is no file."""

    def __str__(self) -> str:
        size = (
            f"{self.documents:,} documents, {self.bytes:,} bytes" if self.documents is not None else "skipped, no good"
        )
        return f"{self.entry}: {size}"


class Change(NamedTuple):
    """The sources in the order to be read, and how they differ from those known."""

    sources: list[Source]
    new: frozenset[str]
    """Digests of those that came in."""
    changed: frozenset[str]
    """Digests of known files' new content."""
    removed: list[Known]

    @property
    def digests(self) -> tuple[str, ...]:
        """The content, in order."""
        return tuple(source.digest for source in self.sources)


def entry(source: Source) -> str:
    """What a recipe lists to name this one source."""
    if source.kind not in ("file", "url"):
        return source.path
    path = source.path if source.kind == "url" else os.path.abspath(Path(source.path).expanduser())
    return f"{source.format}:{path}" if source.format.startswith("hf:") else path


def compare(known: Sequence[Known], found: Sequence[Source]) -> Change:
    """Known sources keep their places, changed ones too, new ones follow: the parts before a change stay as they are.

    A source is known by its content, so a file that was only renamed is unchanged.
    """
    content, named = {s.digest: s for s in found}, {entry(s): s for s in found}
    digests, sources, changed, removed = {k.digest for k in known}, list[Source](), set[str](), list[Known]()
    for one in known:
        if same := content.get(one.digest):
            sources.append(same)
        elif (other := named.get(one.entry)) and other.digest not in digests:
            sources.append(other)
            changed.add(other.digest)
        else:
            removed.append(one)
    placed = {source.digest for source in sources}
    new = [source for source in found if source.digest not in placed]
    return Change([*sources, *new], frozenset(s.digest for s in new), frozenset(changed), removed)


class Dropped(NamedTuple):
    """New documents that a stage dropped for one reason, and the first of them."""

    stage: str
    reason: str
    documents: int
    example: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What came in, what of it was dropped and why, and how much work that was."""

    name: str
    run: str
    """The run's id, which its runs in MLflow carry as the tag gptloom.id."""
    new: list[Known]
    changed: list[Known]
    removed: list[Known]
    unchanged: list[Known]
    dropped: list[Dropped]
    """Of the new and changed sources' documents."""
    tokens_new: int
    """In the documents of new and changed sources."""
    tokens: int
    """In all."""
    parts: dict[str, tuple[int, int]]
    """Each stage's parts made in this run, and reused."""
    artifacts: dict[str, str]
    """Each stage's artifact, as stage:key."""
    built: dict[str, str]
    """The headline of each stage that was not in the store yet."""

    @property
    def sources(self) -> int:
        """How many there are now."""
        return len(self.new) + len(self.changed) + len(self.unchanged)

    def as_json(self) -> dict[str, Any]:
        """Everything; of the unchanged sources their number, documents and bytes."""
        listed = {what: [one.model_dump() for one in getattr(self, what)] for what in ("new", "changed", "removed")}
        dropped = [drop._asdict() for drop in self.dropped]
        return {**vars(self), **listed, "unchanged": _size(self.unchanged), "dropped": dropped}

    def lines(self) -> list[str]:
        """For a terminal; one line where there is nothing new."""
        return [self.head(), *(f"  {what:<10} {text}" for what, text in self._rows())]

    def markdown(self) -> str:
        """For Prefect's and MLflow's pages."""
        rows = [f"| {what} | {text.replace('|', chr(92) + '|')} |" for what, text in self._rows()]
        table = ["| what | |", "|---|---|", *rows] if rows else []
        return "\n".join([f"### {self.head()}", "", *table]) + "\n"

    def head(self) -> str:
        """The whole in one line."""
        if not (self.new or self.changed or self.removed):
            return f"{self.name}: nothing new among {self.sources:,} sources"
        counts = {what: len(getattr(self, what)) for what in ("new", "changed", "removed", "unchanged")}
        return f"{self.name}: sources: " + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)

    def _rows(self) -> Iterator[tuple[str, str]]:
        for what in ("new", "changed", "removed"):
            ones = getattr(self, what)
            yield from ((what, str(one)) for one in ones[:SHOWN])
            if len(ones) > SHOWN:
                yield what, f"and {len(ones) - SHOWN:,} more"
        for stage, reason, count, row in self.dropped:
            like = f", like {row['kept_id']}" if row["kept_id"] else ""
            score = f" ({row['score']:.2f}{like})" if row["score"] is not None else ""
            excerpt = " ".join(row["detail"].split())[:EXCERPT_CHARS]
            yield "dropped", f"{stage}, {reason}: {count:,}, first {row['id']}{score} {excerpt!r}"
        if self.new or self.changed:
            yield "tokens", f"{self.tokens_new:,} in what came in, {self.tokens:,} in all"
        if self.built:
            yield (
                "parts",
                "; ".join(f"{stage} {made:,} made, {old:,} reused" for stage, (made, old) in self.parts.items()),
            )
            yield "built", "; ".join(f"{self.artifacts[stage]} {head}" for stage, head in self.built.items())


def report(name: str, session: Session, change: Change) -> tuple[Report, list[Known]]:
    """What the session made of the sources, and all of them with their sizes, in order."""
    results = {stage: result for stage, result in session.results.items() if result.digest}
    read = json.loads((Path(results["ingest"].path) / "logs" / "sources.json").read_text())
    sizes = {row["digest"]: {"documents": row["documents"], "bytes": row["bytes"]} for row in read}
    known = [Known(entry=entry(s), digest=s.digest, **sizes.get(s.digest, {})) for s in change.sources]
    fresh = change.new | change.changed
    numbers = [number for number, row in enumerate(read) if row["digest"] in fresh]  # a part a source, in every stage
    shards = Path(results["shard"].path)
    made = Report(
        name,
        session.tracker.id,
        [one for one in known if one.digest in change.new],
        [one for one in known if one.digest in change.changed],
        change.removed,
        [one for one in known if one.digest not in fresh],
        [d for stage in SIEVES if stage in results for d in _dropped(stage, Path(results[stage].path), numbers)],
        _tokens(shards, numbers),
        int(results["shard"].metrics["data/tokens"]),
        {stage: _parts(results[stage]) for stage in PARTED if stage in results},
        {stage: f"{stage}:{result.key}" for stage, result in results.items()},
        {stage: _headline(result.metrics) for stage, result in results.items() if result.cache == "miss"},
    )
    return made, known


def _dropped(stage: str, folder: Path, numbers: Iterable[int]) -> list[Dropped]:
    """The new parts' dropped documents by reason, the commonest first."""
    files = [folder / "dropped" / f"part-{number:05d}.parquet" for number in numbers]
    rows = [row for file in files for table in tables(file) for row in table.to_pylist()]
    first = {row["reason"]: row for row in reversed(rows)}
    return [Dropped(stage, reason, n, first[reason]) for reason, n in Counter(r["reason"] for r in rows).most_common()]


def _tokens(shards: Path, numbers: Iterable[int]) -> int:
    """Tokens of these parts' documents, in both splits."""
    index, wanted = pq.read_table(shards / "index.parquet", columns=["shard", "tokens"]), set(numbers)
    names = index.group_by("shard").aggregate([("tokens", "sum")]).to_pylist()
    return sum(row["tokens_sum"] for row in names if int(row["shard"].split("-")[1]) in wanted)


def _parts(result: Result) -> tuple[int, int]:
    """Parts made and reused in this run: a stage that was there, metrics of its making and all, made none."""
    parts, reused = (int(result.metrics.get(f"data/{name}", 0)) for name in ("parts", "parts_reused"))
    return (0, parts) if result.cache == "hit" else (parts - reused, reused)


def _headline(metrics: Metrics) -> str:
    """A stage's headline; after training, what it was before too."""
    before = metrics.get(f"{next(iter(metrics))}_before")
    return headline(metrics) + (f" ({before:.4g} before)" if before is not None else "")


def _size(sources: Sequence[Known]) -> dict[str, int]:
    documents, size_bytes = (sum(getattr(one, name) or 0 for one in sources) for name in ("documents", "bytes"))
    return {"sources": len(sources), "documents": documents, "bytes": size_bytes}
