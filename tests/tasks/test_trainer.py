"""The stages that train: their settings, their child, and what becomes of it when something ends early."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pytest

from gpt.chat import render
from gpt.config import TrainConfig
from gpt.data import write_shard
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer, reserve
from tasks import trainer
from tasks.artifacts import Chats, Checkpoint, Shards
from tasks.artifacts import Tokenizer as TokenizerArtifact
from tasks.pretrain import Pretrain, pretrain
from tasks.runtime import Runtime, running
from tasks.sft import Sft, sft
from tasks.trainer import launch

RANKS = {bytes([byte]): byte for byte in range(256)}
TINY = {"family": "modern", "depth": 1, "width": 16, "heads": 2, "context": 32}
NAMES = {"stage": "s", "key": "k", "digest": "d"}


@pytest.fixture
def inputs(tmp_path):
    """Shards, Tokenizer and Chats by the byte."""
    tokenizer = Tokenizer(RANKS, "gpt2", reserve(RANKS))
    folders = {name: tmp_path / name for name in ("shards", "tokenizer", "chats")}
    for folder in folders.values():
        folder.mkdir()
    tokenizer.save(folders["tokenizer"])
    ids = np.array(tokenizer.encode("All happy families are alike. " * 40), np.uint16)
    write_shard(folders["shards"] / "train-00000.bin", ids)
    write_shard(folders["shards"] / "val-00000.bin", ids[:200])
    facts = json.dumps({"tokenizer": tokenizer.digest, "vocab_size": tokenizer.vocab_size})
    (folders["shards"] / "shards.json").write_text(facts)
    (folders["chats"] / "chats.json").write_text(facts)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    one, mask = render(tokenizer, turns)
    arrays = {"ids": np.array(one * 4, np.uint32), "mask": np.array(mask * 4, np.uint8)}
    arrays |= {"offsets": np.arange(5) * len(one), "split": np.array([0, 0, 0, 1], np.uint8)}
    for name, array in arrays.items():
        np.save(folders["chats"] / f"{name}.npy", array)
    kinds = {"shards": Shards, "tokenizer": TokenizerArtifact, "chats": Chats}
    return {name: kinds[name](path=folder, **NAMES) for name, folder in folders.items()}


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(trainer, "say", lines.append)
    return lines


def test_every_training_setting_is_a_field_of_both_stages_with_its_sentence():
    for kind in (Pretrain, Sft):
        described = {name: field.description for name, field in kind.model_fields.items()}
        assert [name for name, text in described.items() if not text] == []
        assert {field.name for field in fields(TrainConfig)} <= described.keys()
        made = kind.kinds()[0](**kind().settings())
        assert made == kind.kinds()[0](**{name: getattr(kind(), name) for name in kind().settings()})


def test_a_recipe_reads_as_one_block():
    config = Pretrain.model_validate({"model": {"family": "modern", "depth": 4}, "steps": 400})
    assert (config.steps, config.model.width, config.settings()["steps"]) == (400, 256, 400)
    assert Pretrain.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": -1}, "steps=-1 must be at least 0"),
        ({"batch": 10, "micro_batch": 4}, "batch=10 must be a multiple of micro_batch=4"),
        ({"model": {"width": 100, "heads": 3}}, "model.width=100 must be a multiple of model.heads=3"),
        ({"model": {"layers": 3}}, "layers"),
        ({"step": 3}, "step"),
    ],
)
def test_a_wrong_recipe_is_refused(wrong, words):
    with pytest.raises(ValueError, match="1 validation error for Pretrain") as caught:
        Pretrain.model_validate(wrong)
    assert words in str(caught.value)


def test_pretraining_then_fine_tuning_gives_two_checkpoints(inputs, tmp_path, said):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    with running("pretrain", Runtime(threads=1, device="cpu")):
        config = Pretrain(model=TINY, steps=30, lr=1e-2, eval_every=10)
        metrics = pretrain.fn(tmp_path / "1", config, inputs["shards"], inputs["tokenizer"])
        base = Checkpoint(path=tmp_path / "1", **NAMES)
        tuned = sft.fn(tmp_path / "2", Sft(steps=5), base, inputs["chats"])
    assert list(metrics)[:2] == ["val/bpb", "val/bpb_before"]
    assert metrics["val/bpb"] < metrics["val/bpb_before"] - 1, metrics
    assert {"val/loss", "train/loss", "perf/tokens_per_s"} <= metrics.keys()
    assert tuned["val/bpb"] < tuned["val/bpb_before"], tuned
    for folder in ("1", "2"):
        assert (tmp_path / folder / "report" / "loss.png").read_bytes().startswith(b"\x89PNG"), "a figure of the losses"
    state = json.loads((tmp_path / "2" / "state.json").read_text())
    assert state["parents"][0]["task"] == "pretrain"
    assert any(line.startswith("step 30 of 30: loss ") for line in said), said


@pytest.fixture
def base(inputs, tmp_path, said):
    """A model trained for 30 steps."""
    (tmp_path / "base").mkdir()
    with running("pretrain", Runtime(threads=1, device="cpu")):
        config = Pretrain(model=TINY, steps=30, lr=1e-2)
        metrics = pretrain.fn(tmp_path / "base", config, inputs["shards"], inputs["tokenizer"])
    return tmp_path / "base", metrics


def go_on(inputs, tmp_path, **settings):
    (tmp_path / "out").mkdir()
    with running("pretrain", Runtime(threads=1, device="cpu")):
        config = Pretrain(**{"model": TINY, "steps": 5, **settings})
        return pretrain.fn(tmp_path / "out", config, inputs["shards"], inputs["tokenizer"])


def test_pretraining_goes_on_where_another_ended_with_a_fresh_optimiser(base, inputs, tmp_path):
    folder, before = base
    after = go_on(inputs, tmp_path, init=str(folder))
    assert after["val/bpb_before"] == pytest.approx(before["val/bpb"], abs=1e-6)
    assert before["val/bpb"] < before["val/bpb_before"] - 1
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    assert (state["step"], state["parents"][0]["step"]) == (5, 30)
    first = json.loads((tmp_path / "out" / "logs" / "metrics.jsonl").read_text().splitlines()[-1])[2]
    assert first["train/lr"] < 0.02, "the learning rate comes down from muon's once more"


def test_a_checkpoint_enters_the_key_by_its_content(base, tmp_path):
    folder, _ = base
    shutil.copytree(folder, tmp_path / "moved")
    one, two = (Pretrain(init=str(f)).outside() for f in (folder, tmp_path / "moved"))
    assert one == two
    (tmp_path / "moved" / "state.json").write_text("{}")
    assert Pretrain(init=str(tmp_path / "moved")).outside() != one
    assert Pretrain().outside() == {}


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(base, inputs, tmp_path):
    folder, _ = base
    with pytest.raises(UserError, match=r"has depth=1, pretrain\.model has depth=2; a model goes on as it is"):
        go_on(inputs, tmp_path, init=str(folder), model={**TINY, "depth": 2})
    with pytest.raises(UserError, match=r"is no model that can go on: it has no config\.json; name a pretrain:KEY"):
        Pretrain(init=str(tmp_path)).outside()
    state = folder / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "tokenizer": "1" * 64}))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(
        UserError, match=r"was made with tokenizer 111111111111.*make both with one tokenizer"
    ) as caught:
        go_on(inputs, tmp_path, init=str(folder))
    assert "\n" not in str(caught.value)


@pytest.fixture
def other(inputs, tmp_path):
    """More Shards of the same tokenizer."""
    shutil.copytree(inputs["shards"].path, tmp_path / "other")
    write_shard(tmp_path / "other" / "train-00000.bin", np.arange(200).astype(np.uint16))
    return tmp_path / "other"


def fit(inputs, out, **settings):
    out.mkdir()
    with running("pretrain", Runtime(threads=1, device="cpu")):
        return pretrain.fn(
            out, Pretrain(model=TINY, steps=2, batch=4, **settings), inputs["shards"], inputs["tokenizer"]
        )


def test_other_shards_mixed_in_are_known_by_their_content(inputs, other, tmp_path):
    shutil.copytree(other, tmp_path / "moved")
    here, moved, share = (Pretrain(mix={str(other): 0.3}), Pretrain(mix={str(tmp_path / "moved"): 0.3}), 0.3)
    assert here.outside() == moved.outside()
    assert here.outside() != Pretrain(mix={str(other): 0.4}).outside()
    assert list(here.outside()["mix"].values()) == [share]
    assert str(tmp_path) not in json.dumps(here.outside())
    assert here.refs() == {"mix 1": str(other)}
    with pytest.raises(UserError, match=r"two names in pretrain\.mix have the same content"):
        Pretrain(mix={str(other): 0.3, str(tmp_path / "moved"): 0.3}).outside()
    write_shard(tmp_path / "moved" / "train-00000.bin", np.arange(201).astype(np.uint16))
    assert here.outside() != moved.outside()


@pytest.mark.parametrize("mix", [{"a": 0}, {"a": 1}, {"a": 0.00001}, {"a": -0.1}, {"a": 0.6, "b": 0.4}])
def test_shares_that_cannot_be_kept_are_refused(mix):
    with pytest.raises(ValueError, match=r"pretrain\.mix .*; (try|lower)"):
        Pretrain(mix=mix)


def test_training_on_a_mixture_and_on_packed_documents_is_another_training(inputs, other, tmp_path, said):
    fit(inputs, tmp_path / "plain")
    fit(inputs, tmp_path / "mixed", mix={str(other): 0.5})
    fit(inputs, tmp_path / "packed", packing="bfd")
    weights = {(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "mixed", "packed")}
    assert len(weights) == 3
    assert any(line.startswith("packing: ") and line.endswith("% padding") for line in said)


def test_shards_to_mix_in_that_do_not_fit_are_refused_in_one_line(inputs, other, tmp_path, said):
    with pytest.raises(UserError, match=r"shards\.json; name a shard:KEY"):
        Pretrain(mix={str(tmp_path): 0.5}).outside()
    bins, facts = other / "train-00000.bin", other / "shards.json"
    whole = bins.read_bytes()
    for damage, line in ((b"\1" + whole[1:], "is no whole llm.c shard"), (whole[:-2], "is no whole llm.c shard")):
        bins.write_bytes(damage)
        with pytest.raises(UserError, match=line) as caught:
            fit(inputs, tmp_path / f"out{len(damage)}{damage[0]}", mix={str(other): 0.5})
        assert "\n" not in str(caught.value)
    facts.write_text(json.dumps({"tokenizer": "1" * 64, "vocab_size": 261}))
    with pytest.raises(UserError, match=r"other was made with tokenizer 111111111111, .*; make both") as caught:
        fit(inputs, tmp_path / "another", mix={str(other): 0.5})
    assert "\n" not in str(caught.value)


def test_nothing_outside_logs_tells_of_paths_or_means(inputs, tmp_path, said):
    (tmp_path / "out").mkdir()
    with running("pretrain", Runtime(threads=1, device="cpu")):
        pretrain.fn(tmp_path / "out", Pretrain(model=TINY, steps=1), inputs["shards"], inputs["tokenizer"])
    texts = [path for path in (tmp_path / "out").rglob("*.json") if "logs" not in path.parts]
    assert len(texts) > 3
    assert not [path for path in texts if str(tmp_path) in path.read_text() or '"threads"' in path.read_text()]


def test_what_the_user_can_mend_is_one_line(inputs, tmp_path, said):
    (inputs["shards"].path / "shards.json").write_text(json.dumps({"tokenizer": "0" * 64, "vocab_size": 261}))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="was made with tokenizer 000000000000") as caught:
        pretrain.fn(tmp_path / "out", Pretrain(model=TINY), inputs["shards"], inputs["tokenizer"])
    assert "\n" not in str(caught.value)
    assert not any("error" in line for line in said), said


def test_any_other_failure_shows_the_last_lines(said):
    program = "import sys; [print('line', n) for n in range(50)]; sys.exit(3)"
    with pytest.raises(RuntimeError, match="ended with 3; it said last:\nline 20\n") as caught:
        launch([sys.executable, "-c", program])
    assert str(caught.value).endswith("line 49")
    assert said[0] == "line 0"


def test_a_cancelled_stage_ends_its_child_with_a_checkpoint(inputs, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()

    def cancel(line):
        if line.startswith("step "):
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "say", cancel)
    config = Pretrain(model=TINY, steps=100_000, checkpoint_every=100_000, eval_every=5)
    with running("pretrain", Runtime(threads=1, device="cpu")), pytest.raises(KeyboardInterrupt):
        pretrain.fn(tmp_path / "out", config, inputs["shards"], inputs["tokenizer"])
    assert len(list((tmp_path / "out" / "checkpoints").glob("step-*"))) == 1


def test_a_child_that_does_not_listen_is_killed(monkeypatch, tmp_path):
    program = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
print("deaf", flush=True)
time.sleep(60)
"""
    monkeypatch.setattr(trainer, "say", lambda line: 1 / 0)
    monkeypatch.setattr(trainer, "GRACE_S", 0.3)
    with pytest.raises(ZeroDivisionError):
        launch([sys.executable, "-c", program])
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")
def test_the_childs_life_ends_with_its_parents(tmp_path):
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from tasks.trainer import launch; import sys; launch([sys.executable, '-c', {child!r}])",
        ]
    )
    deadline = time.monotonic() + 60
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    pid = int((tmp_path / "pid").read_text())
    while not gone(pid):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as stat:  # an orphan may wait as a zombie where no init reaps it
        return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
