"""Whatever a person gets wrong is one clear line that names it, exit code 2, and nothing published."""

import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import cli
from tasks.store import Store


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run `gptloom ...` in this process; returns (exit code, last line of stderr, published stages)."""
    monkeypatch.chdir(tmp_path)

    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["gptloom", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        lines = captured.err.strip().splitlines()
        return stop.value.code, lines[-1] if lines else "", {m["stage"] for _, m in Store(tmp_path / "store").entries()}

    return go


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def made(kind, folder):
    """A source file that is wrong in one way."""
    path = folder / f"{kind}.parquet"
    if kind == "truncated":
        parquet(path, text=["hello"] * 1000)
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "html":
        path.write_text("<html>404</html>")
    elif kind == "no_column":
        parquet(path, body=["x"])
    elif kind == "int_column":
        parquet(path, text=[1, 2, 3])
    elif kind == "zero_rows":
        parquet(path, text=pa.array([], pa.string()))
    elif kind == "bomb":
        hundred = pa.table({"text": ["x" * 1_000_000] * 100})
        with pq.ParquetWriter(path, hundred.schema, compression="zstd") as writer:
            for _ in range(20):
                writer.write_table(hundred)
    elif kind == "not_utf8":
        path = folder / "not_utf8.txt"
        path.write_bytes(b"\xff\xfe" * 500)
    elif kind == "unknown_ending":
        path = folder / "a.docx"
        path.write_bytes(b"PK")
    return path


FILES = [
    ("missing", "missing.parquet"),
    ("truncated", "truncated.parquet"),
    ("empty", "empty.parquet"),
    ("html", "html.parquet"),
    ("no_column", "ingest.text_column"),
    ("int_column", "column 'text' is"),
    ("zero_rows", "no rows"),
    ("bomb", "bomb.parquet"),
    ("not_utf8", "invalid_utf8"),
    ("unknown_ending", "a.docx"),
]


@pytest.mark.parametrize(("kind", "word"), FILES, ids=[kind for kind, _ in FILES])
def test_a_bad_source_is_one_line(kind, word, run, tmp_path):
    path = made(kind, tmp_path)
    code, line, published = run("run", "demo", "--set", f"ingest.sources=['{path}']", "--until", "ingest")
    assert (code, published) == (2, set()), line
    assert line.startswith("error: ")
    assert word in line
    assert len(line) < 600, line


SWITCHES = [
    (["run", "dmeo"], "did you mean demo?"),
    (["run", "x" * 300], "neither a preset nor a file"),
    (["run", "."], "neither a preset nor a file"),
    (["run", "demo", "--set", "ingest.sorces=[x]"], "did you mean sources?"),
    (["run", "demo", "--set", "dedupe={}"], "did you mean dedup?"),
    (["run", "demo", "--set", "pretrain.steps=many"], "pretrain.steps='many' does not fit"),
    (["run", "demo", "--set", "pretrain.steps=-1"], "must be at least 0"),
    (["run", "demo", "--set", "pretrain.model={width: 100, heads: 3}"], "must be a multiple of model.heads=3"),
    (["run", "demo", "--set", "pretrain.model.dpeth=3"], "did you mean depth?"),
    (["run", "demo", "--set", "chats=null"], "set sft: null too, or give chats"),
    (["run", "demo", "--set", "pairs=null"], "set prefer: null too, or give pairs"),
    (["run", "demo", "--set", "rl.numeric=0"], "no reward counts; set one of exact, numeric, form"),
    (["run", "demo", "--set", "prefer.beta=0"], "beta=0.0 must be positive"),
    (["run", "demo", "--set", "pretrain.steps"], "must read key.path=value"),
    (["run", "demo", "--until", "pretrian"], "no stage of this recipe"),
    (["run", "demo", "--set", "sft=null", "--only", "sft"], "no stage of this recipe"),
    (["run", "demo", "--set", "ingest.max_mb=1", "--only", "filter"], "is not in the store"),
    (["run", "demo", "--set", "tokenizer={ref: tokenizer:zzzz}", "--set", "ingest.max_mb=0.2", "--until", "tokenizer"],
     "tokenizer:zzzz"),
    (["run", "demo", "--set", "runtime.workers=0"], "greater than or equal to 1"),
    (["run", "demo", "--only", "shard", "--until", "sft"], "--only stands alone"),
    (["run", "demo", "--from", "export", "--until", "shard"], "does not lead to"),
    (["run", "demo", "--only", "shard", "--force", "ingest"], "this run does not build it"),
    (["plan", "demo", "--gpus", "8xH1000"], "must read like 8xH100"),
    (["plan", "demo", "--gpus", "0xH100"], "must read like 8xH100"),
    (["plan", "demo", "--set", "pretrain.model={depth: 99, width: 16384, heads: 128}"], "name the hardware that shall"),
    (["sample", "pretrain:abc"], "is in the store under no name"),
    (["lineage", "nothing"], "is in the store under no name"),
    (["sync"], "start it with `gptloom up`"),
    (["run", "demo", "--store", __file__], "test_bad_input.py: File exists; name a folder of your own"),
    (["demo", "--store", "/dev/null/store"], "Not a directory; name a folder of your own"),
    (["sample", "--store", __file__], "test_bad_input.py: Not a directory; name a folder of your own"),
    (["store", "ls", "--store", __file__], "test_bad_input.py: Not a directory; name a folder of your own"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "word"), SWITCHES, ids=[" ".join(a)[:60] for a, _ in SWITCHES])
def test_a_bad_switch_is_one_line(arguments, word, run):
    code, line, published = run(*arguments)
    assert code == 2, line
    assert line.startswith("error: ")
    assert word in line, line
    assert published <= {"ingest", "filter", "dedup"}


def test_a_store_in_which_nothing_can_be_written_is_one_line(run, tmp_path, monkeypatch):
    def file(dir):  # noqa: A002
        if dir == tmp_path:
            raise PermissionError(13, "Permission denied", dir)
        return opened(dir=dir)

    opened = tempfile.TemporaryFile
    monkeypatch.setattr("tempfile.TemporaryFile", file)  # a mode of the folder would not stop root
    code, line, _ = run("run", "demo", "--store", tmp_path)
    assert (code, line) == (2, f"error: --store {tmp_path}: Permission denied; name a folder of your own")


def test_a_given_port_that_is_taken_is_one_line_and_starts_nothing(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        code, line, _ = run("up", "--mlflow-port", port)
    assert (code, f"port {port} of 127.0.0.1 is taken" in line) == (2, True), line
    assert not (tmp_path / "home" / "servers.json").exists()


def test_a_shard_file_that_is_not_there_is_named(run):
    code, line, _ = run("shards", "inspect", "nothing.bin")
    assert (code, "nothing.bin" in line) == (2, True), line


def test_a_broken_recipe_file_is_one_line(run, tmp_path):
    (tmp_path / "own.yaml").write_text("ingest: {sources: [a")
    assert run("run", "own.yaml")[:2] == (
        2,
        "error: own.yaml line 1: not valid YAML; a recipe is `stage: {field: value}` lines",
    )
    (tmp_path / "own.yaml").write_text("- ingest")
    assert "this is a list" in run("run", "own.yaml")[1]


def test_a_stage_that_would_drop_more_than_half_stops_and_says_which_rule(run, tmp_path):
    parquet(tmp_path / "d.parquet", text=["too short to be of use"] * 50)
    code, line, published = run("run", "demo", "--set", f"ingest.sources=['{tmp_path}/d.parquet']", "--until", "filter")
    assert (code, published) == (2, {"ingest"})
    assert "filter would drop 50 of 50" in line
    assert "filter.min_words" in line
    assert "filter.max_drop_share" in line


def test_an_artifact_of_another_type_is_named(run, tmp_path):
    parquet(tmp_path / "d.parquet", text=["some words that make a document"] * 3)
    from flows.recipe import load
    from flows.run import run as weave

    weave(load("demo", [f"ingest.sources=['{tmp_path}/d.parquet']"]), Store(tmp_path / "store"), until="ingest")
    assert run("sample", "ingest")[:2] == (2, "error: ingest is a Corpus, not a model; name pretrain, sft or export")


def test_a_full_disk_is_one_line_and_the_rerun_goes_on(tmp_path):
    parquet(tmp_path / "d.parquet", text=[f"{n} " * 3000 for n in range(300)])

    def go(limit):
        command = [
            sys.executable,
            "-m",
            "flows.cli",
            "run",
            "demo",
            "--set",
            f"ingest.sources=['{tmp_path}/d.parquet']",
        ]
        command += ["--until", "ingest", "--store", str(tmp_path / "store")]
        small = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
        return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=small, cwd=Path.cwd())

    full = go(2_000)
    assert full.returncode == 2, full.stderr[-2000:]
    assert "nothing was published; free space and rerun" in full.stderr.splitlines()[-1]
    assert not list(Store(tmp_path / "store").entries())
    assert go(0).returncode == 0
