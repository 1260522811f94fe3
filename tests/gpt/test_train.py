"""The training program end to end: it learns, resumes to the same bits after any kill, and says what is wrong."""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt import data
from gpt.checkpoint import load_model, newest
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError
from gpt.evaluate import HeldOut
from gpt.loop import train
from gpt.model import GPT
from gpt.objectives import NextToken, carried

RUNNER = """
import json, os, sys
import torch._dynamo                  # what the first optimiser step imports
import gpt.failpoints, gpt.loop, gpt.train

for line in sys.stdin:                # imports are made once; each run is a fork that may die as it likes
    file, kill_at = json.loads(line)
    child = os.fork()
    if child == 0:
        gpt.failpoints.KILL_AT, sys.argv[1:] = kill_at, [file]
        os._exit(gpt.train.main())
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """`runner(run, kill_at, after, number)`: the program in a process of its own, killed there or so; its exit code."""
    log = (tmp_path_factory.mktemp("runner") / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    )

    def go(run, kill_at=None, after=None, number=signal.SIGKILL, delay_s=None):
        file = Path(run["out"]).with_suffix(".json")
        file.write_text(json.dumps(run))
        server.stdin.write(json.dumps([str(file), kill_at]) + "\n")
        server.stdin.flush()
        return finish(int(read()), Path(run["out"]), after, number, delay_s)

    def read():
        while not (line := server.stdout.readline()).strip().lstrip("-").isdigit():
            assert line, "the runner died"
        return line

    def finish(child, out, after, number, delay_s):
        if after is not None:
            wait_for_step(out / "logs" / "metrics.jsonl", after)
            os.kill(child, number)
        if delay_s is not None:
            time.sleep(delay_s)
            with contextlib.suppress(ProcessLookupError):  # it may have come to its end
                os.kill(child, signal.SIGSTOP)  # so that it is known which step it was in
                go.journalled = max(journal(out), default=0)
                os.kill(child, number)
                os.kill(child, signal.SIGCONT)
        return int(read())

    yield go
    server.kill()
    server.wait()


def wait_for_step(journal, step):
    deadline = time.monotonic() + 30
    while not (journal.exists() and f", {step}, " in journal.read_text()):
        assert time.monotonic() < deadline, f"step {step} was never journalled"
        time.sleep(0.001)


def journal(out):
    """Step to values, floats as hex, without times and speeds; a line that is still being written is left out."""
    file = Path(out) / "logs" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return {step: {k: float(v).hex() for k, v in values.items() if k[:4] != "perf"} for _, step, values in whole}


def payload(out):
    """Digest of every file of a finished Checkpoint; the journal without its times and speeds."""
    files = [path for path in sorted(Path(out).rglob("*")) if path.is_file() and "logs" not in path.parts]
    digests = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return digests, [
        (step, {k: v for k, v in values.items() if k != "train/damaged_checkpoints"})
        for step, values in journal(out).items()
    ]


def test_it_learns_and_leaves_a_whole_checkpoint(make_run, capsys):
    run = make_run(steps=60, lr=1e-2, eval_every=30, sample_every=30)
    assert train(run, Event())
    out = Path(run["out"])
    digests, losses = payload(out)
    top = ["config.json", "model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"]
    assert [name for name in digests if "/" not in name] == top
    assert "tokenizer/tokenizer.json" in digests
    assert not (out / "checkpoints").exists()
    held_out = [float.fromhex(values["val/bpb"]) for _, values in losses if "val/bpb" in values]
    assert held_out[0] == pytest.approx(8, abs=0.2), "untrained, a byte costs log2(261) = 8.03 bits"
    assert held_out[-1] < 5, f"bits per byte {held_out}"
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("parameters, 4 x 32 tokens a step, on cpu (1 threads), from step 0 to 60")
    assert [line[:17] for line in said if line.startswith("sample")] == ["sample at step 30", "sample at step 60"]


def test_a_finished_run_is_left_alone(make_run):
    run = make_run(steps=2)
    assert train(run, Event())
    before = payload(run["out"])
    assert train(run, Event())
    assert payload(run["out"]) == before


@pytest.mark.parametrize("task", ["pretrain", "sft", "prefer", "rl"])
def test_after_a_kill_at_every_failpoint_the_same_bits_come_out(make_run, runner, task):
    settings = {"group": 4, "max_new_tokens": 6, "form": 0.5, "beta": 0.1} if task == "rl" else {}
    run = make_run(task, out="whole", **settings)
    if task != "pretrain":
        base = make_run(out="base", steps=3)
        assert runner(base) == 0
        run = make_run(task, out="whole", init=base["out"], **settings)
    assert runner(run) == 0
    expected = payload(run["out"])
    points = ["begin", "files", "before rename", "renamed"]
    places = [f"checkpoint: {point}:{nth}" for nth in (1, 3) for point in points] + [
        "publish: file:1",
        "publish: file:5",
    ]
    for place in places:
        again = make_run(task, out=place.replace(": ", "-"), init=run["init"], **settings)
        assert runner(again, kill_at=place) == -signal.SIGKILL, place
        assert runner(again) == 0, place
        assert payload(again["out"]) == expected, place


def test_after_signals_at_random_steps_the_same_bits_come_out(make_run, runner):
    slow = {"steps": 60, "checkpoint_every": 7, "eval_every": 20}
    run = make_run(out="whole", **slow)
    assert runner(run) == 0
    expected, dice, codes = payload(run["out"]), random.Random(0), set()
    for n in range(6):
        again, number = make_run(out=f"again{n}", **slow), (signal.SIGTERM, signal.SIGKILL)[n % 2]
        for step in sorted(dice.sample(range(1, 55), 2)):
            codes.add(runner(again, after=step, number=number))
        assert runner(again) == 0
        assert payload(again["out"]) == expected
    assert codes == {143, -9}, f"exit codes {codes}"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_after_20_kills_and_20_signals_at_any_time_the_same_bits_come_out(make_run, runner, precision):
    how = {"steps": 250, "checkpoint_every": 9, "eval_every": 40, "sample_every": 70, "optimizer": "muon"}
    run = make_run(out="whole", precision=precision, **how)  # the model has dropout
    assert runner(run) == 0
    expected, steps = payload(run["out"]), journal(run["out"])
    dice, left, codes, again = random.Random(0), [signal.SIGKILL, signal.SIGTERM] * 20, [], None
    dice.shuffle(left)
    while left:
        if again is None:
            again = make_run(out=f"again{len(left)}", precision=precision, **how)
        codes.append(runner(again, number=left[-1], delay_s=dice.uniform(0, 1.5)))
        for step, values in journal(again["out"]).items():
            assert values == steps[step], f"step {step} after {len(codes)} runs"
        if codes[-1] == 143:
            newest = max(Path(again["out"]).glob("checkpoints/step-*"), default=None)  # none before the first step
            assert not newest or int(newest.name[5:]) <= runner.journalled + 1, "one step more than there were, at most"
        if codes[-1] == 0:
            assert payload(again["out"]) == expected
            again = None
        else:
            left.pop()
    assert again is None or runner(again) == 0
    assert again is None or payload(again["out"]) == expected
    assert {143, -9} <= set(codes) <= {143, -9, -15, 0}, f"exit codes {codes}"  # -15: before it could take a signal
    assert codes.count(-15) <= 5, f"exit codes {codes}"


SAVER = """
import os, signal, sys, time
from pathlib import Path
import torch
from gpt.checkpoint import Training, save
from gpt.config import ModelConfig
from gpt.guard import Guard
from gpt.model import GPT

root, model = Path(sys.argv[1]), GPT(ModelConfig(depth=2, width=64, heads=2, context=8), 5000)
made = Training(model, [], Guard("cpu"), {"step": 0, "tokens": 0, "detour": 0})
for line in sys.stdin:                # a fork that saves step after step and tells each; it has some time
    first, life_s = line.split()
    told, tell = os.pipe()
    if (child := os.fork()) == 0:
        for step in range(int(first), 1000):
            torch.nn.init.constant_(model.wte.weight, step)
            made.state["step"] = step
            save(root, made, keep=2)
            os.write(tell, step.to_bytes(2, "little"))
    time.sleep(float(life_s))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(tell)
    with open(told, "rb") as done:
        print(int.from_bytes(done.read()[-2:], "little"), flush=True)
"""


@pytest.mark.slow
def test_100_kills_while_saving_never_cost_the_checkpoint_before(tmp_path):
    command = [sys.executable, "-c", SAVER, str(tmp_path)]
    dice, done, there = random.Random(0), 0, set()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as saver:
        for _ in range(100):
            print(done + 1, dice.uniform(0.002, 0.1), file=saver.stdin, flush=True)
            done = max(done, int(saver.stdout.readline()))
            before, found = {path.name for path in tmp_path.glob("step-*")}, newest(tmp_path)
            step = int(found.name[5:]) if found else 0
            assert step in (done, done + 1), f"step {done} had been saved, step {step} was found"
            assert before == {path.name for path in tmp_path.glob("step-*")}, "nothing that has a name is damaged"
            assert not step or load_model(found).wte.weight.eq(step).all()
            done, there = step, there | {step}
        saver.stdin.close()
    assert len(there) > 10, f"steps {there}"


def test_the_newest_checkpoint_damaged_the_one_before_gives_the_same_bits(make_run, runner):
    run = make_run(out="whole")
    assert runner(run) == 0
    again = make_run(out="again")
    assert runner(again, kill_at="publish: file:1") == -9
    weights = Path(again["out"]) / "checkpoints" / "step-00000012" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert runner(again) == 0
    assert payload(again["out"]) == payload(run["out"])


def test_a_signal_before_the_first_step_ends_the_program_at_once(make_run, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(make_run()))
    child = subprocess.Popen([sys.executable, "-m", "gpt.train", str(tmp_path / "run.json")], stdout=subprocess.PIPE)
    while not (tmp_path / "lock").exists():
        time.sleep(0.005)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 143
    assert not (tmp_path / "out" / "checkpoints").exists(), "it did not wait for a step"


@pytest.mark.parametrize("task", ["pretrain", "sft", "prefer", "rl"])
def test_told_to_stop_in_the_midst_of_a_step_that_step_has_not_happened(make_run, monkeypatch, task):
    how = {"micro_batch": 1, "checkpoint_every": 100}  # the model has dropout: random numbers are drawn row by row
    how |= {"group": 8, "max_new_tokens": 6, "form": 0.5} if task == "rl" else {}
    base = make_run(out="base", steps=3)
    assert train(base, Event())
    init = {} if task == "pretrain" else {"init": base["out"]}
    whole, again = (make_run(task, out=out, **init, **how) for out in ("whole", "again"))
    assert train(whole, Event())
    stream, stop, seen = GPT.stream, Event(), []

    def counted(model, *args):
        seen.append(model.training)
        made = stream(model, *args)
        if seen.count(True) == 6:  # of the second step, where all four rows teach
            stop.set()
        return made

    monkeypatch.setattr(GPT, "stream", counted)
    assert not train(again, stop)
    assert seen.count(True) <= 7, "the next pass was not begun"
    monkeypatch.undo()
    left = Path(again["out"]) / "checkpoints"
    assert len(list(left.glob("step-*"))) == 1
    assert train(again, Event())
    assert payload(again["out"]) == payload(whole["out"])


@pytest.mark.parametrize("packing", ["stream", "bfd"])
def test_a_mixture_stopped_at_every_other_step_ends_with_the_same_bits(make_run, tmp_path, packing):
    shutil.copytree(tmp_path / "shards", tmp_path / "other")
    how = {"mix": [[str(tmp_path / "other"), 0.4]], "packing": packing}
    whole, again = make_run(out="whole") | how, make_run(out="again") | how
    assert train(whole, Event())
    for stop in (Event() for _ in range(5)):
        assert not train(again, stop, begun=stop.set)
    with pytest.raises(UserError, match="is from a run with another data"):
        train(again | {"mix": [[str(tmp_path / "other"), 0.3]]}, Event())
    assert train(again, Event())
    assert payload(again["out"]) == payload(whole["out"])


def test_evaluation_and_samples_have_no_part_in_training(make_run):
    one, two = make_run(out="a", eval_every=1, sample_every=1), make_run(out="b", eval_every=50, sample_every=0)
    assert train(one, Event())
    assert train(two, Event())
    weights = [(Path(run["out"]) / "model.safetensors").read_bytes() for run in (one, two)]
    assert weights[0] == weights[1]


def test_accumulation_is_the_gradient_of_the_whole_batch():
    torch.manual_seed(0)
    model = GPT(ModelConfig(depth=2, width=32, heads=2, context=16), 30)
    x_BT, y_BT = torch.randint(30, (6, 16)), torch.randint(30, (6, 16))
    y_BT[torch.rand(6, 16) < 0.4] = data.IGNORED  # so that micro-batches have different numbers of targets
    y_BT[1:3] = data.IGNORED
    found = {}
    for rows in (6, 2, 1):
        model.zero_grad()
        objective = NextToken.__new__(NextToken)
        objective.config, objective.model, objective.waited_s = TrainConfig(batch=6, micro_batch=rows), model, 0.0
        objective.data = SimpleNamespace(batch=lambda *_: (x_BT.numpy(), y_BT.numpy()))
        found[rows] = (objective.backward(0)[0], [p.grad.clone() for p in model.parameters()])
    mean = torch.nn.functional.cross_entropy(model(x_BT).flatten(0, 1), y_BT.flatten())
    for rows, (loss, gradients) in found.items():
        difference = max((a - b).abs().max().item() for a, b in zip(gradients, found[6][1], strict=True))
        assert difference < 1e-6, f"{rows} rows at a time: gradients differ by {difference}"
        assert loss.item() == pytest.approx(mean.item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_tokens_arrive_as_int64_and_a_gpu_is_sent_the_bytes_they_lie_in(dtype, monkeypatch):
    part = np.array([[1, 2, 60_000], [3, 4, 5]], dtype)[:, 1:]
    assert carried(part, torch.device("cpu")).equal(torch.tensor([[2, 60_000], [4, 5]]))
    sent = []  # "meta" stands in for a GPU: what counts is what is asked of torch, and in which order
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: sent.append(("pinned", tensor.dtype)) or tensor)
    move = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, *_, **how: sent.append((how, tensor.dtype)) or move(tensor, "meta")
    )
    arrived = carried(part, torch.device("cuda"))
    small = torch.from_numpy(part).dtype
    assert sent == [("pinned", small), ({"non_blocking": True}, small)]
    assert (arrived.dtype, arrived.shape) == (torch.int64, (2, 2))


def test_bits_per_byte_count_text_only():
    model = GPT(ModelConfig(depth=1, width=16, heads=2, context=8), 4)
    torch.nn.init.zeros_(model.wte.weight)  # every token costs log(4), two bits
    held_out = np.zeros((3, 5), np.int64), np.array([[0, 1, 2, 3, data.IGNORED]] * 3)
    loss, bpb = HeldOut(held_out, np.array([0, 1, 2, 5])).measure(model, 2, "row")
    assert loss == ("loss", pytest.approx(np.log(4)), 3 * 4)
    assert bpb == ("bpb", pytest.approx(3 * 2 / 8), 3 * 8), "three tokens of 1 + 2 + 5 bytes; token 0 is special"


def test_data_of_another_tokenizer_is_refused(make_run, tmp_path):
    run = make_run()
    (tmp_path / "shards" / "shards.json").write_text(json.dumps({"tokenizer": "0123456789abcdef"}))
    with pytest.raises(UserError, match="was made with tokenizer 0123456789ab, "):
        train(run, Event())


def test_an_init_of_another_tokenizer_is_refused(make_run, tmp_path):
    base = make_run(out="base", steps=1)
    assert train(base, Event())
    state = tmp_path / "base" / "state.json"
    state.write_text(state.read_text().replace(json.loads(state.read_text())["tokenizer"], "f" * 64))
    with pytest.raises(UserError, match="base was made with tokenizer ffffffffffff"):
        train(make_run("sft", init=base["out"]), Event())


def test_a_checkpoint_knows_its_parents(make_run):
    base = make_run(out="base", steps=2)
    assert train(base, Event())
    tuned = make_run("sft", init=base["out"], steps=1)
    assert train(tuned, Event())
    state = json.loads((Path(tuned["out"]) / "state.json").read_text())
    assert state["parents"] == [{"task": "pretrain", "step": 2, "tokens": 2 * 4 * 32}]


def test_a_loss_that_is_no_number_ends_the_run_before_a_checkpoint(make_run, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(make_run(lr=1e30, adam_lr=1e30, warmup_steps=0, clip=0)))
    ran = subprocess.run(
        [sys.executable, "-m", "gpt.train", str(tmp_path / "run.json")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2, ran
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stderr.startswith("error: 8 steps in a row up to step 12 had a loss or gradient that is no"), ran.stderr
    assert "lower lr=1e+30" in ran.stderr
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_full_disk_is_one_line_and_a_rerun_with_space_ends_the_same(make_run, runner, tmp_path):
    run = make_run(out="whole")
    assert runner(run) == 0
    again = make_run(out="again")
    file = tmp_path / "again.json"
    file.write_text(json.dumps(again))
    command = f"ulimit -f 40; exec {sys.executable} -m gpt.train {file}"  # 40 blocks: less than the optimiser's file
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran
    assert ran.stderr.startswith("error: ")
    assert "File too large" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert runner(again) == 0
    assert payload(again["out"]) == payload(run["out"])


def test_a_resume_under_other_numerics_says_so(make_run, capsys):
    stop, run = Event(), make_run()
    assert not train(run, stop, begun=stop.set)
    try:
        assert train({**run, "threads": 2}, Event())
    finally:
        torch.set_num_threads(1)
    assert "resume under other numerics: not bit-exact" in capsys.readouterr().out


def test_a_second_trainer_waits_for_the_first(make_run, runner, tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(1.0, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        start = time.monotonic()
        assert runner(make_run(steps=1)) == 0
        assert time.monotonic() - start > 0.9
