"""One stage again: with changed settings, with given inputs, and as it was made for a model."""

import json
from pathlib import Path

import pytest
import yaml

from flows.recipe import load
from flows.rerun import rerun
from flows.run import run
from gpt.errors import UserError
from tasks.store import Store

OFF = ("chats", "sft", "pairs", "prefer", "prompts", "rl")


@pytest.fixture(scope="module")
def made(tiny_recipe, tmp_path_factory):
    """(recipe file of a base model alone, the store that has it, its results by stage)."""
    folder = tmp_path_factory.mktemp("made")
    recipe = yaml.safe_load(Path(tiny_recipe).read_text()) | dict.fromkeys(OFF)
    recipe["pretrain"]["steps"] = 4
    (folder / "base.yaml").write_text(yaml.safe_dump(recipe))
    store = Store(folder / "store")
    return folder / "base.yaml", store, run(load(str(folder / "base.yaml")), store).results


def manifest(session, stage):
    return json.loads((Path(session.results[stage].path) / "artifact.json").read_text())


def test_a_changed_setting_is_another_key_of_that_stage_alone(made):
    recipe, store, before = made
    session = rerun("dedup", str(recipe), store, {"threshold": 0.8, "seed": None}, {}, False)
    assert manifest(session, "dedup")["config"]["threshold"] == 0.8
    assert session.results["dedup"].key != before["dedup"].key
    assert {stage for stage, result in session.results.items() if result.cache == "miss"} == {"dedup"}
    assert f"dedup:{before['dedup'].key}" in session.note
    assert "dedup.threshold=0.8" in session.note


def test_a_model_made_without_some_stages_is_evaluated_without_them(made):
    _, store, before = made
    changes = {"prompts": ["\U0001f600 say"], "tokens": 500}
    session = rerun("evaluate", f"export:{before['export'].key}", store, changes, {}, False)
    told = manifest(session, "evaluate")
    assert {port: one["stage"] for port, one in told["inputs"].items()} == {
        "base": "pretrain", "shards": "shard", "tokenizer": "tokenizer"}  # fmt: skip
    assert told["config"]["prompts"] == ["\U0001f600 say"]
    assert told["config"]["tokens"] == 500


def test_a_given_input_takes_the_place_of_the_recipes(made):
    recipe, store, before = made
    ingest = f"ingest:{before['ingest'].key}"
    session = rerun("tokenizer", str(recipe), store, {}, {"corpus": ingest}, False)
    assert manifest(session, "tokenizer")["inputs"]["corpus"]["digest"] == before["ingest"].digest
    with pytest.raises(UserError, match="is a Corpus, not a Tokenizer"):
        rerun("shard", str(recipe), store, {}, {"tokenizer": ingest}, False)


def test_a_setting_that_is_a_mapping_is_set_as_a_whole(made):
    recipe, store, _ = made
    session = rerun("ingest", str(recipe), store, {"carry": {"meta.url": "string"}}, {}, False)
    assert manifest(session, "ingest")["config"]["carry"] == {"meta.url": "string"}
