"""A refresh works on what is new alone, and what it leaves is, byte for byte, what one run over all sources gives."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import refresh as module
from flows import servers
from flows.intake import compare, entry
from flows.recipe import load
from flows.refresh import recall, refresh
from flows.run import run
from gpt.errors import UserError
from tasks import likeness
from tasks.files import locked
from tasks.sources import Source
from tasks.store import Store

PARTED = ("ingest", "filter", "dedup", "shard")
RECIPE = """
ingest: {sources: [FOLDER]}
filter: {max_bullet_lines: null}
tokenizer: {vocab_size: 400}
pretrain: {model: {depth: 1, width: 32, context: 64}, batch: 8, steps: 120, lr: 5.0e-3, eval_every: 60, eval_windows: 8,
  sample_every: 0}
chats: null
sft: null
pairs: null
prefer: null
prompts: null
rl: null
evaluate: {tokens: 2000}
runtime: {threads: 1, workers: 1, device: cpu}
"""
WORDS = [w for w in (Path(__file__).parents[2] / "README.md").read_text().split() if w.isalpha() and len(w) < 15]
SETPRIV = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
"""A root that, like anybody else, may read only what its mode lets it read."""


def write(folder, name, seed, documents=10):
    """A file of this project's words; one document is a near copy of the file before's, one is no prose."""
    texts = [
        [" ".join(random.Random(1000 * s + n).choices(WORDS, k=70)) for n in range(documents)] for s in (seed - 1, seed)
    ]
    rows = [*texts[1], texts[0][3] + " again", "12 34 56 " * 20]
    file = folder / name
    if file.suffix == ".parquet":
        pq.write_table(pa.table({"text": rows}), file)
    elif file.suffix == ".txt":
        file.write_text(rows[0])
    else:
        file.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    return file


def sources(folder, count, first=0):
    """Files of all three kinds whose order by name is that of their seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    endings = ("jsonl", "parquet", "jsonl", "jsonl", "parquet", "jsonl", "txt")
    return [write(folder, f"m{n:02d}.{endings[n % 7]}", n) for n in range(first, first + count)]


def recipe_in(folder, name="world"):
    file = folder / f"{name}.yaml"
    file.write_text(RECIPE.replace("FOLDER", str(folder / "docs")))
    return file


def payload(store, ref):
    """Every file that counts of an artifact, with its content."""
    path, manifest = store.find(ref)
    names = [name for name in manifest["files"] if not name.startswith(("logs/", "report/"))]
    return {name: (path / name).read_bytes() for name in names} | {"digest": manifest["digest"]}


def differences(store, made, recipe, other):
    """What differs from one run over the same files in the same order in a store of its own."""
    memory = recall(store.root / "refresh" / f"{recipe.name}.json")
    given = recipe.ingest.model_copy(update={"sources": tuple(known.entry for known in memory.sources)})
    pinned = recipe.tokenizer.model_validate({"ref": str(store.find(memory.tokenizer)[0])})
    batch = run(recipe.model_copy(update={"ingest": given, "tokenizer": pinned}), other, until="shard")
    found = []
    for stage in (*PARTED, "tokenizer"):
        one, two = payload(store, made[stage]), payload(other, f"{stage}:{batch.results[stage].key}")
        found += [f"{stage}/{name}" for name in one.keys() | two.keys() if one.get(name) != two.get(name)]
    return found


def inodes(store, ref, numbers):
    names = [f"{kind}-{n:05d}" for n in numbers for kind in ("part", "dropped/part", "train", "val")]
    files = [f for name in names for f in store.find(ref)[0].glob(f"{name}[-.]*")]
    return {f.name + f.parent.name[:4]: f.stat().st_ino for f in files}


# -- a corpus that grows ----------------------------------------------------------------------------------------------

BLIND = """
import json, sys
from pathlib import Path
from flows.recipe import load
from flows.refresh import refresh
from tasks.store import Store
for path in sys.argv[3:]:
    try:
        open(path).close()
    except PermissionError:
        continue
    sys.exit(f"{path} can be read after all")
print(json.dumps(refresh(load(sys.argv[1]), Store(Path(sys.argv[2]))).as_json()))
"""


def blind(recipe, store, unreadable):
    """Refresh in a process that cannot read these files; None where that cannot be brought about."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return None
    command = [*SETPRIV, sys.executable, "-c", BLIND, str(recipe), str(store.root), *map(str, unreadable)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """20 files taken in, then two more, while the 20 could be read no longer."""
    folder = tmp_path_factory.mktemp("grown")
    file, store, old = recipe_in(folder), Store(folder / "store"), sources(folder / "docs", 20)
    for path in old:
        path.chmod(0)  # before the first run: it would make a file look new to the memory of digests
    time.sleep(0.05)
    if os.geteuid() != 0:
        for path in old:
            path.chmod(0o600)
    first = refresh(load(str(file)), store)
    new = [write(folder / "docs", "a-early.jsonl", 20), write(folder / "docs", "z-late.parquet", 21)]
    seen = blind(file, store, old)
    second = seen or refresh(load(str(file)), store).as_json()
    return {
        "recipe": file,
        "store": store,
        "old": old,
        "new": new,
        "first": first,
        "second": second,
        "blind": bool(seen),
    }


def test_only_what_is_new_is_read_filtered_and_tokenized(grown):
    if not grown["blind"]:
        pytest.skip("files are made unreadable for root by setpriv; this is not root, or has no setpriv")
    assert {known["entry"] for known in grown["second"]["new"]} == set(map(str, grown["new"]))
    assert grown["second"]["parts"] == {stage: [2, 20] for stage in PARTED}


def test_old_parts_are_the_same_files_on_the_disk(grown):
    for stage in PARTED:
        before, after = (
            inodes(grown["store"], ref, range(20))
            for ref in (grown["first"].artifacts[stage], grown["second"]["artifacts"][stage])
        )
        assert len(before) >= 20
        assert before == after, stage


def test_new_files_come_last_whatever_their_names(grown):
    memory = recall(grown["store"].root / "refresh" / "world.json")
    assert [known.entry for known in memory.sources] == [str(path) for path in (*grown["old"], *grown["new"])]


def test_a_refreshed_corpus_is_byte_for_byte_that_of_one_run_over_all_files(grown, tmp_path):
    assert differences(grown["store"], grown["second"]["artifacts"], load(str(grown["recipe"])), Store(tmp_path)) == []


def test_the_report_says_what_came_in_what_was_dropped_of_it_and_why(grown):
    second = grown["second"]
    assert [(known["documents"], known["bytes"]) for known in second["new"]] == [
        (12, f.stat().st_size) for f in grown["new"]
    ]
    assert second["unchanged"]["sources"] == 20
    dropped = {(drop["stage"], drop["reason"]): drop for drop in second["dropped"]}
    assert {which: drop["documents"] for which, drop in dropped.items()} == {
        ("filter", "min_alphabetic"): 2,
        ("dedup", "near"): 2,
    }
    prefixes = [known["digest"][:16] for known in second["new"]]
    assert all(drop["example"]["id"][:16] in prefixes for drop in dropped.values())
    assert dropped["dedup", "near"]["example"]["kept_id"][:16] not in prefixes
    assert second["tokens"] == grown["first"].tokens + second["tokens_new"]


def test_the_report_reads_as_text_and_as_a_table(grown):
    lines, table = grown["first"].lines(), grown["first"].markdown()
    assert lines[0] == "world: sources: 20 new"
    assert sum("m0" in line and " documents, " in line for line in lines) >= 10
    assert any("filter, min_alphabetic: 18" in line for line in lines), lines
    assert any("shard 20 made, 0 reused" in line for line in lines)
    assert table.startswith("### world: sources: 20 new\n\n| what | |\n|---|---|\n| new | ")


def test_part_figures_stand_in_the_metrics(grown):
    for stage in PARTED:
        metrics = dict(grown["store"].find(grown["second"]["artifacts"][stage])[1]["metrics"])
        assert (metrics["data/parts"], metrics["data/parts_reused"]) == (22, 20), stage


def test_nothing_new_is_one_line_and_all_hits(grown):
    command = [sys.executable, "-m", "flows.cli", "refresh", grown["recipe"], "--store", grown["store"].root]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "world: nothing new among 22 sources\n"), done.stderr[-2000:]
    assert " miss " not in done.stderr
    assert done.stderr.count(" hit ") == 5


# -- a corpus that changes --------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path):
    """Twelve files taken in."""
    files, recipe, store = sources(tmp_path / "docs", 12), load(str(recipe_in(tmp_path))), Store(tmp_path / "store")
    refresh(recipe, store)
    return recipe, store, files


def test_a_changed_and_a_removed_file_cost_the_dedup_decisions_behind_them_only(world, tmp_path, monkeypatch):
    recipe, store, files = world
    signed = []
    monkeypatch.setattr(likeness, "_sign", lambda p, *a, sign=likeness._sign: signed.append(p) or sign(p, *a))
    write(tmp_path / "docs", files[4].name, 50)
    files[8].unlink()
    sources(tmp_path / "docs", 2, first=12)
    made = refresh(recipe, store)
    assert made.head() == "world: sources: 2 new, 1 changed, 1 removed, 10 unchanged"
    assert made.removed[0].entry == str(files[8])
    assert {stage: made.parts[stage] for stage in ("ingest", "filter")} == {"ingest": (3, 10), "filter": (3, 10)}
    assert made.parts["dedup"] == (9, 4), "parts behind the changed one are judged again"
    assert len(signed) == 3, "and signed never again"
    # the changed one, two new ones, and two whose near copies in the changed and removed file are gone
    assert made.parts["shard"] == (5, 8)
    assert differences(store, made.artifacts, recipe, Store(tmp_path / "other")) == []


def test_a_removed_first_file_costs_the_next_ones_tokens_for_the_head_of_the_stream(world, tmp_path):
    recipe, store, files = world
    files[0].unlink()
    made = refresh(recipe, store)
    assert (made.parts["filter"], made.parts["shard"]) == ((0, 11), (1, 10))
    assert differences(store, made.artifacts, recipe, Store(tmp_path / "other")) == []


def test_a_file_that_is_renamed_or_copied_is_nothing_new(world):
    recipe, store, files = world
    files[3].rename(files[3].with_name("zz.jsonl"))
    shutil.copy(files[5], files[5].with_name("aa.jsonl"))
    assert refresh(recipe, store).lines() == ["world: nothing new among 12 sources"]


def test_the_first_tokenizer_stays_until_the_recipe_names_another(world, tmp_path):
    recipe, store, _ = world
    first = store.find(recall(store.root / "refresh" / "world.json").tokenizer)[1]
    sources(tmp_path / "docs", 1, first=12)
    grown = refresh(recipe, store)
    assert store.find(grown.artifacts["tokenizer"])[1]["digest"] == first["digest"]
    assert store.find(grown.artifacts["tokenizer"])[1]["config"]["ref"] == f"tokenizer:{first['key']}"
    other = recipe.model_copy(update={"tokenizer": recipe.tokenizer.model_copy(update={"vocab_size": 300})})
    changed = refresh(other, store)
    assert store.find(changed.artifacts["tokenizer"])[1]["digest"] != first["digest"]
    assert changed.parts["shard"] == (13, 0)
    assert refresh(other, store).lines() == ["world: nothing new among 13 sources"]


def test_a_file_that_is_no_good_is_named_and_the_others_come_in(world, tmp_path):
    recipe, store, _ = world
    (tmp_path / "docs" / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"torn\.parquet"):
        refresh(recipe, store)
    sources(tmp_path / "docs", 1, first=12)
    lenient = recipe.model_copy(update={"ingest": recipe.ingest.model_copy(update={"bad_files": "skip"})})
    made = refresh(lenient, store)
    assert [(Path(known.entry).name, known.documents) for known in made.new] == [
        ("m12.jsonl", 12),
        ("torn.parquet", None),
    ]
    assert made.parts["ingest"] == (1, 12)
    assert any("torn.parquet: skipped" in line for line in made.lines())


def test_a_memory_or_a_name_that_is_no_good_is_one_line(world):
    recipe, store, _ = world
    with pytest.raises(UserError, match=r"name='\.\./x' is to name a file"):
        refresh(recipe.model_copy(update={"name": "../x"}), store)
    other = recipe.ingest.model_copy(update={"sources": ("elsewhere",)})
    with pytest.raises(UserError, match=r"knows it with other sources .*; give this recipe a name of its own"):
        refresh(recipe.model_copy(update={"ingest": other}), store)
    (store.root / "refresh" / "world.json").write_text('{"sources": 3}')
    with pytest.raises(UserError, match=r"remove it, and the next refresh counts as the first"):
        refresh(recipe, store)


def test_a_source_that_changes_meanwhile_is_not_remembered_as_it_was(world, tmp_path, monkeypatch):
    recipe, store, _ = world
    late = sources(tmp_path / "docs", 1, first=12)[0]
    before = (store.root / "refresh" / "world.json").read_bytes()
    real = module.run
    monkeypatch.setattr(module, "run", lambda *a, **k: write(late.parent, late.name, 77) and real(*a, **k))
    with pytest.raises(UserError, match="changed between their listing and their reading; refresh again"):
        refresh(recipe, store)
    assert (store.root / "refresh" / "world.json").read_bytes() == before


def source(path, digest):
    return Source("file", path, "text", digest, 1, {"sha256": digest})


def test_the_order_of_what_is_known_outlives_every_kind_of_change():
    known = [module.Known(entry=f"/{name}", digest=name.upper()) for name in "dbca"]
    found = [source(path, digest) for path, digest in (("/0", "NEW"), ("/a", "A2"), ("/b", "C"), ("/d2", "D"))]
    change = compare(known, found)
    assert [s.path for s in change.sources] == ["/d2", "/b", "/a", "/0"]
    assert (change.new, change.changed) == ({"NEW"}, {"A2"})
    assert [one.entry for one in change.removed] == ["/b"], "/b has now what /c had"
    assert compare([], found).sources == found


def test_a_source_is_listed_so_that_any_working_folder_finds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert entry(source("x/../a[1].txt", "A")) == str(tmp_path / "a[1].txt")
    assert entry(Source("file", "b.csv", "hf:csv", "B", 1, {})) == f"hf:csv:{tmp_path / 'b.csv'}"
    assert entry(Source("hub", "hf:owner/name", "hub", "C", 0, {})) == "hf:owner/name"
    assert entry(Source("pydocs", "pydocs", "pydocs", "D", 0, {})) == "pydocs"


# -- training goes on -------------------------------------------------------------------------------------------------


def bits(store, model):
    metrics = dict(store.find(model)[1]["metrics"])
    return metrics["val/bpb_before"], metrics["val/bpb"]


def test_training_goes_on_from_the_last_model(tmp_path, monkeypatch):
    """Down to the base model: what follows it is that of every run."""
    real = module.run
    monkeypatch.setattr(module, "run", lambda recipe, store, until: real(recipe, store, until=until or "pretrain"))
    files, recipe, store = sources(tmp_path / "docs", 12), load(str(recipe_in(tmp_path))), Store(tmp_path / "store")
    first = refresh(recipe, store, train=True)
    untrained, learned = bits(store, first.artifacts["pretrain"])
    assert learned < untrained - 0.5
    again = refresh(recipe, store, train=True)
    assert again.artifacts == first.artifacts
    assert again.lines() == [f"world: nothing new among {len(files)} sources"]
    sources(tmp_path / "docs", 2, first=12)
    refresh(recipe, store)  # without training: the model has yet to learn from these
    second = refresh(recipe, store, train=True)
    start, end = bits(store, second.artifacts["pretrain"])
    print(f"untrained {untrained:.3f}, after {learned:.3f}; goes on at {start:.3f}, ends at {end:.3f}")
    assert abs(start - learned) < 0.15 * (untrained - learned), f"{start} is far from {learned}, untrained {untrained}"
    assert end < start
    assert store.find(second.artifacts["pretrain"])[1]["config"]["init"] == first.artifacts["pretrain"]
    assert set(second.built) == {"pretrain"}
    assert "before)" in second.built["pretrain"]
    assert refresh(recipe, store, train=True).artifacts == second.artifacts
    wider = {"model": {"depth": 1, "width": 64, "context": 64}}
    other = recipe.model_copy(update={"pretrain": recipe.pretrain.model_validate(wider)})
    with pytest.raises(UserError, match=r"has width=32, pretrain\.model has width=64; a model goes on as it is"):
        refresh(other, store, train=True)


# -- kills and company ------------------------------------------------------------------------------------------------


def start(recipe, store, **env):
    command = [sys.executable, "-m", "flows.cli", "refresh", str(recipe), "--store", str(store.root), "--json"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
    )


def ended(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def killed_refreshes_end_alike(points, folder):
    file, files = recipe_in(folder), sources(folder / "docs", 10)
    calm = Store(folder / "calm")
    refresh(load(str(file)), calm)
    sources(folder / "docs", 2, first=10)
    for turn in range(len(points)):
        shutil.copytree(calm.root, folder / f"killed-{turn}", symlinks=True)
    truth, memory = refresh(load(str(file)), calm), (calm.root / "refresh" / "world.json").read_bytes()
    assert truth.sources == len(files) + 2
    for turn, point in enumerate(points):
        store = Store(folder / f"killed-{turn}")
        process = start(file, store, GPTLOOM_FAILPOINT=point)
        process.communicate(timeout=300)
        assert process.returncode == -9, f"{point} was not reached"
        again = ended(start(file, store))
        assert again["artifacts"] == truth.artifacts, point
        assert (store.root / "refresh" / "world.json").read_bytes() == memory, point
        assert all(payload(store, ref) == payload(calm, ref) for ref in truth.artifacts.values()), point


def test_a_killed_refresh_is_made_good_by_the_next(tmp_path):
    killed_refreshes_end_alike(["refresh written:1"], tmp_path)


@pytest.mark.slow
def test_a_refresh_killed_anywhere_is_made_good_by_the_next(tmp_path):
    names = ("part sealed", "part renamed", "sealed", "renamed", "before current", "current", "built")
    points = [f"{name}:{n}" for name in names for n in (1, 3, 5)]
    killed_refreshes_end_alike([*points, "refresh written:1", "refresh remembered:1"], tmp_path)


def test_of_two_refreshes_at_once_the_second_waits_and_finds_nothing_new(tmp_path):
    file, store = recipe_in(tmp_path), Store(tmp_path / "store")
    sources(tmp_path / "docs", 10)
    with locked(store.root / "refresh" / "world.lock"):  # both are there before either may begin
        both = [start(file, store) for _ in range(2)]
        for process in both:
            assert any("being refreshed by another process" in line for line in process.stderr)
    new = sorted(len(ended(process)["new"]) for process in both)
    assert new == [0, 10]


# -- beside servers ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(400)
def test_it_runs_inside_of_a_prefect_flow_and_mlflow_has_the_report(tmp_path):
    """In a process of its own: Prefect reads its settings once."""
    from mlflow import MlflowClient

    running = servers.up({"prefect": servers.free_port(0), "mlflow": servers.free_port(0)})
    try:
        sources(tmp_path / "docs", 10)
        wrapped = """
import sys
from pathlib import Path
from flows.servers import connect
connect()
from prefect import flow
from flows.recipe import load
from flows.refresh import refresh
from tasks.store import Store

@flow
def nightly():
    refresh(load(sys.argv[1]), Store(Path(sys.argv[2])))

nightly()
"""
        command = [sys.executable, "-c", wrapped, str(recipe_in(tmp_path)), str(tmp_path / "store")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
        assert done.returncode == 0, done.stderr[-3000:]
        client = MlflowClient(running["mlflow"].url)
        found = client.search_runs(["1"], "tags.stage = 'pipeline'")
        assert [file.path for file in client.list_artifacts(found[0].info.run_id, "report")] == ["report/refresh.md"]
    finally:
        servers.down()
