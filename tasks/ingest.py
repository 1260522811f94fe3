"""Read the sources into one Corpus: stable ids, checked text, what cannot be used dropped with its reason, all counted.

In: files, folders, globs, URLs, Hugging Face datasets, `pydocs` (tasks/sources.py). Out: Corpus, one part per source,
which a later run with more sources links instead of reading again. `logs/sources.json` says what was read.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from gpt.errors import UserError
from tasks import pydocs
from tasks.artifacts import Corpus, Metrics
from tasks.corpus import DOCUMENT, Facts, Part, Sieve, Verdict, gathered, linked, settle, sift
from tasks.files import file_digest
from tasks.parts import built
from tasks.records import BadFile, column_types, rows
from tasks.remote import Limits
from tasks.runtime import progress, say
from tasks.sources import Source, find
from tasks.stage import stage

FEW_BYTES = 256 << 20  # half of the work is Python's: below this, two threads are through before processes have started
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


@stage(Corpus, version="1")
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
        facts = sift(folder, schema, gathered(progress(_judged(source, config), "rows"), schema))
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


def _judged(source: Source, config: Ingest) -> Iterator[tuple[dict[str, Any], Verdict]]:
    """Each row with its id: the file's digest and the row; in the built-in corpus, the distribution's and the row.

    So a distribution that comes or goes leaves the ids of the others, and all that is made of them, as they are.
    """
    built_in, numbers = source.kind == "pydocs", Counter[str]()
    column = "text" if built_in else config.text_column
    plain = ((document, "") for document in pydocs.documents(config.max_mb))
    for row, reason in plain if built_in else rows(source, (column, *config.carry), config.max_doc_bytes):
        label = row["source"] if built_in else source.digest[:16]
        prefix = hashlib.sha256(label.encode()).hexdigest()[:16] if built_in else label
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
