"""Read the sources into one Corpus: stable ids, checked text, what cannot be used dropped with its reason, all counted.

In: files, folders, globs, URLs, Hugging Face datasets, `pydocs` (tasks/sources.py). Out: Corpus, one part per source,
which a later run with more sources links instead of reading again. `logs/sources.json` says what was read.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from gpt.errors import UserError
from tasks import pydocs
from tasks.artifacts import Corpus, Metrics
from tasks.corpus import DOCUMENT, Facts, Part, Sieve, Verdict, gathered, linked, settle, sift
from tasks.files import file_digest
from tasks.parts import built
from tasks.records import BINARY, BadFile, Row, batch_rows, batches, column_types, rows
from tasks.remote import Limits
from tasks.runtime import progress, say
from tasks.sources import Source, find
from tasks.stage import stage

FEW_BYTES = 256 << 20  # half of the work is Python's: below this, two threads are through before processes have started
VISIBLE = r"[^\s\v\x1c-\x1f\x85\p{Z}]"  # what is left of a text that Python's strip leaves anything of
Judged = tuple[pa.Table, list[Verdict]]
FETCHING = ("private_addresses", "max_fetch_gb")
"""Settings that no part depends on."""


class Ingest(Sieve):
    """What to read and how."""

    sources: tuple[str, ...] = ("pydocs",)
    """Files, folders, globs, http(s), s3, gs and hf URLs of files, hf:NAME[:CONFIG][:SPLIT], hf:csv:FILE, or pydocs:
    the installed documentation."""
    text_column: str = "text"
    """The column, or JSON key, that holds the text."""
    carry: dict[str, Literal["string", "int64", "double", "bool"]] = Field({})
    """Columns to carry along, with their types; null where a source lacks one."""
    max_mb: float = Field(8.0, gt=0)
    """Cap of the built-in corpus."""
    max_doc_bytes: int = Field(10_000_000, ge=1_000)
    """Longer rows are dropped; longer text files are split at blank lines."""
    bad_files: Literal["fail", "skip"] = "fail"
    """What to do about a file that cannot be read as a whole."""

    private_addresses: bool = False
    """Whether URLs may lead to this machine and to private networks."""
    max_fetch_gb: float = Field(200.0, gt=0)
    """Cap of one download."""

    def outside(self) -> dict[str, Any]:
        """The sources by content."""
        return {"sources": [source.identity for source in self.found()]}

    def found(self, note: Callable[[str], object] = str) -> list[Source]:
        """The sources, those of URLs fetched."""
        limits = Limits(self.private_addresses, int(self.max_fetch_gb * 1e9))
        return find(self.sources, self.max_mb, note, limits)


@stage(Corpus, version="2")
def ingest(out: Path, config: Ingest) -> Metrics:
    """Read the sources into one Corpus and say how big it is."""
    parts, report = list[Part](), list[dict[str, Any]]()
    tolerated = (BadFile,) if config.bad_files == "skip" else ()
    reading = config.model_dump(mode="json", exclude={"sources", "bad_files", "max_drop_share", *FETCHING})
    sources = config.found(note=say)
    jobs = [([source.identity, reading], partial(_build, source, config)) for source in sources]
    much = sum(source.size_bytes for source in sources) > FEW_BYTES
    made = zip(sources, built(jobs, gil=much, tolerated=tolerated, least=2), strict=True)
    for source, part in progress(made, "sources", len(sources)):
        if isinstance(part, BadFile):
            say(f"skipped: {part}")
            continue
        parts.append(linked(out, len(parts), part))
        facts = part[1]
        size = {"bytes": source.size_bytes or facts["bytes"], "documents": facts["documents"]}
        report.append({"path": source.path, "kind": source.kind, "digest": source.digest, **size})
    (out / "logs").mkdir(exist_ok=True)
    (out / "logs" / "sources.json").write_text(json.dumps(report, indent=1))
    return settle(out, "ingest", parts, config.max_drop_share, "look at the sources and ingest.text_column")


def _build(source: Source, config: Ingest, folder: Path) -> Facts:
    """One source as one part."""
    if taken := config.carry.keys() & set(DOCUMENT.names):
        raise UserError(f"ingest.carry names {min(taken)!r}, a column that ingest makes; leave it out or rename it")
    carried = [pa.field(name, pa.type_for_alias(kind)) for name, kind in config.carry.items()]
    if source.kind != "pydocs" and source.format != "text":
        _check_column(source, config.text_column)
    elif source.size_bytes > config.max_doc_bytes:
        say(f"{source.path} is longer than ingest.max_doc_bytes={config.max_doc_bytes:,}: split at blank lines")
    schema = pa.schema([*DOCUMENT, *carried])
    try:
        judged = _columns if source.format == "parquet" else _rows
        facts = sift(folder, schema, judged(source, config, schema))
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        what = f"{source.path}: a column is not what ingest.carry={config.carry} says"
        raise BadFile(f"{what} ({str(error).partition(chr(10))[0]}); give its type or leave it out") from error
    if source.file and file_digest(Path(source.file)) != source.digest:
        raise UserError(f"{source.path} changed while it was read; nothing of it was kept; run again")
    return facts


def _check_column(source: Source, column: str) -> None:
    """Before anything is read: the column is there and holds text (an int column would load without complaint)."""
    types = column_types(source)
    if types and types.get(column) not in ("text", "bytes", "NoneType"):
        found = f"column {column!r} is {types[column]}" if column in types else f"there is no column {column!r}"
        others = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        raise BadFile(f"{source.path}: {found}, and text is needed; columns are {others}; set ingest.text_column")


def _columns(source: Source, config: Ingest, schema: pa.Schema) -> Iterator[Judged]:
    """A parquet file a batch of columns at a time; row by row where a batch holds anything but good text."""
    first, label = 0, source.digest[:16]
    for batch in progress(batches(source, (config.text_column, *config.carry)), "batches of 64 rows"):
        if (good := _good(batch, config, schema)) is not None:
            names = pa.array([f"{label}-{row}" for row in range(first, first + len(batch))])
            made = {"id": names, "source": pa.array([label] * len(batch))} | good
            yield pa.table([made[name] for name in schema.names], schema), [None] * len(batch)
        else:
            yield from gathered(_judged(batch_rows(batch), config.text_column, config, label, first), schema)
        first += len(batch)


def _good(batch: pa.RecordBatch, config: Ingest, schema: pa.Schema) -> dict[str, pa.Array] | None:
    """The text and carried columns of a batch if all of it is good: what `_checked` says, asked of whole columns."""
    kinds = {name: batch[name].type for name in batch.schema.names}
    wanted = {name: schema.field(name).type for name in config.carry} | {config.text_column: pa.string()}
    if any(kinds.get(name) != (BINARY if kind == pa.string() else kind) for name, kind in wanted.items()):
        return None
    raw = batch[config.text_column]
    try:
        text = raw.cast(pa.string())  # which checks its UTF-8
        carried = {name: batch[name].cast(schema.field(name).type) for name in config.carry}
    except pa.ArrowInvalid:
        return None
    long = pc.greater(pc.binary_length(raw), config.max_doc_bytes)  # ty: ignore[missing-attribute]
    bad = pc.or_(long, pc.match_substring(text, "\0"))  # ty: ignore[missing-attribute]
    visible = pc.match_substring_regex(text, VISIBLE)  # ty: ignore[missing-attribute]
    fine = not raw.null_count and pc.all(pc.and_not(visible, bad)).as_py()  # ty: ignore[missing-attribute]
    return {"text": text, **carried} if fine else None


def _rows(source: Source, config: Ingest, schema: pa.Schema) -> Iterator[Judged]:
    """Any other source row by row."""
    if source.kind == "pydocs":
        documents = ((document, "") for document in pydocs.documents(config.max_mb))
        return gathered(_judged(progress(documents, "rows"), "text", config), schema)
    found = progress(rows(source, (config.text_column, *config.carry), config.max_doc_bytes), "rows")
    return gathered(_judged(found, config.text_column, config, source.digest[:16]), schema)


def _judged(
    found: Iterable[Row], column: str, config: Ingest, digest: str = "", first: int = 0
) -> Iterator[tuple[dict[str, Any], Verdict]]:
    """Each row with its id: the file's digest and the row; in the built-in corpus, the distribution's and the row.

    So a distribution that comes or goes leaves the ids of the others, and all that is made of them, as they are.
    """
    numbers = Counter({digest: first})
    for row, reason in found:
        label = digest or row["source"]
        prefix = digest or hashlib.sha256(label.encode()).hexdigest()[:16]
        text, reason = ("", reason) if reason else _checked(row.get(column), config.max_doc_bytes)
        made = {"id": f"{prefix}-{numbers[label]}", "text": text, "source": label}
        numbers[label] += 1
        yield row | made, (reason, None, None) if reason else None


def _checked(text: Any, cap_bytes: int) -> tuple[str, str]:
    """(text, "") of a good text, (excerpt, reason) of a bad one."""
    if not isinstance(text, str | bytes):
        return "", "null" if text is None else "not_text"
    raw = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    text = raw.decode(errors="replace")
    if len(raw) > cap_bytes:
        return text, "too_long"
    if text.encode() != raw:  # bad bytes, or half of a surrogate pair from a JSON escape
        return text, "invalid_utf8"
    return text, "empty" if not text.strip() else "nul_character" if "\0" in text else ""
