"""A stage call is cached by content, cut off early, forced on demand, and says in one line what the user can fix."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.errors import UserError
from tasks.artifacts import Checkpoint, Config, Corpus, Metrics
from tasks.manifest import verify
from tasks.runtime import Runtime
from tasks.stage import Session, stage, using
from tasks.store import Store

MADE: list[str] = []


class Read(Config):
    """Reads one file; the path is outside, its content is not."""

    file: str
    """Path."""
    upper: bool = False
    """Shout."""

    def outside(self):
        return {"file": Path(self.file).read_text()}


class Count(Config):
    """Counts letters."""

    unit: int = 1
    """Divisor."""


@stage(Corpus, version="1")
def read(out: Path, config: Read) -> Metrics:
    """Copy a file."""
    MADE.append("read")
    text = Path(config.file).read_text()
    (out / "part-00000.parquet").write_text(text.upper() if config.upper else text.strip())
    return {"data/documents": 1, "data/bytes": len(text)}


@stage(Checkpoint, version="1")
def count(out: Path, config: Count, corpus: Corpus) -> Metrics:
    """Count its letters."""
    MADE.append("count")
    (out / "n.json").write_text(json.dumps(len(corpus.parts[0].read_text()) // config.unit))
    return {"eval/letters": 1}


@pytest.fixture
def source(tmp_path):
    MADE.clear()
    file = tmp_path / "a.txt"
    file.write_text("hello")
    return file


def weave(file, tmp_path, **switches):
    with using(Session(Store(tmp_path / "store"), **switches)) as session:
        count(Count(), read(Read(file=str(file))))
    return session


def test_a_rerun_does_no_work_and_keeps_keys_and_digests(source, tmp_path):
    first, again = weave(source, tmp_path), weave(source, tmp_path)
    assert MADE == ["read", "count"]
    assert [r.cache for r in again.results.values()] == ["hit", "hit"]
    assert [(r.key, r.digest) for r in first.results.values()] == [(r.key, r.digest) for r in again.results.values()]


def test_the_path_of_a_source_is_not_in_the_key_but_its_content_is(source, tmp_path):
    weave(source, tmp_path)
    moved = source.rename(tmp_path / "elsewhere.txt")
    assert [r.cache for r in weave(moved, tmp_path).results.values()] == ["hit", "hit"]
    moved.write_text("other")
    assert [r.cache for r in weave(moved, tmp_path).results.values()] == ["miss", "miss"]


def test_equal_content_cuts_the_rebuild_off_early(source, tmp_path):
    weave(source, tmp_path)
    source.write_text("hello\n")  # read strips it: other key, same content
    assert [r.cache for r in weave(source, tmp_path).results.values()] == ["miss", "hit"]


def test_force_rebuilds_one_stage_and_what_lies_below_still_hits(source, tmp_path):
    before = weave(source, tmp_path)
    after = weave(source, tmp_path, force=frozenset({"read"}))
    assert [r.cache for r in after.results.values()] == ["miss", "hit"]
    assert before.results["read"].path != after.results["read"].path
    verify(Path(before.results["read"].path))


def test_runtime_is_outside_of_the_key(source, tmp_path):
    weave(source, tmp_path, runtime=Runtime(workers=1))
    for means in (Runtime(workers=7), Runtime(threads=1), Runtime(device="cpu")):
        assert [r.cache for r in weave(source, tmp_path, runtime=means).results.values()] == ["hit", "hit"]


def test_a_stage_that_must_hit_and_does_not_is_one_clear_line(source, tmp_path):
    with pytest.raises(UserError, match=r"read:\w{16} is not in the store, and this run starts below it"):
        weave(source, tmp_path, must_hit=frozenset({"read"}))
    assert MADE == []


def test_a_source_that_changes_while_it_is_read_publishes_nothing(source, tmp_path, monkeypatch):
    answers = iter([{"file": "before"}, {"file": "after"}])
    monkeypatch.setattr(Read, "outside", lambda self: next(answers))
    with pytest.raises(UserError, match="changed while they were read"):
        weave(source, tmp_path)
    assert not list(Store(tmp_path / "store").entries())


def test_the_trace_of_a_dag_knows_what_lies_above_and_below(source, tmp_path):
    with using(Session(Store(tmp_path), wanted=frozenset())) as dag:
        count(Count(), read(Read(file=str(source))))
    assert dag.edges == {"read": [], "count": ["read"]}
    assert dag.above("count") == {"read"}
    assert dag.below("read") == {"count"}
    assert MADE == []


def test_the_manifest_tells_where_the_artifact_comes_from(source, tmp_path):
    session = weave(source, tmp_path)
    manifest = verify(Path(session.results["count"].path))
    above = session.results["read"]
    assert manifest["inputs"] == {"corpus": {"stage": "read", "key": above.key, "digest": above.digest}}
    assert manifest["type"] == "Checkpoint"
    assert manifest["config"] == {"unit": 1}
    assert {"commit", "libraries", "python", "seconds", "created", "metrics"} <= manifest.keys()


FULL = """
import resource, sys
sys.path.insert(0, sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
from pathlib import Path
from tasks.artifacts import Config, Corpus
from tasks.stage import Session, stage, using
from tasks.store import Store
from gpt.errors import UserError

@stage(Corpus, version="1")
def big(out: Path, config: Config):
    (out / "x").write_bytes(b"x" * int(sys.argv[3]))
    return {}

try:
    with using(Session(Store(Path(sys.argv[1])))):
        big(Config())
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_publishes_nothing(tmp_path):
    def go(size):
        root = str(Path(__file__).parents[2])
        return subprocess.run(
            [sys.executable, "-c", FULL, str(tmp_path / "s"), root, size], capture_output=True, text=True, check=True
        )

    assert "nothing was published; free space and rerun" in go("9000").stdout
    assert not list(Store(tmp_path / "s").entries())
    assert go("1000").stdout == ""
    assert len(list(Store(tmp_path / "s").entries())) == 1
