"""The store keeps its promises: one build a key, whole or absent, nothing damaged is used, a kill costs only time."""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt.errors import UserError
from tasks import store as st
from tasks.files import file_digest, link
from tasks.manifest import canonical, content_digest, key_of, verify
from tasks.store import Store

FIELDS = {"type": "Corpus", "inputs": {}, "metrics": {}, "config": {}, "created": "2026-01-01", "tracking": {}}


def fill(work: Path) -> dict:
    (work / "deep").mkdir(exist_ok=True)
    (work / "a.txt").write_text("alpha" * 100)
    (work / "deep" / "b.bin").write_bytes(bytes(range(256)))
    (work / "logs").mkdir(exist_ok=True)
    (work / "logs" / "when.txt").write_text(str(time.time()))
    return FIELDS


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_a_second_build_of_a_key_is_a_hit_with_the_same_folder(store):
    first, manifest, hit = store.build("s", "k", fill)
    again, same, hit_again = store.build("s", "k", lambda work: pytest.fail("built twice"))
    assert (hit, hit_again, first, manifest) == (False, True, again, same)


def test_force_makes_a_new_build_and_leaves_the_old_one_to_its_readers(store):
    old, was, _ = store.build("s", "k", fill)
    new, now, hit = store.build("s", "k", fill, force=True)
    assert not hit
    assert old != new
    assert verify(old) == was
    assert store.open("s", "k")[0] == new
    assert was["digest"] == now["digest"], "logs/ lies outside of the digest"


def test_the_digest_names_content_not_logs_nor_order():
    one = {"b": "2", "a": "1", "logs/x": "3", "README.md": "4", "report/y": "5"}
    assert content_digest(one) == content_digest({"a": "1", "b": "2"}) != content_digest({"a": "2", "b": "2"})


def test_canonical_json_and_keys_do_not_depend_on_order_or_hash_seed():
    code = "from tasks.manifest import key_of; print(key_of({'b': 1, 'a': [1, 'é']}, 'x'))"
    run = [sys.executable, "-c", code]
    seen = {subprocess.check_output(run, env={**os.environ, "PYTHONHASHSEED": seed}, text=True) for seed in "012"}
    assert seen == {key_of({"a": [1, "é"], "b": 1}, "x") + "\n"}
    assert canonical({"b": 1, "a": 2}) == b'{"a":2,"b":1}'


def test_300_flips_truncations_and_additions_are_never_used(store):
    rng, found = random.Random(7), 0
    for turn in range(300):
        folder, _, _ = store.build("s", "k", fill)
        victim = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
        raw = bytearray(victim.read_bytes())
        if turn % 3 == 0:
            victim.write_bytes(raw[: rng.randrange(len(raw))])
        elif turn % 3 == 1:
            victim.write_bytes(raw + b"\n")
        else:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            victim.write_bytes(raw)
        found += store.open("s", "k") is None
    assert found == 300, f"{300 - found} of 300 damages were used"
    assert len(list((store.root / "quarantine").iterdir())) == 300


def test_a_file_added_to_or_removed_from_a_build_is_noticed(store):
    folder, _, _ = store.build("s", "k", fill)
    (folder / "part-99999.parquet").write_text("smuggled")
    assert store.open("s", "k") is None
    folder, _, _ = store.build("s", "k", fill)
    (folder / "a.txt").unlink()
    assert store.open("s", "k") is None


def test_a_remembered_digest_is_forgotten_when_the_file_changes_even_with_its_old_mtime(tmp_path):
    file = tmp_path / "f"
    file.write_text("one")
    time.sleep(0.05)
    before, stat = file_digest(file), file.stat()
    file.write_text("two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest(file) != before


def test_parts_are_built_once_and_shared_by_hard_links(store, tmp_path):
    made = []

    def part_fill(folder):
        made.append(1)
        (folder / "part.bin").write_bytes(b"x" * 1000)
        return {"rows": 3}

    for turn in (1, 2):
        with st.building(store, "s", "1"):
            folder, facts = st.part({"source": "abc"}, part_fill)
            link(folder / "part.bin", tmp_path / str(turn) / "part-00000.bin")
    assert (made, facts) == ([1], {"rows": 3})
    assert (tmp_path / "1" / "part-00000.bin").samefile(tmp_path / "2" / "part-00000.bin")
    (folder / "part.bin").write_bytes(b"y" * 1000)
    with st.building(store, "s", "1"):
        st.part({"source": "abc"}, part_fill)
    assert len(made) == 2, "a damaged part was used"


def test_a_stage_counts_the_parts_it_asked_for_and_found(store):
    assert st.part_figures() == {}
    for reused in (0, 2):
        with st.building(store, "s", "1"):
            assert st.part_figures() == {}, "a stage without parts has no such metric"
            for number in range(2):
                st.part({"n": number}, lambda folder: (folder / "x").write_text("x") and {})
            st.part("aside", lambda folder: {}, counts=False)
            assert st.part_figures() == {"data/parts": 2, "data/parts_reused": reused}


def _contender(root, queue):
    def slow(work):
        queue.put(1)
        time.sleep(0.3)
        return fill(work)

    Store(root).build("s", "k", slow)


def test_eight_processes_that_want_one_key_build_it_once(store):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    runs = [context.Process(target=_contender, args=(store.root, queue)) for _ in range(8)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(30)
    assert [run.exitcode for run in runs] == [0] * 8
    queue.get()
    assert queue.empty(), "built more than once"
    assert len(list(store.folder("s", "k").glob("0*"))) == 1


SCRIPT = """
import sys
from pathlib import Path
from tasks import store as st
from tasks.files import link

def fill(work):
    folder, facts = st.part({"n": 1}, lambda f: (f / "p").write_text("part") and {})
    link(folder / "p", work / "part-0")
    (work / "a").write_text("a" * 1000)
    (work / "b").write_text("b" * 1000)
    return {"type": "Corpus", "created": ""}

store = st.Store(Path(sys.argv[1]))
with st.building(store, "s", "1"):
    for key in ("k1", "k2"):
        print(store.build("s", key, fill)[1]["digest"])
    print(store.build("s", "k1", fill, force=True)[1]["digest"])
"""


def test_sigkill_at_every_failpoint_leaves_nothing_wrong(tmp_path):
    def go(root, **env):
        full = {**os.environ, **env}
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, str(root)], capture_output=True, text=True, env=full, check=False
        )

    trace = tmp_path / "trace"
    truth = go(tmp_path / "calm", GPTLOOM_FAILPOINT_TRACE=str(trace)).stdout
    names = trace.read_text().split("\n")[:-1]
    points = [f"{name}:{names[: i + 1].count(name)}" for i, name in enumerate(names)]
    assert len(points) >= 25, points
    for point in points:
        root = tmp_path / point.replace(" ", "-").replace(":", "-")
        assert go(root, GPTLOOM_FAILPOINT=point).returncode == -9, f"{point} was not reached"
        assert go(root).stdout == truth, f"after a kill at {point}"
        found = Store(root)
        assert all(verify(build, afresh=True) for build, _ in found.entries())


def test_find_takes_a_prefix_a_bare_stage_or_a_path_and_says_what_is_wrong(store):
    folder, _, _ = store.build("s", "abcd", fill)
    store.build("s", "abff", fill)
    assert store.find("s:abc")[0] == store.find(str(folder))[0] == folder
    assert store.find("s")[1]["key"] in ("abcd", "abff")
    for ref, word in [("s:ab", "fits 2"), ("t", "no name"), ("s:zz", "no name")]:
        with pytest.raises(UserError, match=word):
            store.find(ref)


def test_garbage_is_old_builds_dead_work_quarantine_and_unshared_parts(store):
    old, _, _ = store.build("s", "k", fill)
    new, _, _ = store.build("s", "k", fill, force=True)
    (store.folder("s", "k") / "work").mkdir()
    store.part("s", "p", lambda folder: (folder / "x").write_text("x") and {})
    garbage = set(store.garbage())
    assert garbage == {old, store.folder("s", "k") / "work", store.root / "parts" / "s" / "p"}
    assert new not in garbage


def test_one_damaged_manifest_hides_no_other_artifact(store):
    bad, _, _ = store.build("s", "aaaa", fill)
    good, _, _ = store.build("s", "bbbb", fill)
    (bad / "artifact.json").write_text("")
    assert [build for build, _ in store.entries()] == [good]
    assert store.find("s:bbbb")[0] == good
    with pytest.raises(UserError, match="rebuilds it"):
        store.find(str(bad))


def test_a_build_can_be_found_by_its_content_after_it_was_forced_anew(store):
    old, was, _ = store.build("s", "k", fill)
    store.build("s", "k", lambda work: (work / "a.txt").write_text("other") and FIELDS, force=True)
    assert store.find("s:k")[0] != old
    assert store.find("s:k", was["digest"])[0] == old
    with pytest.raises(UserError, match="is gone"):
        store.find("s:k", "0" * 64)


def test_a_whole_build_whose_maker_died_before_current_moved_is_kept_and_adopted(store):
    build, _, _ = store.build("s", "k", fill)
    (store.folder("s", "k") / "current").unlink()
    assert store.garbage() == []
    assert store.open("s", "k")[0] == build
