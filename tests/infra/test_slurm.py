"""train.sbatch as Slurm runs it, with `scontrol` replaced by a note of its arguments."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def slurm(tmp_path):
    """The environment of a job; what `scontrol` was told is in `told`."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (tools / "scontrol").chmod(0o755)
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SLURM_JOB_ID": "42", "SLURM_SUBMIT_DIR": str(ROOT)}


def sbatch(slurm, *words):
    """The script as its own session, as a batch step is."""
    command = ["bash", str(ROOT / "infra" / "slurm" / "train.sbatch"), *map(str, words)]
    return subprocess.Popen(command, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def steps(store):
    """The steps of the checkpoints that pretraining has made so far."""
    return sorted(json.loads(f.read_text())["step"] for f in store.glob("pretrain/*/work/checkpoints/*/state.json"))


def test_a_warned_run_saves_a_checkpoint_and_requeues_and_the_next_goes_on_there(slurm, tiny_recipe, tmp_path):
    words = [
        tiny_recipe,
        "--until",
        "pretrain",
        "--set",
        "pretrain.steps=3000",
        "--set",
        "pretrain.checkpoint_every=3000",
    ]
    job = sbatch(slurm, *words)
    store = Path(os.environ["GPTLOOM_STORE"])
    while not list(store.glob("pretrain/*/work/logs/metrics.jsonl")):
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.1)
    time.sleep(2)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=60)
    assert (tmp_path / "told").read_text() == "requeue 42\n", said
    (saved,) = steps(store)
    assert 0 < saved < 3000, "no checkpoint was due: this one is the warning's"
    again = sbatch(slurm, *words)
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert min(int(step) for step in re.findall(r"step (\d+) of 3000", said)) > saved, said
    assert (tmp_path / "told").read_text() == "requeue 42\n", "a run that ends by itself is not put back"


def test_a_run_that_fails_by_itself_is_not_put_back(slurm, tmp_path):
    job = sbatch(slurm, "no-such-recipe")
    said, _ = job.communicate(timeout=60)
    assert (job.returncode, (tmp_path / "told").exists()) == (2, False), said
