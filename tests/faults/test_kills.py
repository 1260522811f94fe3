"""SIGKILL of the flow, of the trainer, of both, at random moments and at every failpoint: a rerun ends with the very
digests of an undisturbed run, and there is never a second writer.

`make test` runs a short form; `make test-all` the 30 random kills and every failpoint of a whole run.
"""

import json
import os
import random
import subprocess
import sys
import time

import psutil
import pytest

from tasks.manifest import verify
from tasks.store import Store


def start(recipe, store, **env):
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "--store", str(store), "--json"]
    clean = {
        name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    }
    env = {**clean, "GPTLOOM_HOME": str(store / "home"), "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return {s["stage"]: s["digest"] for s in json.loads(out.splitlines()[-1])["stages"]}


@pytest.fixture(scope="module")
def calm(tiny_recipe, tmp_path_factory):
    """Digests, duration and every failpoint passed of an undisturbed run."""
    folder, began = tmp_path_factory.mktemp("calm"), time.monotonic()
    digests = finish(start(tiny_recipe, folder / "store", GPTLOOM_FAILPOINT_TRACE=str(folder / "trace")))
    return digests, time.monotonic() - began, (folder / "trace").read_text().splitlines()


def trainers(process):
    """The training children of a flow."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            found += [child] if "gpt.train" in child.cmdline() else []
        except psutil.Error:
            continue
    return found


def kill(process, victim, rng):
    """SIGKILL the victim; without a trainer at this moment, the flow. Returns what was hit."""
    children = trainers(process) if process.poll() is None else []
    if victim in ("trainer", "both") and children:
        rng.choice(children).kill()
    if victim in ("flow", "both") or not children:
        process.kill()
    process.communicate(timeout=60)
    return victim if children else "flow outside training"


def check(recipe, store, digests, note):
    for _ in range(50):
        writers = [p for p in psutil.process_iter(["cmdline"]) if str(store) in " ".join(p.info["cmdline"] or [])]
        if not writers:
            break
        time.sleep(0.1)
    assert not writers, f"{note}: a process outlived its flow: {writers}"
    assert finish(start(recipe, store)) == digests, note
    found = Store(store)
    assert all(verify(build, afresh=True) for build, _ in found.entries()), note


def random_kills(count, recipe, calm, tmp_path, seed):
    digests, duration_s, _ = calm
    rng, hits = random.Random(seed), []
    for turn in range(count):
        store, victim = tmp_path / f"kill-{turn}", ("flow", "trainer", "both")[turn % 3]
        process = start(recipe, store)
        moment_s = rng.uniform(0.1, 0.95) * duration_s
        time.sleep(moment_s)
        if victim != "flow":  # aim at the time in which a trainer lives
            deadline = time.monotonic() + duration_s
            while process.poll() is None and not trainers(process) and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.15) * duration_s)
        hits.append(f"{kill(process, victim, rng)} at {moment_s:.1f} s")
        check(recipe, store, digests, hits[-1])
    print("\n".join(hits))


def failpoint_kills(names, recipe, calm, tmp_path):
    digests = calm[0]
    for point in names:
        store = tmp_path / point.replace(" ", "-").replace(":", "-")
        process = start(recipe, store, GPTLOOM_FAILPOINT=point)
        _, err = process.communicate(timeout=300)
        assert process.returncode != 0, f"{point} was not reached: {err[-2000:]}"
        check(recipe, store, digests, point)


def points(trace, every):
    """`name:nth` of a trace. The trainers are processes of their own, each counting from one."""
    seen = {}
    for name in trace:
        seen[name] = seen.get(name, 0) + 1
    nth = {name: range(1, min(count, every) + 1) for name, count in seen.items()}
    return [f"{name}:{n}" for name, ns in nth.items() for n in ns]


@pytest.mark.timeout(600)
def test_three_random_kills_change_nothing(tiny_recipe, calm, tmp_path):
    random_kills(3, tiny_recipe, calm, tmp_path, seed=3)


@pytest.mark.timeout(600)
def test_a_kill_in_the_midst_of_saving_a_checkpoint_changes_nothing(tiny_recipe, calm, tmp_path):
    failpoint_kills(["checkpoint: files:2", "checkpoint: renamed:1"], tiny_recipe, calm, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_30_random_kills_change_nothing(tiny_recipe, calm, tmp_path):
    random_kills(30, tiny_recipe, calm, tmp_path, seed=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_at_every_kind_of_failpoint_changes_nothing(tiny_recipe, calm, tmp_path):
    failpoint_kills(points(calm[2], every=3), tiny_recipe, calm, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prefer", "rl"])
def test_kills_in_post_training_change_nothing(stage, tiny_recipe, calm, tmp_path):
    """Before the first checkpoint, and at random moments later."""
    rng, victims = random.Random(stage), ("trainer", "flow", "both")
    for turn, victim in enumerate(victims):
        store = tmp_path / f"{stage}-{turn}"
        process = start(tiny_recipe, store)
        while not (inside := [t for t in trainers(process) if f"/{stage}/" in " ".join(t.cmdline())]):
            assert process.poll() is None, f"{stage} was over before it was seen"
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 4) if turn else 0)
        if victim in ("trainer", "both") and inside[0].is_running():
            inside[0].kill()
        if victim in ("flow", "both"):
            process.kill()
        process.communicate(timeout=60)
        check(tiny_recipe, store, calm[0], f"{victim} in {stage}")
