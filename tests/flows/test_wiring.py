"""Wrong wiring is a type error, the README draws the DAG that runs, layers point one way."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from flows.recipe import load, presets
from flows.run import known_stages, trace

LEFT_OUT = ("filter", "dedup", "sft", "chats", "prefer", "pairs", "rl", "prompts")
ROOT = Path(__file__).parents[2]
WIRED = """
from flows.pipeline import Recipe
from tasks.dedup import dedup
from tasks.ingest import ingest
from tasks.shard import shard
from tasks.tokenizer import tokenizer

recipe = Recipe()
corpus = ingest(recipe.ingest)
assert recipe.dedup
good = shard(recipe.shard, dedup(recipe.dedup, corpus), tokenizer(recipe.tokenizer, corpus))
"""


def typed(code: str, tmp_path: Path) -> str:
    (tmp_path / "wiring.py").write_text(WIRED + code)
    check = [str(Path(sys.executable).parent / "ty"), "check", "--project", str(ROOT), str(tmp_path / "wiring.py")]
    return subprocess.run(check, capture_output=True, text=True, cwd=ROOT, check=False).stdout


def test_right_wiring_passes_the_type_check(tmp_path):
    assert "All checks passed" in typed("", tmp_path)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("dedup(recipe.dedup, good)", "Expected `Corpus`, found `Shards`"),
        ("dedup(recipe.ingest, corpus)", "Expected `Dedup`, found `Ingest`"),
        ("shard(recipe.shard, corpus, corpus)", "Expected `Tokenizer`, found `Corpus`"),
        ("shard(recipe.shard, corpus)", "No argument provided for required parameter `tokenizer`"),
    ],
)
def test_wrong_wiring_is_a_type_error(call, words, tmp_path):
    found = typed(f"bad = {call}\n", tmp_path)
    assert words in found, found


def test_the_readme_draws_the_dag_that_runs():
    drawing = re.search(r"```mermaid\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert drawing
    chains = [[name.strip() for name in line.split("-->")] for line in drawing[1].splitlines()[1:]]
    drawn = {pair for chain in chains for pair in pairwise(chain)}
    wired = {(above, name) for name, inputs in trace(load("demo")).edges.items() for above in inputs}
    assert wired == drawn, f"only wired: {wired - drawn}; only drawn: {drawn - wired}"


def test_every_stage_and_preset_is_in_the_readme_and_loads():
    readme = (ROOT / "README.md").read_text()
    assert all(f"| {stage} |" in readme for stage in known_stages())
    assert {"demo", "shakespeare-char"} <= presets().keys()
    for name in presets():
        load(name)


def test_a_stage_set_to_null_is_absent_and_its_input_passes_on():
    dag = trace(load("demo", [f"{name}=null" for name in LEFT_OUT]))
    assert dag.edges["tokenizer"] == ["ingest"]
    assert dag.edges["export"] == ["pretrain", "evaluate", "tokenizer"]
    assert set(LEFT_OUT).isdisjoint(dag.edges)
