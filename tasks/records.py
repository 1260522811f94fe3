"""Read the rows of a source as a stream, within budgets, whatever the file holds.

In: a `Source`. Out: one mapping per row; or, for a row that cannot be read, a short reason (str) in its place.
Strings are str, or bytes where they are not UTF-8. A file that is not what its ending says raises `BadFile`.
"""

import codecs
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpt.errors import UserError
from tasks.sources import Source

Row = dict[str, Any] | str
MAX_RATIO = 200
"""Decoded bytes per byte on disk from which a file is taken for a bomb; the first ROOM_BYTES are free."""
ROOM_BYTES = 64 << 20
BATCH_ROWS = 64  # a batch of rows at the 10 MB cap is 640 MB; 1,024 rows cost the same time per row


class BadFile(UserError):
    """The file as a whole cannot be read."""


def rows(source: Source, columns: Sequence[str], cap_bytes: int) -> Iterator[Row]:
    """Yield the source's rows: `columns` of a table, {columns[0]: text} of a text file; never holds more than a batch.

    `cap_bytes` bounds a document: longer JSON lines (4x, for escapes) are given up, longer text files are split.
    """
    with _readable(source):
        if source.format == "parquet":
            yield from _parquet_rows(source, columns)
        elif source.format == "jsonl":
            yield from _json_rows(source, cap_bytes * 4)
        elif source.format == "text":
            yield from ({columns[0]: text} for text in _texts(Path(source.path), cap_bytes))
        else:
            yield from _datasets_rows(source)


def column_types(source: Source) -> dict[str, str]:
    """A parquet file's columns with their types, `text` where they hold strings."""
    with _readable(source):
        return {
            field.name: "text" if _is_text(field.type) else str(field.type) for field in pq.read_schema(source.path)
        }


@contextmanager
def _readable(source: Source) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise BadFile(f"{source.path} cannot be read as {source.format} ({reason}); mend it or leave it out") from error


def _parquet_rows(source: Source, columns: Sequence[str]) -> Iterator[Row]:
    file, decoded = pq.ParquetFile(source.path, page_checksum_verification=True), 0
    present = [name for name in columns if name in file.schema_arrow.names]
    for batch in file.iter_batches(BATCH_ROWS, columns=present):
        plain = [_as_bytes(batch.column(name)) for name in present]
        decoded += sum(column.nbytes for column in plain)
        _check_ratio(source, decoded, source.size_bytes)
        for values in zip(*(column.to_pylist() for column in plain), strict=True):
            yield {name: _text(value) for name, value in zip(present, values, strict=True)}


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _as_bytes(column: pa.Array) -> pa.Array:
    """Strings as binary: Arrow does not check UTF-8 on reading, and `to_pylist` would fail for the whole batch."""
    if not _is_text(column.type):
        return column
    return (column.dictionary_decode() if pa.types.is_dictionary(column.type) else column).cast(pa.large_binary())


def _text(value: Any) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _check_ratio(source: Source, decoded: int, packed: int) -> None:
    if decoded > ROOM_BYTES + MAX_RATIO * packed:
        what = f"{source.path} unpacks to more than {MAX_RATIO} times its size ({decoded >> 20:,} MiB so far)"
        raise BadFile(f"{what}, as only bombs do; unpack it by hand, or leave it out")


def _json_rows(source: Source, cap_bytes: int) -> Iterator[Row]:
    packing, decoded, inside = {".gz": "gzip", ".zst": "zstd"}.get(Path(source.path).suffix), 0, False
    with open(source.path, "rb") as raw:
        stream = io.BufferedReader(pa.input_stream(raw, compression=packing), 1 << 20) if packing else raw
        while piece := stream.readline(cap_bytes):
            decoded += len(piece)
            if packing:
                _check_ratio(source, decoded, raw.tell())
            ends = piece.endswith(b"\n")
            if not inside and (ends or len(piece) < cap_bytes):
                yield from _parsed(piece)
                continue
            if not inside:
                yield "line_too_long"
            inside = not ends


def _parsed(line: bytes) -> Iterator[Row]:
    try:
        if text := line.removeprefix(codecs.BOM_UTF8).decode().strip():
            value = json.loads(text)
            yield value if isinstance(value, dict) else "not_an_object"
    except UnicodeDecodeError:
        yield "invalid_utf8"
    except (ValueError, RecursionError):
        yield "not_json"


def _texts(path: Path, cap_bytes: int) -> Iterator[str | bytes]:
    """The whole file; above the cap, pieces that join to it."""
    with path.open("rb") as file:
        kept = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while piece := kept + file.read(cap_bytes - len(kept)):
            cut = _cut(piece) if file.peek(1) else len(piece)
            yield _text(piece[:cut])
            kept = piece[cut:]


def _cut(piece: bytes) -> int:
    """Where to split: after the last blank line, else the last line, else before the last character."""
    for mark in (b"\n\n", b"\n"):
        if (at := piece.rfind(mark)) > 0:
            return at + len(mark)
    at = len(piece) - 1
    while at > 1 and piece[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _datasets_rows(source: Source) -> Iterator[Row]:
    import datasets

    asked = source.identity
    try:
        if source.kind == "hub":
            where = {"name": asked["config"], "revision": asked["commit"], "split": asked["split"]}
            yield from datasets.load_dataset(asked["hub"], streaming=True, **where)
        else:
            file = str(Path(source.path).absolute())
            builder = source.format.removeprefix("hf:")
            yield from datasets.load_dataset(builder, data_files=file, split="train", streaming=True)
    except Exception as error:  # whatever its readers and the network raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise BadFile(f"{source.path} cannot be read by Hugging Face datasets ({reason}); mend it") from error
