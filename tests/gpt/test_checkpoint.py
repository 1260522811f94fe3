"""A checkpoint is whole or refused, whatever happened to its bytes."""

import json
import random

import pytest
import torch

from gpt.checkpoint import PAYLOAD, Training, load_model, newest, restore, save
from gpt.config import ModelConfig, PretrainConfig
from gpt.errors import UserError
from gpt.guard import Guard
from gpt.model import GPT
from gpt.optim import optimizers, update

CONFIG = ModelConfig(depth=1, width=16, heads=2, context=8)


def training(step):
    model = GPT(CONFIG, 20)
    chosen = optimizers(model, PretrainConfig(steps=1, batch=1, lr=0.02, adam_lr=0.004))
    return Training(model, chosen, Guard("cpu"), {"step": step, "tokens": 10 * step, "detour": 0, "tokenizer": "abc"})


@pytest.fixture
def trained():
    """A training, with Muon and AdamW, that made one step."""
    torch.manual_seed(0)
    made = training(1)
    made.model(torch.zeros(1, 4, dtype=torch.long)).square().sum().backward()
    update(made.optimizers, made.guard.judge(torch.tensor(2.0), torch.tensor(3.0)))
    return made


def at(step, made):
    """The same, as of another step."""
    made.state["step"] = step
    return made


def test_what_was_saved_comes_back_bit_for_bit(tmp_path, trained):
    torch.manual_seed(5)
    save(tmp_path, at(3, trained), keep=2)
    drawn = torch.rand(4)
    other, found = training(0), newest(tmp_path)
    restore(found, other)
    assert other.state == trained.state
    assert torch.equal(torch.rand(4), drawn), "the random numbers should go on where they were"
    ids, moments = torch.ones(1, 2, dtype=torch.long), other.moments()
    for (name, one), two in zip(trained.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert {name.rpartition("/")[2] for name in moments} >= {"momentum", "step", "exp_avg", "exp_avg_sq", "seen"}
    assert moments.keys() == trained.moments().keys()
    for name, value in trained.moments().items():
        assert torch.equal(value, moments[name]), name
    assert torch.equal(load_model(found)(ids), trained.model.eval()(ids))


def test_the_same_training_state_gives_the_same_bytes(tmp_path, trained):
    for name in ("a", "b"):
        save(tmp_path / name, at(1, trained), keep=2)
    for file in (*PAYLOAD, "manifest.json"):
        a, b = (tmp_path / name / "step-00000001" / file for name in ("a", "b"))
        assert a.read_bytes() == b.read_bytes(), file


def test_only_the_newest_are_kept(tmp_path, trained):
    for step in (1, 2, 10, 11):
        save(tmp_path, at(step, trained), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_of_those_that_a_signal_made_only_the_newest_is_kept_and_no_regular_one_goes_for_it(tmp_path, trained):
    kept = {4: [4], 5: [4, 5], 7: [4, 7], 8: [4, 8], 9: [4, 8, 9], 12: [8, 12], 13: [8, 12, 13]}
    for step, left in kept.items():
        save(tmp_path, at(step, trained), keep=2, every=4)
        assert sorted(int(path.name[5:]) for path in tmp_path.iterdir()) == left
    assert newest(tmp_path).name == "step-00000013"
    assert newest(tmp_path, every=4).name == "step-00000012"
    assert not (tmp_path / "step-00000013").exists(), "a rewind leaves nothing behind that a resume could find"


@pytest.mark.parametrize("file", [*PAYLOAD, "manifest.json"])
def test_any_flipped_bit_or_cut_sends_the_resume_to_the_one_before(tmp_path, trained, file, capsys):
    dice = random.Random(file)
    for _ in range(8):
        for step in {1, 2} - {int(path.name[5:]) for path in tmp_path.iterdir()}:
            save(tmp_path, at(step, trained), keep=2)
        path = tmp_path / "step-00000002" / file
        raw = bytearray(path.read_bytes())
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        path.write_bytes(dice.choice([bytes(raw), bytes(raw[: dice.randrange(len(raw))])]))
        assert newest(tmp_path).name == "step-00000001"
        assert "step-00000002 is damaged" in capsys.readouterr().out


def test_missing_and_added_files_are_damage_too(tmp_path, trained):
    save(tmp_path, at(1, trained), keep=2)
    (tmp_path / "step-00000001" / "more").touch()
    assert newest(tmp_path) is None
    save(tmp_path, at(1, trained), keep=2)
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    assert newest(tmp_path) is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path, trained):
    save(tmp_path, at(1, trained), keep=2)
    trained.state["tokenizer"] = "xyz"
    with pytest.raises(UserError, match="another tokenizer; give this run a new folder"):
        restore(newest(tmp_path), trained)


@pytest.mark.parametrize("content", [None, "{}", json.dumps({"model": {"layers": 3}, "vocab_size": 5})])
def test_a_folder_that_is_no_checkpoint_is_one_clear_line(tmp_path, content):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="is no checkpoint of gptloom"):
        load_model(tmp_path)
