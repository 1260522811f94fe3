"""A release counts only if transformers loads the same model; each way to be another one fails the stage."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt.config import ModelConfig
from gpt.model import GPT
from gpt.tokenizer import Tokenizer as Loaded
from gpt.tokenizer import reserve
from tasks import export as module
from tasks.artifacts import Checkpoint, Scores, Tokenizer
from tasks.export import Export, export

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257, b" the": 258, b"12": 259}
SMALL: dict[str, Any] = {"depth": 2, "width": 32, "heads": 4, "context": 48}


def make(folder, config, pattern="gpt2", stage="sft"):
    """A Checkpoint, Scores and a Tokenizer; weights far from their initialisation, so that logits spread."""
    tokenizer = Loaded(RANKS, pattern, reserve(RANKS))
    for name in ("checkpoint/tokenizer", "scores/report"):
        (folder / name).mkdir(parents=True)
    tokenizer.save(folder / "checkpoint" / "tokenizer")
    torch.manual_seed(0)
    model = GPT(config, tokenizer.vocab_size)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    save_file(model.state_dict(), folder / "checkpoint" / "model.safetensors")
    saved = {"model": asdict(config), "vocab_size": model.vocab_size}
    (folder / "checkpoint" / "config.json").write_text(json.dumps(saved))
    (folder / "scores" / "report" / "scores.md").write_text("| measure | value |\n|---|---|\n| bpb | 1.234 |\n")
    checkpoint = Checkpoint(stage=stage, key="1a2b", digest="c0ffee", path=folder / "checkpoint")
    scores = Scores(stage="evaluate", key="k", digest="5c03e5", path=folder / "scores")
    return checkpoint, scores, Tokenizer(stage="tokenizer", key="k", digest="70ce", path=folder)


def release(out, artifacts):
    out.mkdir()
    return export.fn(out, Export(), *artifacts)


@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        (ModelConfig(family="gpt2", **SMALL), "gpt2"),
        (ModelConfig(kv_heads=2, tied=False, **SMALL), "gpt2"),
        (ModelConfig(**SMALL), "cl100k_base"),
        (ModelConfig(**SMALL), "o200k_base"),
        (ModelConfig(**SMALL), "characters"),
    ],
    ids=["gpt2", "modern, grouped, untied", "cl100k's split", "o200k's split", "characters"],
)
def test_a_release_is_the_same_model_to_transformers(config, pattern, tmp_path):
    found = release(tmp_path / "out", make(tmp_path, config, pattern))
    assert next(iter(found)) == "eval/max_logit_difference"
    assert found["eval/max_logit_difference"] <= 1e-4
    assert found["data/parameters"] == sum(p.numel() for p in GPT(config, len(RANKS) + 5).parameters())
    assert found["data/bytes"] == sum(p.stat().st_size for p in (tmp_path / "out").iterdir() if p.is_file())


@pytest.mark.parametrize("stage", ["sft", "pretrain"])
def test_the_cards_code_runs_and_the_card_names_what_the_model_was_made_from(stage, tmp_path, monkeypatch, capsys):
    release(tmp_path / "out", make(tmp_path, ModelConfig(**SMALL), stage=stage))
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("library_name: transformers", f"`{stage}:1a2b`", "`c0ffee`", "`5c03e5`", "`70ce`", "| bpb | 1.234 |"):
        assert part in card
    monkeypatch.chdir(tmp_path / "out")
    exec(card.split("```python\n")[1].split("```")[0], {})
    start = "<|endoftext|><|user|>What is 2 + 2?<|end|><|assistant|>" if stage == "sft" else "The"
    assert capsys.readouterr().out.startswith(start)


def weights(out):
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 0.1
    save_file(tensors, out / "model.safetensors", {"format": "pt"})


def missing(out):
    tensors = load_file(out / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, out / "model.safetensors", {"format": "pt"})


def rotation(out):
    text = (out / "config.json").read_text()
    (out / "config.json").write_text(text.replace("10000.0", "20000.0"))


def merges(out):
    saved = json.loads((out / "tokenizer.json").read_text())
    saved["model"]["merges"] = saved["model"]["merges"][:-1]
    (out / "tokenizer.json").write_text(json.dumps(saved))


def template(out):
    text = (out / "chat_template.jinja").read_text()
    (out / "chat_template.jinja").write_text(text.replace("'<|assistant|>'", "'<|user|>'"))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (weights, "logits|greedy"),
        (missing, "tensors"),
        (rotation, "logits|greedy"),
        (merges, "ids of"),
        (template, "ids of a chat"),
    ],
)
def test_a_release_that_is_another_model_fails_the_stage(damage, what, tmp_path, monkeypatch):
    from gpt import hf

    whole = hf.write_release
    monkeypatch.setattr(hf, "write_release", lambda out, checkpoint: (whole(out, checkpoint), damage(out)))
    with pytest.raises(RuntimeError, match=what):
        release(tmp_path / "out", make(tmp_path, ModelConfig(**SMALL)))


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    artifacts = make(tmp_path, ModelConfig(**SMALL))
    for name in ("one", "two"):
        release(tmp_path / name, artifacts)
    files = ([p for p in (tmp_path / name).rglob("*") if p.is_file()] for name in ("one", "two"))
    one, two = ({path.name: path.read_bytes() for path in each} for each in files)
    assert one == two


def test_a_context_shorter_than_the_prompts_is_checked_within_it(tmp_path):
    found = release(tmp_path / "out", make(tmp_path, replace(ModelConfig(family="gpt2", **SMALL), context=4)))
    assert found["eval/max_logit_difference"] <= module.TOLERANCE
