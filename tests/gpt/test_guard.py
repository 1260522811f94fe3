"""What goes wrong in a training is left out, said, and survived; a resume right after it ends with the same bits."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from gpt import checkpoint
from gpt.errors import UserError
from gpt.guard import IN_A_ROW, SIGMAS, WINDOW, Guard
from gpt.loop import train
from gpt.objectives import NextToken


def points(run):
    """Step to values of the journal, without times and speeds; floats as hex."""
    lines = [json.loads(line) for line in (Path(run["out"]) / "logs" / "metrics.jsonl").read_text().splitlines()]
    return {step: {k: float(v).hex() for k, v in values.items() if k[:4] != "perf"} for _, step, values in lines}


def told(run, name):
    """Step to one value of the journal, where there is one."""
    return {step: float.fromhex(values[name]) for step, values in points(run).items() if name in values}


def weights(run):
    """Digest of all files of the finished Checkpoint that a resume decides."""
    files = ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json")
    return {name: hashlib.sha256((Path(run["out"]) / name).read_bytes()).hexdigest() for name in files}


@pytest.fixture
def faults(monkeypatch):
    """`faults(at, kind)`: the batches of these numbers (from 0) do harm, a `nan` or a loss that jumps; `stop` is set
    when batch `stop_at` has been learned from, once."""
    plan, learn = SimpleNamespace(at={}, stop=Event(), stop_at=None), NextToken.backward

    def backward(objective, number):
        found = harmed(objective, number)
        if number == plan.stop_at:
            plan.stop.set()
            plan.stop_at = None
        return found

    def harmed(objective, number):
        if plan.at.get(number) == "jump":  # a poisoned batch: what should come next was shuffled
            clean, dice = objective.data.batch, torch.Generator().manual_seed(number)
            objective.data.batch = lambda *a: shuffled(clean(*a), dice)
            try:
                return learn(objective, number)
            finally:
                del objective.data.batch
        found = learn(objective, number)
        if plan.at.get(number) == "nan":
            next(objective.model.parameters()).grad[0, 0] = math.nan
        return found

    def shuffled(batch, dice):
        x, y = (batch[0][:, :-1], batch[0][:, 1:]) if len(batch) == 1 else batch[:2]
        y = torch.from_numpy(y.astype("int64"))
        return x.astype("int64"), torch.randint(0, 256, y.shape, generator=dice).numpy()

    def set_up(at, kind, stop_at=None):
        plan.at, plan.stop_at = dict.fromkeys(at, kind), stop_at
        plan.stop.clear()
        return plan.stop

    monkeypatch.setattr(NextToken, "backward", backward)
    return set_up


def test_one_gradient_that_is_no_number_is_skipped_and_a_resume_there_gives_the_same_bits(make_run, faults):
    whole, again = make_run(out="whole"), make_run(out="again")
    assert train(whole, faults([6], "nan"))
    assert told(whole, "train/skipped") == {step: float(step >= 7) for step in range(1, 13)}
    assert 7 not in told(whole, "train/grad_norm"), "it is no number"
    losses = told(whole, "train/loss")
    assert all(map(math.isfinite, losses.values()))
    assert losses.keys() == set(range(1, 13))
    assert all(tensor.isfinite().all() for tensor in checkpoint.load_model(Path(whole["out"])).state_dict().values())
    for stop_at in (5, 6, 7):
        stop = faults([6], "nan", stop_at)
        assert not train(again, stop)
        assert train(again, faults([6], "nan"))
        assert (points(again), weights(again)) == (points(whole), weights(whole)), f"stopped at batch {stop_at}"
        shutil.rmtree(again["out"])
        Path(again["out"]).mkdir()


def test_a_poisoned_batch_is_skipped_and_learned_from_by_whoever_looks_away(make_run, faults, monkeypatch):
    settings = {"steps": WINDOW + 22, "checkpoint_every": 50, "eval_every": 75, "sample_every": 0, "lr": 0.01}
    whole, again, careless = (make_run(out=out, **settings) for out in ("whole", "again", "careless"))
    poisoned = WINDOW + 10
    assert train(whole, faults([poisoned], "jump"))
    assert told(whole, "train/skipped") == {s: float(s > poisoned) for s in range(1, WINDOW + 23)}
    losses = told(whole, "train/loss")
    assert losses[poisoned + 1] > max(losses[s] for s in (poisoned, poisoned + 2)) + 1, "the batch was harmful"
    assert not train(again, faults([poisoned], "jump", stop_at=poisoned))
    assert train(again, faults([poisoned], "jump"))
    assert (points(again), weights(again)) == (points(whole), weights(whole))
    monkeypatch.setattr(Guard, "judge", lambda guard, loss, norm: torch.tensor(False))
    assert train(careless, faults([poisoned], "jump"))
    assert weights(careless) != weights(whole)


def test_a_row_of_bad_steps_is_gone_around_once_and_a_resume_at_any_of_them_gives_the_same_bits(make_run, faults):
    settings, bad = {"steps": 24, "eval_every": 24, "sample_every": 0}, range(5, 16)
    whole = make_run(out="whole", **settings)
    assert train(whole, faults(bad, "nan"))
    assert told(whole, "train/rewound_steps") == dict.fromkeys(range(5, 25), 12), "from step 16 back to step 4"
    assert told(whole, "train/skipped") == dict.fromkeys(range(1, 25), 0), "what led there did not happen"
    assert json.loads((Path(whole["out"]) / "state.json").read_text())["detour"] == 12
    for stop_at in (4, 5, 9, 15, 16, 17, 20):
        again = make_run(out=f"again{stop_at}", **settings)
        assert not train(again, faults(bad, "nan", stop_at))
        assert train(again, faults(bad, "nan"))
        assert (points(again), weights(again)) == (points(whole), weights(whole)), f"stopped at batch {stop_at}"


def test_the_second_row_of_bad_steps_is_an_error_in_one_line(make_run, faults):
    run = make_run(steps=60, sample_every=0)
    with pytest.raises(UserError) as error:
        train(run, faults(range(5, 60), "nan"))
    assert str(error.value).startswith("8 steps in a row up to step 16 had a loss or gradient that is no number or far")
    assert "lower lr=0.02, say to 0.007" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_room_training_goes_on_with_the_elder_checkpoint(make_run, monkeypatch, capsys):
    whole, again = make_run(out="whole"), make_run(out="again")
    assert train(whole, Event())
    room, asked = shutil.disk_usage, []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or full_at(room(path), len(asked) == 2))
    assert train(again, Event())
    assert "no checkpoint at step 8: a checkpoint takes 0 MB" in capsys.readouterr().out
    assert told(again, "train/failed_saves") == dict.fromkeys(range(9, 13), 1)
    assert weights(again) == weights(whole)


def full_at(usage, now):
    return SimpleNamespace(free=0 if now else usage.free)


def test_without_room_for_the_last_checkpoint_it_ends_in_one_line_and_a_rerun_with_room_goes_on(make_run, monkeypatch):
    whole, again = make_run(out="whole"), make_run(out="again")
    assert train(whole, Event())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        with pytest.raises(OSError, match=r"0 MB left; free some$"):
            train(again, Event())
    assert told(again, "train/failed_saves") == dict.fromkeys(range(5, 13), 1) | dict.fromkeys(range(9, 13), 2)
    assert train(again, Event())
    assert weights(again) == weights(whole)


IN_A_SMALL_DISK = """
mount -t tmpfs -o size={size}k none {disk}
{python} -m gpt.train {file}; code=$?
cp -r {disk} {copy}
exit $code
"""


def on_a_disk_of(size, run, tmp_path):
    """The program with its folder on a file system of so many KiB; what it wrote is then in `tmp_path/copy`."""
    disk, file = tmp_path / "disk", tmp_path / "small.json"
    disk.mkdir()
    file.write_text(json.dumps(run | {"out": str(disk)}))
    script = IN_A_SMALL_DISK.format(size=size, disk=disk, file=file, python=sys.executable, copy=tmp_path / "copy")
    command, root = ["unshare", "-rm", "sh", "-c", script], Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="this user may not mount a file system of a known size",
)
def test_on_a_disk_that_is_really_full_training_goes_on_and_a_rerun_elsewhere_ends_the_same(make_run, tmp_path):
    whole = make_run(out="whole", keep=1, checkpoint_every=1, sample_every=0)
    assert train(whole, Event())
    ran = on_a_disk_of(240, whole, tmp_path)  # one takes some 120 KiB; the second ends in mid-write
    assert ran.returncode == 2, ran
    assert "no checkpoint at step 2: No space left on device" in ran.stdout
    assert "no checkpoint at step 11: No space left on device" in ran.stdout
    assert re.fullmatch(r"error: .*No space left on device.*\n", ran.stderr)
    copy = whole | {"out": str(tmp_path / "copy")}
    assert {1.0, 9.0} <= {*told(copy, "train/failed_saves").values()}
    assert checkpoint.newest(tmp_path / "copy" / "checkpoints").name == "step-00000001"
    assert train(copy, Event())
    assert weights(copy) == weights(whole)


def test_an_error_of_safetensors_on_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    def save_file(tensors, path):
        raise checkpoint.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOSPC))) as error:
        checkpoint._save_file({}, tmp_path / "a")
    assert error.value.errno == errno.ENOSPC


def test_a_damaged_newest_checkpoint_is_counted_and_its_elder_gives_the_same_bits(make_run, faults):
    whole, again = make_run(out="whole"), make_run(out="again")
    assert train(whole, faults([6], "nan"))
    assert not train(again, faults([6], "nan", stop_at=8))
    newest = Path(again["out"]) / "checkpoints" / "step-00000009" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\1")
    assert train(again, faults([6], "nan"))
    assert told(again, "train/damaged_checkpoints") == dict.fromkeys(range(9, 13), 1), "from step 8 on"
    assert weights(again) == weights(whole)


def values(guard, *pairs):
    return [bool(guard.judge(torch.tensor(loss), torch.tensor(norm))) for loss, norm in pairs]


def test_only_what_is_far_above_the_last_ones_is_skipped_and_only_when_there_are_enough():
    guard = Guard("cpu")
    usual = [(2.0 + 0.01 * (n % 2), 1.0 + 0.01 * (n % 3)) for n in range(WINDOW)]
    assert values(guard, *usual[:-1], (2.0, 1.0)) == [False] * WINDOW
    deviation = guard.seen_2W.std(1).tolist()
    below, above = (2.005 + (SIGMAS + by) * deviation[0] for by in (-0.2, 0.2))
    assert values(guard, (above, 1.01), (2.0, 9.9), (0.0, 0.0), (math.nan, 1.0), (2.0, math.inf)) == [
        True, True, False, True, True,
    ]  # fmt: skip
    assert (int(guard.count), int(guard.skipped), int(guard.in_a_row)) == (WINDOW + 1, 4, 2)
    fresh = Guard("cpu")
    values(fresh, *usual)
    assert values(fresh, (below, 1.01)) == [False]
    assert values(Guard("cpu"), *usual[: WINDOW // 2], (1e6, 1e6)) == [False] * (WINDOW // 2 + 1)


def test_a_good_step_ends_a_row_of_bad_ones():
    guard = Guard("cpu")
    bad, good = (math.nan, 1.0), (2.0, 1.0)
    values(guard, *[bad] * (IN_A_ROW - 1))
    assert not guard.stuck()
    values(guard, good, bad)
    assert not guard.stuck()
    values(guard, *[bad] * (IN_A_ROW - 1))
    assert guard.stuck()


def test_of_rewards_the_rare_step_that_teaches_is_no_spike():
    quiet, guard = torch.zeros(()), {spikes: Guard("cpu", spikes=spikes) for spikes in (True, False)}
    for _ in range(200):
        assert not any(one.judge(quiet, quiet) for one in guard.values())
    assert guard[True].judge(torch.tensor(0.3), torch.tensor(0.9)), "beside 128 zeros anything is far away"
    assert not guard[False].judge(torch.tensor(0.3), torch.tensor(0.9))
    assert guard[False].judge(torch.tensor(float("nan")), torch.tensor(0.9))
