"""The stages that train on several processes: how many there are, and what becomes of them when one ends early."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt.data import write_shard
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer, reserve
from tasks import trainer
from tasks.artifacts import Shards
from tasks.artifacts import Tokenizer as TokenizerArtifact
from tasks.pretrain import Pretrain, pretrain
from tasks.runtime import Runtime, running
from tasks.trainer import ranks

RANKS = {bytes([byte]): byte for byte in range(256)}
NAMES = {"stage": "s", "key": "k", "digest": "d"}
SETTINGS = {"model": {"depth": 1, "width": 16, "heads": 2, "context": 32}, "batch": 4, "eval_every": 5}


@pytest.fixture
def fit(tmp_path):
    """`fit(steps)`: the stage on two processes, in tmp_path / "out"."""
    tokenizer = Tokenizer(RANKS, "gpt2", reserve(RANKS))
    for name in ("shards", "tokenizer", "out"):
        (tmp_path / name).mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    for split in ("train", "val"):
        ids = np.array(tokenizer.encode("All happy families are alike. " * 40), np.uint16)
        write_shard(tmp_path / "shards" / f"{split}-00000.bin", ids)
    facts = json.dumps({"tokenizer": tokenizer.digest, "vocab_size": tokenizer.vocab_size})
    (tmp_path / "shards" / "shards.json").write_text(facts)
    inputs = Shards(path=tmp_path / "shards", **NAMES), TokenizerArtifact(path=tmp_path / "tokenizer", **NAMES)

    def fit(steps):
        config = Pretrain(**SETTINGS, steps=steps, checkpoint_every=100_000)
        with running("pretrain", Runtime(threads=2, processes=2, device="cpu")):
            return pretrain.fn(tmp_path / "out", config, *inputs)

    return fit


@pytest.mark.slow
def test_a_cancelled_stage_of_two_processes_leaves_a_checkpoint(fit, tmp_path, monkeypatch):
    said = []

    def cancel(line):
        said.append(line)
        if line.startswith("step "):
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "say", cancel)
    with pytest.raises(KeyboardInterrupt):
        fit(100_000)
    assert any("2 ranks on cpu (1 threads)" in line for line in said), said
    assert len(list((tmp_path / "out" / "checkpoints").glob("step-*"))) == 1


def test_torchrun_told_to_stop_is_one_line_and_what_goes_on_by_hand_is_found_by_a_rerun(fit, tmp_path, monkeypatch):
    said = []

    def end(line):
        said.append(line)
        if line.startswith("step ") and len(said) < 4:
            found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "gpt.train"], capture_output=True, text=True)
            os.kill(int(found.stdout.split()[0]), signal.SIGTERM)

    monkeypatch.setattr(trainer, "say", end)
    with pytest.raises(UserError, match="told to stop; rerun, and it goes on where it was"):
        fit(100)
    steps = [int(path.name[5:]) for path in (tmp_path / "out" / "checkpoints").iterdir()]
    assert 0 < steps[0] < 100
    by_hand = [sys.executable, "-m", "gpt.train", str(tmp_path / "out" / "logs" / "run.json")]
    told = subprocess.run(by_hand, capture_output=True, text=True, check=True).stdout
    assert f", from step {steps[0]} to 100" in told
    said.clear()
    assert "val/bpb" in fit(100)
    assert not any(line.startswith("step ") for line in said), said
    assert (tmp_path / "out" / "state.json").exists()


def test_a_process_for_each_gpu_that_may_be_seen(monkeypatch):
    monkeypatch.setattr(trainer, "say", lambda line: None)
    for seen, asked, task, expected in (
        ("0,1,2,3", 0, "pretrain", 4),
        ("", 0, "pretrain", 1),
        ("0,1", 3, "sft", 3),
        ("0,1", 3, "prefer", 1),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
        with running(task, Runtime(processes=asked)):
            assert ranks(task) == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(["nvidia0", "nvidia1"]))
    with running("pretrain", Runtime()):
        assert ranks("pretrain") == 2
    with running("pretrain", Runtime(device="cpu")):
        assert ranks("pretrain") == 1
