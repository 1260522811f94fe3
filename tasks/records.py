"""Read the rows of a source as a stream, within budgets, whatever the file holds.

In: a `Source`. Out: a mapping and "" for each row, or an empty mapping and a one-word reason why it cannot be read.
Strings are str, or bytes where they are not UTF-8. A file that is not what its ending says raises `BadFile`.
"""

import codecs
import io
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpt.errors import UserError
from tasks.sources import Source

Row = tuple[dict[str, Any], str]
MAX_RATIO, ROOM_BYTES = 200, 64 << 20
"""Decoded bytes per byte on disk from which a file is taken for a bomb; the first 64 MiB are free."""
PAGE_BYTES, LARGE_BYTES = 1 << 20, 4 << 20
BATCH_ROWS = 64  # at the cap of 10 MB a document a batch is 640 MB; larger batches are no faster
BINARY, STRINGS = pa.large_binary(), (pa.string(), pa.large_string(), pa.string_view())


class BadFile(UserError):
    """The file as a whole cannot be read, for what it holds."""


def rows(source: Source, columns: Sequence[str], cap_bytes: int) -> Iterator[Row]:
    """Yield the rows: `columns` of a parquet file, {columns[0]: text} of a text file, whole JSON objects.

    `cap_bytes` bounds a document: JSON lines of four times as much (escapes) are given up, longer texts are split.
    """
    readers = {"parquet": _parquet_rows, "jsonl": _json_rows, "text": _text_rows}
    with _readable(source):
        yield from readers.get(source.format.partition(".")[0], _hugging_face_rows)(source, columns, cap_bytes)


def column_types(source: Source) -> dict[str, str]:
    """Columns and their types, `text` for strings: by schema in parquet, else by the first row that can be read."""
    if source.format == "parquet":
        with _readable(source):
            return {f.name: "text" if _is_text(f.type) else str(f.type) for f in pq.read_schema(source.file)}
    first = next((row for row, reason in rows(source, ("text",), 10_000_000) if not reason), {})
    return {name: "text" if isinstance(value, str) else type(value).__name__ for name, value in first.items()}


@contextmanager
def _readable(source: Source) -> Generator[None]:
    """What readers raise as BadFile; but as UserError where the machine or a hub fails, which is not to be skipped."""
    foreign = source.kind == "hub" or source.format.startswith("hf:")
    # Datasets lets all through that a network raises; Arrow does not check UTF-8 inside of lists.
    expected = Exception if foreign else (pa.ArrowException, OSError, UnicodeDecodeError)
    try:
        yield
    except expected as error:
        kind = UserError if source.kind == "hub" or getattr(error, "errno", None) else BadFile
        how = "by Hugging Face datasets" if foreign else f"as {source.format}"
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise kind(f"{source.path} cannot be read {how} ({reason}); mend it or leave it out") from error


def batches(source: Source, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet file as columns; strings as binary, since Arrow does not check their UTF-8 on reading."""
    with _readable(source):
        yield from _batches(source, columns)


def _parquet_rows(source: Source, columns: Sequence[str], _: int) -> Iterator[Row]:
    return (row for batch in _batches(source, columns) for row in batch_rows(batch))


def batch_rows(batch: pa.RecordBatch) -> Iterator[Row]:
    """A batch row by row."""
    for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
        yield dict(zip(batch.schema.names, map(_text, values), strict=True)), ""


def _batches(source: Source, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    decoded = 0
    # Page by page: else a column of a row group comes into memory as a whole, and some files have but one row group.
    with pq.ParquetFile(source.file, page_checksum_verification=True, pre_buffer=False, buffer_size=PAGE_BYTES) as file:
        names = [name for name in dict.fromkeys(columns) if name in file.schema_arrow.names]
        for batch in file.iter_batches(_batch_rows(source, file.metadata, names), columns=names):
            plain = [array.cast(BINARY) if _is_text(array.type) else array for array in map(batch.column, names)]
            decoded += sum(array.nbytes for array in plain)
            _check_ratio(source, decoded)
            yield pa.record_batch(plain, names)


def _batch_rows(source: Source, about: pq.FileMetaData, names: Sequence[str]) -> int:
    """Rows to take at a time; one where a dictionary is large, as all of them may be its longest entry.

    A dictionary comes into memory as a whole, so what it will be there is asked before.
    """
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    columns = [group.column(n) for group in groups for n in range(group.num_columns)]
    wanted = [column for column in columns if column.path_in_schema in names]
    _check_ratio(source, sum(column.total_uncompressed_size for column in wanted))
    large = any(c.has_dictionary_page and _dictionary_bytes(c) > LARGE_BYTES for c in wanted)
    return 1 if large else BATCH_ROWS


def _dictionary_bytes(column: pq.ColumnChunkMetaData) -> float:
    """About what a column's dictionary is in memory: its bytes in the file by how well the column is packed."""
    packed = column.data_page_offset - (column.dictionary_page_offset or column.data_page_offset)
    return packed * column.total_uncompressed_size / max(1, column.total_compressed_size)


def _is_text(kind: pa.DataType) -> bool:
    return (kind.value_type if pa.types.is_dictionary(kind) else kind) in STRINGS


def _text(value: Any) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _check_ratio(source: Source, decoded: int) -> None:
    if decoded > ROOM_BYTES + MAX_RATIO * source.size_bytes:
        what = f"{source.path} unpacks to more than {MAX_RATIO} times its size, {decoded >> 20:,} MiB so far"
        raise BadFile(f"{what}, as only bombs do; unpack it by hand or leave it out")


def _json_rows(source: Source, _: Sequence[str], cap_bytes: int) -> Iterator[Row]:
    packing, decoded, inside = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}.get(source.format), 0, False
    with io.BufferedReader(pa.input_stream(source.file, compression=packing), 1 << 20) as stream:
        while piece := stream.readline(4 * cap_bytes):
            decoded += len(piece)
            _check_ratio(source, decoded)
            whole = piece.endswith(b"\n") or len(piece) < 4 * cap_bytes
            if not inside and piece.strip():
                yield _parsed(piece) if whole else ({}, "too_long")
            inside = not piece.endswith(b"\n")


def _parsed(line: bytes) -> Row:
    try:
        value = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
    except (ValueError, RecursionError) as error:
        return {}, "invalid_utf8" if isinstance(error, UnicodeDecodeError) else "not_json"
    return (value, "") if isinstance(value, dict) else ({}, "not_an_object")


def _text_rows(source: Source, columns: Sequence[str], cap_bytes: int) -> Iterator[Row]:
    """The whole file; above the cap, pieces that join to it."""
    with open(source.file, "rb") as file:
        kept = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while piece := kept + file.read(cap_bytes - len(kept)):
            cut = _cut(piece) if file.peek(1) else len(piece)
            yield {columns[0]: _text(piece[:cut])}, ""
            kept = piece[cut:]


def _cut(piece: bytes) -> int:
    """Where to split: after the last blank line, else the last line, else before the last character."""
    for mark in (b"\n\n", b"\n"):
        if (at := piece.rfind(mark)) > 0:
            return at + len(mark)
    return max(at for at in range(len(piece) - 4, len(piece)) if piece[at] & 0xC0 != 0x80)


def _hugging_face_rows(source: Source, *_: Any) -> Iterator[Row]:
    import datasets

    asked: dict[str, Any] = {"path": source.format.removeprefix("hf:"), "data_files": source.file, "split": "train"}
    if source.kind == "hub":
        named = source.identity
        asked = {"path": named["hub"], "name": named["config"], "revision": named["commit"], "split": named["split"]}
    yield from ((row, "") for row in datasets.load_dataset(**asked, streaming=True))
