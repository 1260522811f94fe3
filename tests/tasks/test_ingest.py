"""Ingest: every kind of source becomes documents with stable ids; nothing bad passes, nothing goes without a reason."""

import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.errors import UserError
from tasks import ingest as module
from tasks.artifacts import Corpus
from tasks.ingest import Ingest, ingest
from tasks.records import rows
from tasks.runtime import Runtime, running
from tasks.sources import find
from tasks.stage import Session, using
from tasks.store import Store

ROWS = [{"text": f"Document number {n}.", "url": f"u{n}", "score": n / 2} for n in range(200)]


def read(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("part-*")) for row in pq.read_table(path).to_pylist()]


def dropped(folder: Path) -> list[tuple[str, str]]:
    tables = [pq.read_table(path) for path in sorted((folder / "dropped").glob("part-*"))]
    return [(row["id"].partition("-")[2], row["reason"]) for table in tables for row in table.to_pylist()]


@pytest.fixture
def run(tmp_path):
    """Ingest files by the bare stage body; returns the output folder and leaves the metrics in `run.metrics`."""

    def run(*sources: object, **config: object) -> Path:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        out.mkdir()
        with running("ingest", Runtime(workers=1)):
            run.metrics = ingest.fn(out, Ingest(sources=tuple(map(str, sources)), **config))
        return out

    return run


def write(path: Path, rows: list[dict]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(lines)
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


# -- good input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "hf:json:a.jsonl"])
def test_every_format_gives_the_same_rows_in_order(name, run, tmp_path):
    path = write(tmp_path / name.rpartition(":")[2], ROWS)
    out = run(f"hf:json:{path}" if name.startswith("hf:") else path, carry={"url": "string", "score": "double"})
    found = read(out)
    assert [{key: row[key] for key in ("text", "url", "score")} for row in found] == ROWS
    digest = find([str(path)])[0].digest[:16]
    assert [row["id"] for row in found] == [f"{digest}-{n}" for n in range(200)]
    assert {row["source"] for row in found} == {digest}
    assert run.metrics["data/documents"] == 200
    assert run.metrics["data/bytes"] == sum(len(row["text"]) for row in ROWS)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("index", [None, pa.int8(), pa.uint32()])
def test_every_string_type_of_parquet_is_text(kind, index, run, tmp_path):
    texts = ["one", "zwei", "one", "drei"] * 100
    array = pa.array(texts).cast(kind)
    if index:
        values = pa.array(["one", "zwei", "drei"]).cast(pa.string() if kind == pa.string_view() else kind)
        array = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 2] * 100, index), values)
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet", row_group_size=70)
    assert [row["text"] for row in read(run(tmp_path / "a.parquet"))] == texts


ODD = st.text(st.sampled_from("ab é世\n\t\v\x1c\x1f\x85\xa0\u2003\u2028\u3000\u200b\0"), max_size=6).map(str.encode)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.one_of(ODD, st.binary(max_size=4), st.none()), min_size=1, max_size=8))
def test_a_batch_is_good_as_a_whole_if_and_only_if_each_row_is(texts, tmp_path_factory):
    config, text = Ingest(max_doc_bytes=1_000), pa.array(texts, pa.large_binary())
    each = [module._checked(value, 1_000) for value in texts]
    batch = pa.record_batch([text, pa.array(range(len(texts)))], ["text", "score"])
    good = module._good(batch, config, pa.schema([*module.DOCUMENT]))
    assert (good is not None) == all(not reason for _, reason in each), each
    assert good is None or good["text"].to_pylist() == [text for text, _ in each]


def test_bad_rows_of_a_parquet_file_cost_no_good_ones(run, tmp_path):
    texts = [f"Document {n}." if n % 70 else ["", None, "\0", "x" * 2_000][n // 70 % 4] for n in range(1_000)]
    table = pa.table({"text": texts, "score": range(1_000), "url": [f"u{n}" for n in range(1_000)]})
    pq.write_table(table, tmp_path / "a.parquet")
    out = run(tmp_path / "a.parquet", max_doc_bytes=1_000, carry={"score": "int64", "url": "string"})
    found = [(row["text"], row["score"], row["url"], int(row["id"][17:])) for row in read(out)]
    assert found == [(text, n, f"u{n}", n) for n, text in enumerate(texts) if n % 70]
    reasons = ["empty", "null", "nul_character", "too_long"]
    assert dropped(out) == [(str(n), reasons[n // 70 % 4]) for n in range(0, 1_000, 70)]


def test_columns_beside_the_text_are_not_read_however_they_are_nested(run, tmp_path):
    rows = [{"text": f"Document {n}.", "about": {"tags": [["a"], [{"b": n}]]}} for n in range(5)]
    kind = pa.struct({"tags": pa.list_(pa.map_(pa.string(), pa.int64()))})
    about = pa.array([{"tags": [[("a", n)]]} for n in range(5)], kind)
    pq.write_table(pa.table({"text": [row["text"] for row in rows], "about": about}), tmp_path / "a.parquet")
    assert [row["text"] for row in read(run(tmp_path / "a.parquet"))] == [row["text"] for row in rows]
    with pytest.raises(UserError, match=r"'about' is struct<.*text is needed"):
        run(tmp_path / "a.parquet", text_column="about")
    with pytest.raises(UserError, match=r"no column 'about\.tags'"):
        run(tmp_path / "a.parquet", text_column="about.tags")


def test_a_column_nested_too_deep_is_told_and_not_a_crash(run, tmp_path):
    kind = pa.int64()
    for _ in range(1_000):
        kind = pa.list_(kind)
    pq.write_table(pa.table({"text": ["a"], "deep": pa.nulls(1, kind)}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        run(tmp_path / "a.parquet")


def test_a_text_file_is_one_document_and_special_tokens_in_it_are_text(run, tmp_path):
    text = "One.\n\n<|endoftext|>\n\nTwo. Ünïcode.\r\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [row["text"] for row in read(run(tmp_path / "a.txt"))] == [text]


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("ab é世\n"), min_size=1, max_size=5_000))
def test_a_long_text_is_split_into_pieces_below_the_cap_that_join_to_it(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "a.txt"
    path.write_text(text, newline="")
    pieces = [row["text"] for row, _ in rows(find([str(path)])[0], ["text"], 1_000)]
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= 1_000


def test_a_long_text_is_split_at_blank_lines(run, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"Paragraph {n} " + "x" * 200 for n in range(20)))
    found = [row["text"] for row in read(run(tmp_path / "a.txt", max_doc_bytes=1_000))]
    assert len(found) > 4
    assert all(text.startswith("Paragraph") for text in found)


def test_a_carried_column_that_a_source_lacks_is_null(run, tmp_path):
    out = run(write(tmp_path / "a.jsonl", [{"text": "x"}]), carry={"lang": "string"})
    assert read(out)[0]["lang"] is None


def test_the_built_in_corpus_names_distributions_and_its_ids_outlive_others(run, monkeypatch):
    first = read(run("pydocs", max_mb=0.05))
    monkeypatch.setattr("tasks.pydocs.fingerprint", lambda max_mb: "another environment")
    assert read(run("pydocs", max_mb=0.05)) == first
    assert {row["source"].partition("==")[0] for row in first} == {"python"}


def test_the_log_says_what_was_read(run, tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    out = run(path)
    digest = find([str(path)])[0].digest
    expected = {"path": str(path), "kind": "file", "digest": digest, "bytes": path.stat().st_size, "documents": 200}
    assert json.loads((out / "logs" / "sources.json").read_text()) == [expected]


def test_parts_carry_page_checksums_and_a_flipped_bit_is_refused(run, tmp_path):
    part = run(write(tmp_path / "a.jsonl", ROWS)) / "part-00000.parquet"
    raw = bytearray(part.read_bytes())
    raw[100] ^= 1
    part.with_name("flipped.parquet").write_bytes(raw)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(part.with_name("flipped.parquet"), page_checksum_verification=True).read()


def test_the_same_bytes_from_any_folder_and_hash_seed_and_without_paths(tmp_path):
    write(tmp_path / "a.jsonl", ROWS)
    script = """
import pathlib, sys
from tasks.ingest import Ingest, ingest
from tasks.runtime import Runtime, running
out = pathlib.Path(sys.argv[1]); out.mkdir()
with running("ingest", Runtime(workers=1)):
    ingest.fn(out, Ingest(sources=(sys.argv[2], "pydocs"), max_mb=0.05))
"""
    found = []
    for seed, cwd, source in (("1", tmp_path, "a.jsonl"), ("2", Path.cwd(), str(tmp_path / "a.jsonl"))):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(module.__file__).parents[1])}
        out = tmp_path / f"out{seed}"
        subprocess.run([sys.executable, "-c", script, str(out), source], cwd=cwd, env=env, check=True)
        found.append({path.name: path.read_bytes() for path in sorted(out.rglob("*.parquet"))})
    assert found[0] == found[1]
    assert not [name for name, raw in found[0].items() if str(tmp_path).encode() in raw]


def test_a_refresh_links_the_parts_of_unchanged_sources(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(
        module, "_build", lambda source, *rest, build=module._build: built.append(source) or build(source, *rest)
    )
    write(tmp_path / "1.jsonl", ROWS[:100])
    with using(Session(Store(tmp_path / "store"))):
        first = ingest(Ingest(sources=(f"{tmp_path}/*.jsonl",)))
        write(tmp_path / "2.jsonl", ROWS[100:])
        second = ingest(Ingest(sources=(f"{tmp_path}/*.jsonl",)))
    assert len(built) == 2, "one build a source, although the first is in both"
    assert isinstance(second, Corpus)
    assert os.path.samefile(first.parts[0], second.parts[0])


# -- bad input --------------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
@pytest.mark.parametrize(
    ("config", "told"), [({"text_column": "body"}, "no column 'body'"), ({"text_column": "score"}, "'score' is")]
)
def test_a_wrong_column_is_told_with_those_that_are_there(name, config, told, run, tmp_path):
    with pytest.raises(UserError) as error:
        run(write(tmp_path / name, ROWS), **config)
    assert told in one_line(error)
    assert "url (text)" in one_line(error)
    assert "ingest.text_column" in one_line(error)


def test_struct_and_int_columns_are_refused_before_anything_is_read(run, tmp_path):
    for value in ({"a": 1}, 5, ["x"]):
        pq.write_table(pa.Table.from_pylist([{"text": value}]), tmp_path / "a.parquet")
        with pytest.raises(UserError, match="text is needed"):
            run(tmp_path / "a.parquet")


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"<html>404</html>"])
def test_a_file_that_is_no_parquet_is_told_or_skipped(damage, run, tmp_path):
    write(tmp_path / "good.jsonl", ROWS)
    bad = write(tmp_path / "bad.parquet", ROWS)
    bad.write_bytes(damage(bad.read_bytes()))
    with pytest.raises(UserError) as error:
        run(tmp_path)
    assert f"{bad} cannot be read as parquet" in one_line(error)
    assert len(read(run(tmp_path, bad_files="skip"))) == 200


def test_skipping_bad_files_hides_no_error_of_the_machine_or_the_hub(run, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    def no_network(**_):
        raise ConnectionError("no route")

    class Hub:
        """Answers as `HfApi.dataset_info` does as far as it is asked: an object with `sha`."""

        sha = "0123abc"

        def dataset_info(self, name):
            return self

    good = write(tmp_path / "good.jsonl", ROWS)
    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr("tasks.records._text_rows", fail)
    with pytest.raises(UserError, match=r"a\.txt cannot be read as text .*Input/output error"):
        run(good, tmp_path / "a.txt", bad_files="skip")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("datasets.load_dataset", no_network)
    with pytest.raises(UserError, match=r"hf:a/b cannot be read by Hugging Face datasets .*no route"):
        run(good, "hf:a/b", bad_files="skip")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_truncated_archive_is_told(name, run, tmp_path):
    path = write(tmp_path / name, ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read as jsonl"):
        run(path)


def test_zero_rows_are_told(run, tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no rows"):
        run(tmp_path / "a.parquet")


def test_bad_utf8_in_parquet_costs_one_row(run, tmp_path):
    raw = [b"Good text."] * 999 + [b"bad \xff byte"]
    buffers = pa.array(raw, pa.binary()).buffers()
    pq.write_table(
        pa.table({"text": pa.StringArray.from_buffers(1_000, buffers[1], buffers[2])}), tmp_path / "a.parquet"
    )
    out = run(tmp_path / "a.parquet")
    assert len(read(out)) == 999
    assert dropped(out) == [("999", "invalid_utf8")]


def test_each_bad_json_line_is_dropped_with_its_reason(run, tmp_path):
    lines = {
        b'{"text": "good"}': None,
        b'{"text": "half a pair \\ud800"}': "invalid_utf8",
        b'{"text": "bad \xff byte"}': "invalid_utf8",
        b'{"text": "nul \\u0000"}': "nul_character",
        b'{"text": null}': "null",
        b'{"other": 1}': "null",
        b"{}": "null",
        b'{"text": 5}': "not_text",
        b'{"text": " \\n "}': "empty",
        b"[1, 2]": "not_an_object",
        b'{"text": "cut': "not_json",
        b'{"text": ' + b"[" * 1_000_000: "not_json",
        b'{"text": "' + b"x" * 2_000 + b'"}': "too_long",
        b'{"text": "' + b"x" * 9_000 + b'"}': "too_long",
        b'{"text": "last"}': None,
    }
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "a.jsonl").open("ab").write(b"\n\n")
    out = run(tmp_path / "a.jsonl", max_doc_bytes=1_000, max_drop_share=1)
    expected = [(str(n), reason) for n, reason in enumerate(lines.values()) if reason]
    # deep JSON is longer than the line cap of this test, so it goes as too long
    assert dropped(out) == [(n, "too_long" if n == "11" else reason) for n, reason in expected]
    assert [row["text"] for row in read(out)] == ["good", "last"]
    counts = {name.rpartition("/")[2]: n for name, n in run.metrics.items() if name.startswith("data/dropped/")}
    assert counts["null"] == 3
    assert run.metrics["data/dropped"] == 13


def test_deep_json_within_the_cap_is_dropped_and_not_a_crash(run, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": ' + b"[" * 1_000_000 + b"\n")
    assert dropped(run(tmp_path / "a.jsonl")) == [("1", "not_json")]


def test_more_than_half_dropped_stops_with_the_reason_and_the_way_out(run, tmp_path):
    with pytest.raises(UserError) as error:
        run(write(tmp_path / "a.jsonl", [{"text": "x"}, {"text": ""}, {"text": ""}]))
    assert "empty 2" in one_line(error)
    assert "ingest.max_drop_share" in one_line(error)


@pytest.mark.parametrize("value", [{"url": 5}, {"url": "half \ud800"}, {"url": ["x"]}])
def test_a_carried_column_of_another_type_is_told(value, run, tmp_path):
    with pytest.raises(UserError, match=r"ingest\.carry"):
        run(write(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "y", **value}]), carry={"url": "string"})


def test_a_file_that_changes_while_it_is_read_is_told(run, tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", ROWS)

    def change(source, columns, cap_bytes):
        yield from rows(source, columns, cap_bytes)
        write(path, ROWS[:5])

    monkeypatch.setattr(module, "rows", change)
    with pytest.raises(UserError, match="changed while it was read"):
        run(path)


def parquet_bomb(path: Path) -> None:
    """2 GB of text in a few hundred bytes: one string of 1 MB, named 2,000 times."""
    big = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000, pa.int32()), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"text": big}), path, compression="zstd")


def dictionary_bomb(path: Path) -> None:
    """A dictionary of 150 MB, which a reader takes into memory as a whole, in some kilobytes."""
    big = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int32()), pa.array(["x" * 150_000_000, "y"]))
    pq.write_table(pa.table({"text": big}), path, compression="zstd")


def long_entry(path: Path) -> None:
    """A text of 12 MB that packing makes half as small, named 1,000 times: 64 rows would be 770 MB."""
    long = pa.array([os.urandom(6_000_000).hex()])
    table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 1_000, pa.int32()), long)})
    pq.write_table(table, path, compression="zstd")


def line_bomb(path: Path) -> None:
    """300 MB of zeros on one line."""
    with gzip.open(path, "wb", 9) as file:
        for _ in range(300):
            file.write(b"0" * 1_000_000)


def zst_bomb(path: Path) -> None:
    """2 GB of lines of 1 kB."""
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        for _ in range(2_000):
            file.write((b"{" + b" " * 998 + b"\n") * 1_000)


BOMBS = [
    ("a.parquet", parquet_bomb),
    ("b.parquet", dictionary_bomb),
    ("c.parquet", long_entry),
    ("a.jsonl.gz", line_bomb),
    ("a.jsonl.zst", zst_bomb),
]
GROWN = r"""
import pathlib, re, sys
from gpt.errors import UserError
from tasks.ingest import Ingest, ingest

def peak_kib():  # not ru_maxrss, which begins at what the parent had
    return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])

start = peak_kib()
try:
    ingest.fn(pathlib.Path(sys.argv[1]), Ingest(sources=(sys.argv[2],)))
except UserError as error:
    print(error)
print((peak_kib() - start) // 1024)
"""


def grown(out: Path, path: Path) -> list[str]:
    """What ingest tells of a file, and by how many MiB the process grew."""
    arguments = [sys.executable, "-c", GROWN, str(out), str(path)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(("name", "make"), BOMBS)
def test_a_bomb_is_told_in_little_memory(name, make, tmp_path):
    make(tmp_path / name)
    told, grown_mib = grown(tmp_path, tmp_path / name)
    assert "unpacks to more than 200 times its size" in told
    assert int(grown_mib) < 400, f"{grown_mib} MiB"


def test_one_huge_row_group_needs_little_memory(tmp_path):
    texts = pa.array([os.urandom(1_000).hex() for _ in range(64)] * 1_500)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    assert (tmp_path / "a.parquet").stat().st_size > 190_000_000
    (grown_mib,) = grown(tmp_path, tmp_path / "a.parquet")
    assert int(grown_mib) < 180, f"{grown_mib} MiB"


def test_the_disk_limit_is_the_error_of_the_system_and_leaves_no_part(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": os.urandom(500).hex()} for _ in range(500)])
    script = """
import pathlib, resource, sys
from tasks.ingest import Ingest, ingest
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
ingest.fn(pathlib.Path(sys.argv[1]), Ingest(sources=(sys.argv[2],)))
"""
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out"), str(tmp_path / "a.jsonl")], capture_output=True, text=True
    )
    assert "File too large" in done.stderr
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_real_books_are_one_document_each(run, shared_data):
    out = run(shared_data / "quijote.txt", shared_data / "tinyshakespeare.txt")
    assert [len(row["text"].encode()) for row in read(out)] == [2_141_528, 1_115_394]


def test_a_carried_column_cannot_take_the_name_of_one_that_ingest_makes(run, tmp_path):
    with pytest.raises(UserError, match=r"ingest\.carry names 'source'"):
        run(write(tmp_path / "a.jsonl", ROWS), carry={"source": "string"})
