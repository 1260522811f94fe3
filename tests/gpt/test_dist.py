"""Two processes train as one does: the same losses, one format of checkpoints, one end, whatever happens to a rank."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt import dist
from gpt.config import ModelConfig, PretrainConfig, too_large
from gpt.data import Conversations
from gpt.errors import UserError
from gpt.loop import spread
from gpt.model import GPT

DRIVER = """
import atexit, json, os, signal, sys
import torch
import gpt.guard, gpt.report, gpt.train

how, rank = json.loads(sys.argv.pop()), os.environ.get("RANK", "0")
torch.set_default_dtype(getattr(torch, how.get("dtype", "float32")))
report, judge = gpt.report.Report.step, gpt.guard.Guard.judge

def step(self, number, numbers):      # a signal to one rank, once
    report(self, number, numbers)
    if [number, rank] == how.get("at") and not os.path.exists(how["once"]):
        open(how["once"], "w").close()
        os.kill(os.getpid(), how["signal"])
    if how.get("pids"):
        open(os.path.join(how["pids"], rank), "w").write(str(os.getpid()))

def judged(self, loss, norm):         # one step that every guard must leave out
    return judge(self, loss * (torch.nan if int(self.count) == 3 and not int(self.skipped) else 1), norm)

gpt.report.Report.step, gpt.guard.Guard.judge = step, judged
if "RANK" in os.environ:               # which a rank does not wait for
    atexit.register(os.abort)
gpt.train.end(gpt.train.main())
"""
PLAIN = {"steps": 50, "batch": 8, "micro_batch": 2, "precision": "float32", "optimizer": "adamw", "lr": 1e-3}
TORCHRUN = "torch.distributed.run"


@pytest.fixture
def go(tmp_path):
    """`go(run, world, launcher, restarts, ...)`: run the program on so many ranks; the exit code."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}

    def go(run, world=2, launcher="gpt.dist", restarts=0, start=subprocess.run, meet=("--standalone",), **how):
        out = Path(run["out"])
        file, log = out.with_suffix(".json"), out.with_suffix(".log")
        file.write_text(json.dumps(run))
        how["once"] = str(out.with_suffix(f".signal{how.get('at')}"))
        ranks = [f"--nproc-per-node={world}", f"--max-restarts={restarts}", *meet]
        program = [str(driver), str(file), json.dumps(how)]
        command = [sys.executable, *(["-m", launcher, *ranks] if world > 1 else []), *program]
        with log.open("a") as said:
            return start(command, stdout=said, stderr=subprocess.STDOUT, env=environment)

    return go


@pytest.fixture
def same_run(make_run):
    """make_run without dropout, of which each rank draws its own."""

    def make(*args, dropout=0.0, shard="off", **train):
        run = make_run(*args, **PLAIN | train)
        return run | {"shard": shard, "model": {**run["model"], "dropout": dropout}}

    return make


def points(run):
    lines = [json.loads(line) for line in (Path(run["out"]) / "logs" / "metrics.jsonl").read_text().splitlines()]
    return {step: {name: v for name, v in values.items() if name[:4] != "perf"} for _, step, values in lines}


def farthest(one, two):
    """The largest difference of a loss, in training or held out, between two journals that have the same points."""
    one, two = points(one), points(two)
    assert {step: list(values) for step, values in one.items()} == {step: list(values) for step, values in two.items()}
    pairs = [(a[n], two[s][n]) for s, a in one.items() for n in a if n.endswith("/loss")]
    assert len(pairs) > 12
    return max(abs(a - b) for a, b in pairs)


def test_in_float64_one_rank_two_replicas_and_two_shards_have_the_same_losses(same_run, go):
    found = {}
    for name, world, shard in (("one", 1, "off"), ("replicas", 2, "off"), ("shards", 2, "on")):
        found[name] = same_run(out=name, shard=shard)
        done = go(found[name], world, dtype="float64")
        assert done.returncode == 0, Path(found[name]["out"]).with_suffix(".log").read_text()[-2000:]
        assert points(found[name])[50]["train/skipped"] == 1
    for name in ("replicas", "shards"):
        assert farthest(found["one"], found[name]) < 1e-12, name
        whole, other = (load_file(Path(found[n]["out"]) / "model.safetensors") for n in ("one", name))
        assert whole.keys() == other.keys()
        assert max(np.abs(value - other[key]).max() for key, value in whole.items()) < 1e-12
    notes = json.loads((Path(found["shards"]["out"]) / "logs" / "numerics.json").read_text())
    assert (notes["ranks"], notes["sharded"], notes["precision"]) == (2, True, "float64")


@pytest.mark.slow
@pytest.mark.parametrize(("task", "dtype", "limit"), [("pretrain", "float32", 1e-5), ("sft", "float64", 1e-12)])
def test_so_they_have_in_float32_and_where_ranks_have_different_numbers_of_targets(same_run, go, task, dtype, limit):
    found = {}
    for name, world, shard in (("one", 1, "off"), ("replicas", 2, "off"), ("shards", 2, "on")):
        found[name] = same_run(task, out=name, shard=shard)
        assert go(found[name], world, dtype=dtype).returncode == 0
    assert farthest(found["one"], found["replicas"]) < limit
    assert farthest(found["replicas"], found["shards"]) < limit


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["off", "on"])
def test_two_machines_of_two_ranks_have_the_losses_of_one_and_weights_in_halves_twice(same_run, go, shard):
    one, four = same_run(out="one", steps=20), same_run(out="four", steps=20, shard=shard)
    assert go(one, 1, dtype="float64").returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = ("--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={free.getsockname()[1]}")
    machines = [
        go(four, 2, TORCHRUN, 0, subprocess.Popen, (*meet, f"--node-rank={n}"), dtype="float64") for n in (0, 1)
    ]
    assert [machine.wait(200) for machine in machines] == [0, 0], Path(four["out"]).with_suffix(".log").read_text()
    assert farthest(one, four) < 1e-12
    assert json.loads((Path(four["out"]) / "logs" / "numerics.json").read_text())["ranks"] == 4


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_goes_on_with_one_and_with_two_shards(same_run, go):
    whole, run = same_run(out="whole", steps=20), same_run(out="again", steps=20)
    assert go(whole, 1, dtype="float64").returncode == 0
    checkpoints = Path(run["out"]) / "checkpoints"
    for world, at, shard in ((2, [7, "1"], "off"), (1, [11, "0"], "off"), (2, [15, "0"], "on")):
        done = go(run | {"shard": shard}, world, at=at, signal=signal.SIGTERM, dtype="float64")
        assert done.returncode == 143, "one rank was told to stop: all do, at the same step"
        assert max(path.name for path in checkpoints.iterdir()) == f"step-{at[0]:08d}"
    assert go(run, 2, dtype="float64").returncode == 0
    assert farthest(whole, run) < 1e-12
    states = [json.loads((Path(r["out"]) / "state.json").read_text()) for r in (whole, run)]
    assert states[0] == states[1]


@pytest.mark.parametrize("launcher", [TORCHRUN, pytest.param("gpt.dist", marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_comes_back_and_the_same_bits_come_out(same_run, go, launcher):
    whole, run = (same_run(out=name, steps=20, checkpoint_every=4, dropout=0.1) for name in ("whole", "again"))
    assert go(whole).returncode == 0
    assert go(run, 2, launcher, restarts=1, at=[7, "1"], signal=signal.SIGKILL).returncode == 0
    assert Path(run["out"]).with_suffix(".signal[7, '1']").exists()
    assert points(whole) == points(run)
    for name in ("model.safetensors", "optimizer.safetensors", "rng.safetensors"):
        assert (Path(whole["out"]) / name).read_bytes() == (Path(run["out"]) / name).read_bytes(), name
    assert load_file(Path(run["out"]) / "rng.safetensors").keys() == {"cpu", "cpu/1"}


@pytest.mark.slow
def test_without_a_restart_a_killed_rank_is_a_killed_program(same_run, go):
    run = same_run()
    assert go(run, 2, at=[3, "1"], signal=signal.SIGKILL).returncode == 128 + signal.SIGKILL
    assert not (Path(run["out"]) / "state.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")
def test_no_rank_outlives_its_torchrun(same_run, go, tmp_path):
    (tmp_path / "pids").mkdir()
    child = go(same_run(steps=100_000), start=subprocess.Popen, pids=str(tmp_path / "pids"))
    deadline = time.monotonic() + 120
    while len(found := [p.read_text() for p in (tmp_path / "pids").iterdir()]) < 2 or not all(found):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.kill()
    child.wait()
    for pid in map(int, found):
        while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < deadline, "a rank outlived its torchrun"
            time.sleep(0.05)


def test_a_mistake_is_told_and_ends_all_without_a_restart(same_run, go):
    run = same_run(batch=9, micro_batch=3)
    assert go(run, 2, restarts=3).returncode == 2
    said = Path(run["out"]).with_suffix(".log").read_text()
    assert "error: batch=9 is no multiple of 2 ranks; try 10" in said
    assert said.count("error: ") <= 2, "once a rank"


@pytest.mark.parametrize(
    ("task", "train", "shard", "words"),
    [
        ("pretrain", {"optimizer": "muon"}, "on", "muon needs whole matrices.*set optimizer=adamw.*or shard=off"),
        ("prefer", {}, "off", "prefer runs in one process, this is one of 2; start it without torchrun"),
        ("rl", {}, "off", "rl runs in one process"),
        ("pretrain", {"batch": 3}, "off", "batch=3 is no multiple of 2 ranks; try 4"),
    ],
)
def test_what_many_ranks_cannot_do_is_one_line(monkeypatch, task, train, shard, words):
    monkeypatch.setattr(dist, "world", lambda: 2)
    model = GPT(ModelConfig(depth=1, width=16, heads=2, context=8), 20)
    config = PretrainConfig(**{"batch": 4, "steps": 1, "optimizer": "adamw", **train})
    with pytest.raises(UserError, match=words) as caught:
        spread(model, {"task": task, "shard": shard}, config, "cpu")
    assert "\n" not in str(caught.value)


def test_ranks_slice_conversations_as_they_slice_windows(make_run):
    data = Conversations(Path(make_run("sft")["data"]), 32)
    whole = data.batch(1, 3, 4)[0]
    parts = [data.batch(1, 3, 4, rank, 2)[0] for rank in range(2)]
    for part, rows in zip(parts, (whole[:2], whole[2:]), strict=True):
        assert np.array_equal(part, rows[:, : part.shape[1]])
        assert not rows[:, part.shape[1] :].any()


def test_half_of_a_device_is_the_stated_size():
    assert not too_large(2_500_000_000, 80e9)
    assert too_large(2_500_000_001, 80e9)
