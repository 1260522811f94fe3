"""The commands as a person uses them, on one tiny run of every stage."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import cli
from flows.recipe import load
from flows.run import known_stages
from flows.run import run as weave
from tasks.store import Store


@pytest.fixture(scope="module")
def store(tiny_recipe, tmp_path_factory):
    """A store in which the tiny recipe has run."""
    made = Store(tmp_path_factory.mktemp("made") / "store")
    weave(load(str(tiny_recipe)), made)
    return made


@pytest.fixture
def gptloom(store, monkeypatch, capsys):
    """Run `gptloom ...` in this process on that store; returns its stdout."""

    def go(*arguments, code=0):
        monkeypatch.setenv("GPTLOOM_STORE", str(store.root))
        monkeypatch.setattr(sys, "argv", ["gptloom", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert (stop.value.code or 0) == code, captured.err
        return captured.out

    return go


def test_help_is_instant_and_imports_nothing_heavy():
    code = "import sys, flows.cli; print([m for m in ('torch', 'prefect', 'mlflow', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_command_has_help(gptloom):
    for group in ([], ["store"], ["shards"]):
        names = re.findall(r"^  (\w+) ", gptloom(*group, "--help").split("Commands:")[1], re.M)
        assert len(names) >= 3
        for name in names:
            assert len(gptloom(*group, name, "--help").splitlines()) > 3


def test_a_rerun_is_all_hits_and_json_tells_every_stage(gptloom, tiny_recipe):
    said = json.loads(gptloom("run", tiny_recipe, "--json").splitlines()[-1])
    assert said["error"] is None
    assert [s["stage"] for s in said["stages"]] == known_stages()
    assert {s["stage"]: s["cache"] for s in said["stages"]} == {s: "hit" for s in known_stages()} | {"filter": "absent"}
    assert all(Path(s["path"]).is_dir() for s in said["stages"] if s["cache"] == "hit")


def test_a_conversation_ends_with_an_empty_line(gptloom, monkeypatch):
    asked = iter(["Hello?", "And you?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(asked))
    said = gptloom("chat", "rl", "--temperature", "0")
    assert said.count("model> ") == 2


def test_the_demo_tells_what_went_and_what_was_kept_in_its_place(store, tmp_path, capsys):
    from flows.demo import effects

    rows = [
        {"reason": "min_words", "detail": "too\nshort", "kept": None},
        {"reason": "near", "detail": "b", "kept": "a"},
    ]
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "examples.json").write_text(json.dumps(rows))
    removed = SimpleNamespace(path=str(tmp_path), metrics={"data/dropped": 2.0})
    scores = SimpleNamespace(path=str(store.find("evaluate")[0]))
    effects(SimpleNamespace(results={"filter": removed, "dedup": removed, "evaluate": scores}))
    said = " ".join(capsys.readouterr().out.split())
    assert "dedup: 2 documents removed, for example min_words too short near b kept a base" in said


def test_the_demo_shows_every_model_on_every_measure(store):
    from flows.demo import standings

    scores = json.loads((store.find("evaluate")[0] / "report" / "scores.json").read_text())
    head, *lines = standings(scores)
    assert head.split() == ["base", "sft", "prefer", "rl", "beside"]
    measures = {line.split()[0] for line in lines}
    assert {"bpb", "answer_accuracy", "pair_accuracy", "arithmetic", "refusal_harmful", "refusal_harmless"} <= measures
    assert all(len(re.findall(r"\d\.\d{3}(?: \(|  )", line)) >= 4 for line in lines)


def test_json_comes_last_on_failure_too(gptloom, tiny_recipe):
    out = gptloom("run", tiny_recipe, "--set", "shard.val_fraction=0.000001", "--json", code=2)
    said = json.loads(out.splitlines()[-1])
    assert "shard.val_fraction" in said["error"]
    caches = {s["stage"]: s["cache"] for s in said["stages"]}
    assert (caches["ingest"], caches["shard"], caches["pretrain"]) == ("hit", "failed", "absent")


def test_one_changed_dedup_setting_rebuilds_dedup_and_below_it_only_what_has_other_content(gptloom, tiny_recipe):
    out = gptloom("run", tiny_recipe, "--set", "dedup.threshold=0.85", "--json")
    caches = {s["stage"]: s["cache"] for s in json.loads(out.splitlines()[-1])["stages"]}
    assert caches == {s: "hit" for s in known_stages()} | {"filter": "absent", "dedup": "miss"}


def test_only_until_from_and_force_choose_stages(gptloom, tiny_recipe):
    def caches(*switches):
        said = json.loads(gptloom("run", tiny_recipe, "--json", *switches).splitlines()[-1])
        return {s["stage"]: s["cache"] for s in said["stages"] if s["cache"] != "absent"}

    assert set(caches("--until", "shard")) == {"ingest", "dedup", "tokenizer", "shard"}
    assert caches("--only", "chats") == {"ingest": "hit", "dedup": "hit", "tokenizer": "hit", "chats": "hit"}
    assert caches("--from", "evaluate", "--force", "export")["export"] == "miss"


def test_show_tells_what_the_store_has_and_config_prints_every_default(gptloom, tiny_recipe):
    shown = gptloom("show", tiny_recipe)
    assert len(re.findall(r"^\w+ +hit", shown, re.M)) == len(known_stages()) - 1
    changed = gptloom("show", tiny_recipe, "--set", "tokenizer.vocab_size=500")
    assert re.search(r"^tokenizer +miss", changed, re.M)
    assert re.search(r"^export +unknown", changed, re.M)
    assert "warmup_steps:" in gptloom("show", tiny_recipe, "--config")


def test_sample_prints_nanogpts_form_from_checkpoint_and_release(gptloom):
    for ref in ("pretrain", "sft", "export"):
        out = gptloom("sample", ref, "--start", "The ", "--num-samples", 2, "--max-new-tokens", 12)
        samples = out.split("---------------\n")
        assert len(samples) == 3
        assert samples[2] == ""
        assert all(text.startswith("The ") for text in samples[:2])
    same = [
        gptloom("sample", ref, "--num-samples", 1, "--max-new-tokens", 12, "--start", "A") for ref in ("rl", "export")
    ]
    assert same[0] == same[1], "the release writes another text than its checkpoint"


def test_lineage_leads_from_the_release_to_every_source_file(gptloom, tiny_recipe):
    text = gptloom("lineage", "export")
    assert "docs.jsonl" in text
    assert all(f"{stage}:" in text for stage in ("sft", "pretrain", "shard", "dedup", "ingest", "chats", "tokenizer"))
    tree = json.loads(gptloom("lineage", "export", "--json"))
    assert tree["artifact"].startswith("export:")


def test_a_token_leads_back_to_its_document_and_row(gptloom, store):
    shown = gptloom("shards", "show", 100)
    assert re.search(r"[0-9a-f]{16}-\d+", shown), shown
    text = gptloom("shards", "text", "--split", "val")
    assert text.count("<|endoftext|>") >= 3
    file = next(store.root.glob("shard/*/current/train-*.bin"))
    assert "uint16" in gptloom("shards", "inspect", file)


def test_the_store_is_listed_verified_and_cleaned(gptloom, store):
    assert "pretrain:" in gptloom("store", "ls")
    assert "all artifacts are what their manifests say" in gptloom("store", "verify")
    assert "--yes" in gptloom("store", "gc")
    weights = next(store.root.glob("pretrain/*/current/model.safetensors"))
    raw = bytearray(weights.read_bytes())
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert "model.safetensors was changed" in gptloom("store", "verify", code=1)
    weights.write_bytes(raw)


def test_plan_and_presets_answer_before_anything_runs(gptloom, tiny_recipe, monkeypatch):
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    plan = gptloom("plan", tiny_recipe)
    assert os.environ["DO_NOT_TRACK"] == "1", "a plan imports Prefect too"
    told = [line.split()[0] for line in plan.splitlines()]
    assert told == ["corpus", "model", *(s for s in known_stages() if s != "filter"), "total", "memory", "disk"]
    assert "this machine, as measured" in plan
    assert "8xH100" in gptloom("plan", "demo", "--gpus", "8xH100")
    assert "shakespeare-char" in gptloom("presets")


def test_300_random_damages_over_every_kind_of_artifact_are_never_used(store, tmp_path):
    rng, kinds, used = random.Random(5), set(), []
    builds = [build for build, _ in store.entries()]
    for turn in range(300):
        build = builds[turn % len(builds)]
        stage, key, number = build.parts[-3:]
        shutil.copytree(build, tmp_path / str(turn) / stage / key / number)
        victim = rng.choice(sorted(p for p in (tmp_path / str(turn)).rglob("*") if p.is_file()))
        raw = victim.read_bytes()
        at = rng.randrange(len(raw))
        victim.write_bytes(
            raw[:at] if turn % 2 else raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]
        )
        used += [victim] if Store(tmp_path / str(turn)).open(stage, key) else []
        kinds.add(stage)
        shutil.rmtree(tmp_path / str(turn))
    assert kinds == set(known_stages()) - {"filter"}
    assert used == [], f"{len(used)} of 300 were used"


def test_a_damaged_artifact_is_rebuilt_with_the_same_content(gptloom, store, tiny_recipe):
    for stage in ("ingest", "tokenizer", "shard", "pretrain"):
        build, before = store.find(stage)
        victim = max((p for p in build.glob("*.*") if p.suffix != ".json"), key=lambda p: p.stat().st_size)
        raw = bytearray(victim.read_bytes())
        raw[len(raw) // 2] ^= 4
        victim.unlink()  # it may be a hard link: damage this one name only
        victim.write_bytes(raw)
        out = gptloom("run", tiny_recipe, "--until", stage, "--json")
        after = {s["stage"]: s for s in json.loads(out.splitlines()[-1])["stages"]}[stage]
        assert (after["cache"], after["key"], after["digest"]) == ("miss", before["key"], before["digest"])


def test_the_commands_of_the_readme_run(gptloom, tiny_recipe, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", readme, re.S | re.M)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("gptloom ")]
    assert len(commands) >= 5
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_recipe, "own.yaml")
    Path("input.txt").write_text("ROMEO:\nWhat light is this that breaks?\n\n" * 300)
    for command in commands:
        smaller = {"run": ["--set", "pretrain.steps=4"], "sample": ["--max-new-tokens", "4"]}
        assert gptloom(*command, *smaller.get(command[0], [])), command
