"""The evaluate stage over two tiny checkpoints: what it hands to the flow and to the reader."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gpt.config import ModelConfig
from gpt.data import write_shard
from gpt.model import GPT
from gpt.tokenizer import Tokenizer as Loaded
from gpt.tokenizer import reserve
from tasks.artifacts import Artifact, Chats, Checkpoint, Shards, Tokenizer
from tasks.evaluate import Evaluate, evaluate, metrics
from tasks.runtime import Runtime, running

RANKS = {bytes([byte]): byte for byte in range(256)}
CONFIG = Evaluate(tokens=100, questions=2, reply_tokens=4, prompts=("All",), words=("happy",))
HELD = {
    "choices": [{"question": "2 + 2?", "answers": ["3", "4", "5", "6"], "correct": 1}],
    **{"harmful": ["make a bomb"], "harmless": ["make a cake"], "prompts": ["hello"]},
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Two checkpoints of other weights, shards, conversations and a tokenizer of single bytes."""
    tmp_path = tmp_path_factory.mktemp("inputs")
    kinds = {"pretrain": Checkpoint, "sft": Checkpoint, "shard": Shards, "chats": Chats, "tokenizer": Tokenizer}
    found: dict[str, Artifact] = {}
    for name, kind in kinds.items():
        (tmp_path / name).mkdir()
        found[name] = kind(stage=name, key="k", digest=name, path=tmp_path / name)
    tokenizer = Loaded(RANKS, "gpt2", reserve(RANKS))
    tokenizer.save(tmp_path / "tokenizer")
    ids = np.array([tokenizer.eot, *tokenizer.encode("All happy families are alike. " * 9)], np.uint16)
    for split in ("train", "val"):
        write_shard(tmp_path / "shard" / f"{split}-00000.bin", ids)
    (tmp_path / "chats" / "heldout.json").write_text(json.dumps(HELD))
    for seed, name in enumerate(("pretrain", "sft")):
        torch.manual_seed(seed)
        model = GPT(ModelConfig(depth=1, width=16, heads=2, context=32), tokenizer.vocab_size)
        save_file(model.state_dict(), tmp_path / name / "model.safetensors")
        config = {"model": asdict(model.config), "vocab_size": model.vocab_size}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return found


def score(out, found, model="sft", chats="chats"):
    with running("evaluate", Runtime(device="cpu", threads=1)):
        inputs = (found.get(name) for name in ("pretrain", model, "", "", "shard", chats, "", "", "tokenizer"))
        return evaluate.fn(out, CONFIG, *inputs)


@pytest.fixture(scope="module")
def scored(artifacts, tmp_path_factory):
    """The stage's folder and metrics, from one run for all tests: its child takes seconds to start."""
    out = tmp_path_factory.mktemp("out")
    return out, score(out, artifacts)


def test_the_final_models_bits_per_byte_come_first_and_the_others_carry_their_names(scored):
    _, found = scored
    assert next(iter(found)) == "eval/bpb"
    named = {"eval/base_bpb", "eval/xz_bpb", "eval/answer_accuracy", "eval/base_format_rate", "eval/refusal_harmful"}
    assert named <= found.keys()
    assert len(found) <= 30
    assert found["eval/bpb"] != found["eval/base_bpb"]


def test_the_report_has_tables_samples_and_a_figure(scored):
    report = scored[0] / "report"
    names = {"scores.json", "scores.md", "scores.png", "next_tokens.json", "neighbours.json", "samples.txt"}
    assert {path.name for path in report.iterdir()} == names
    assert all(isinstance(json.loads(path.read_text()), list) for path in report.glob("*.json"))
    assert (report / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "| answer_accuracy | constant answer | 1.000 | 0.207 to 1.000 | 1 |" in (report / "scores.md").read_text()


def test_what_counts_as_content_names_no_path(scored):
    out, _ = scored
    content = {path.name: path.read_text() for path in out.iterdir() if path.is_file()}
    assert content.keys() == {"scores.json", "samples.txt"}
    assert not [name for name, text in content.items() if str(out.parent) in text]


def test_a_base_model_alone_is_scored_without_conversations(artifacts, tmp_path):
    found = score(tmp_path, artifacts, model="none", chats="none")
    assert next(iter(found)) == "eval/bpb"
    assert not [name for name in found if "base" in name or "rate" in name]


def test_metrics_take_the_first_word_of_a_name():
    rows = [{"measure": "bpb", "who": who, "value": value} for who, value in (("xz -9", 2.0), ("sft", 1.0))]
    assert metrics(rows, ["base", "sft"]) == {"eval/bpb": 1.0, "eval/xz_bpb": 2.0}


def test_the_process_of_the_flow_does_not_import_torch():
    code = "import sys, tasks.evaluate, tasks.export; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
