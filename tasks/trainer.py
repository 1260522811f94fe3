"""Train in a child process that never outlives its stage, and pass on what it says: this process never imports torch.

In: a run for gpt/train.py. Out: a Checkpoint folder, its last metrics. The child has its own process group, ends with a
checkpoint when its stage is cancelled, and gets SIGKILL from the kernel when its parent dies: never two writers.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gpt.config import TrainConfig
from gpt.errors import UserError
from tasks.artifacts import Config, Metrics
from tasks.runtime import runtime, say


class Training(Config, TrainConfig):
    """Every field of TrainConfig as a field of the stage; its checks run on them."""

    def model_post_init(self, _: Any) -> None:
        """What a dataclass does by itself."""
        self.__post_init__()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name, documented in TypeAdapter(TrainConfig).json_schema()["properties"].items():
            cls.model_fields[name].description = cls.model_fields[name].description or documented["description"]
        cls.model_rebuild(force=True)  # pydantic reads attribute docstrings from its own classes only

    def settings(self) -> dict[str, Any]:
        """The TrainConfig that these fields make, for run.json."""
        return {field.name: getattr(self, field.name) for field in fields(TrainConfig)}


def train(out: Path, run: dict[str, Any]) -> Metrics:
    """Fill `out`, or go on where a killed trainer left it; the journal's last values, held-out bits per byte first."""
    file, journal = out / "logs" / "run.json", out / "logs" / "metrics.jsonl"
    file.parent.mkdir(exist_ok=True)
    means = {"lock": str(out.parent / "trainer.lock"), "device": runtime().device, "threads": runtime().threads}
    file.write_text(json.dumps({"out": str(out), **run, **means}, indent=1))
    launch([sys.executable, "-m", "gpt.train", str(file)])
    points = [json.loads(line)[2] for line in journal.read_text().splitlines()]
    last = {name: value for values in points for name, value in values.items()}
    return {"val/bpb": last["val/bpb"], "val/bpb_before": points[0]["val/bpb"]} | last


def launch(command: list[str]) -> None:
    """Run a child to its end, its lines passed to `say`; UserError for exit 2, RuntimeError for any other failure."""
    tail: deque[str] = deque(maxlen=30)
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_die_with(os.getpid()),
    )
    try:
        for line in child.stdout or ():
            tail.append(line.rstrip())
            if not line.startswith("error: "):
                say(tail[-1])
        child.wait()
    finally:
        _end(child)
    if child.returncode == 2 and tail and tail[-1].startswith("error: "):
        raise UserError(tail[-1].removeprefix("error: "))
    if child.returncode != 0:
        raise RuntimeError("\n".join([f"{' '.join(command)} ended with {child.returncode}; it said last:", *tail]))


def _end(child: subprocess.Popen, grace_s: float = 15.0) -> None:
    """Ask the group to stop with a checkpoint; after the grace period there is no asking."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is None:
            os.killpg(child.pid, number)
            try:
                child.wait(grace_s)
            except subprocess.TimeoutExpired:
                continue


def _die_with(parent: int) -> Callable[[], None] | None:
    """Between fork and exec: the kernel's promise that the parent's death kills the child (Linux only)."""
    if sys.platform != "linux":
        return None
    prctl, set_parent_death_signal = ctypes.CDLL(None).prctl, 1

    def promise() -> None:
        prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the promise
            os._exit(1)

    return promise
