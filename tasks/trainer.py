"""Train in a child process that never outlives its stage, and pass on what it says: this process never imports torch.

In: a run for gpt/train.py. Out: a Checkpoint folder, its last metrics. The child has its own process group, ends with a
checkpoint when its stage is cancelled, and gets SIGKILL from the kernel when its parent dies: never two writers.
Where several processes train, the child is torchrun (gpt/dist.py), which tells them what it is told.
"""

import ctypes
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen, TimeoutExpired
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter

from gpt.config import TrainConfig
from gpt.errors import UserError
from tasks.artifacts import Config, Metrics
from tasks.curve import draw
from tasks.runtime import runtime, say

GRACE_S = 12.0
"""What a child has to save a checkpoint when its stage ends early."""
RESTARTS = 3
"""Times that torchrun starts its ranks again, from the last checkpoint, when one of them dies."""
TOGETHER = ("pretrain", "sft")
"""The tasks that several processes can share."""
PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

ENVIRONMENT = {
    "GOMP_SPINCOUNT": "3000",  # idle threads spin: beside other work a step took 5 times as long
    # else glibc gives large tensors back to the kernel, which clears their pages anew: 165 instead of 118 us a token
    "MALLOC_MMAP_THRESHOLD_": str(1 << 33),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
}
"""What a program that computes is told besides the user's own environment."""


class Training(Config, TrainConfig):
    """Every field of TrainConfig (or of a kind of it) as a field of the stage, with its sentence and its checks."""

    def model_post_init(self, _: Any) -> None:
        """What a dataclass does by itself."""
        self.__post_init__()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for kind in cls.kinds():  # pydantic reads attribute docstrings from a class's own body only
            for name, documented in TypeAdapter(kind).json_schema()["properties"].items():
                field = cls.model_fields[name]
                field.description = field.description or documented.get("description")
        cls.model_rebuild(force=True)

    @classmethod
    def kinds(cls) -> list[type[TrainConfig]]:
        """The dataclasses of gpt/config.py that stand behind these fields, the most special first."""
        return [base for base in cls.__mro__ if issubclass(base, TrainConfig) and not issubclass(base, Config)]

    def settings(self) -> dict[str, Any]:
        """What that dataclass takes, for run.json."""
        return {field.name: getattr(self, field.name) for field in fields(self.kinds()[0])}


def train(out: Path, run: dict[str, Any]) -> Metrics:
    """Fill `out`, or go on where a killed trainer left it; the journal's last values, the held-out headline first."""
    program("gpt.train", out, {"lock": str(out.parent / "trainer.lock"), **run}, ranks(run["task"]))
    points = [tuple(json.loads(line)[1:]) for line in (out / "logs" / "metrics.jsonl").read_text().splitlines()]
    draw(out / "report" / "loss.png", points)
    last, first = {name: value for _, values in points for name, value in values.items()}, points[0][1]
    head = next(iter(first))
    return {head: last[head], f"{head}_before": first[head]} | last


def gpus() -> int:
    """How many this process may see, and shall use."""
    if runtime().device == "cpu":
        return 0
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) if seen is None else len(list(filter(None, seen.split(","))))


def ranks(task: str) -> int:
    """How many processes train together: as many as asked for, else one a GPU."""
    r = runtime()
    if task not in TOGETHER:
        if r.processes > 1:
            say(f"{task} runs in one process, whatever runtime.processes says")
        return 1
    return r.processes or max(1, gpus())


def program(module: str, out: Path, run: dict[str, Any], processes: int = 1) -> None:
    """Run `python -m module run.json` to its end; the file, in `logs/`, holds `out`, `run` and the means."""
    file, r = out / "logs" / "run.json", runtime()
    means = {"device": r.device, "threads": max(1, r.threads // processes), "shard": r.shard}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"out": str(out), **run, **means}, indent=1))
    many = ["-m", "gpt.dist", "--standalone", f"--nproc-per-node={processes}", f"--max-restarts={RESTARTS}"]
    many.append("--shutdown-timeout=90")  # seconds for a checkpoint; infra/slurm/train.sbatch gives 100
    more = {"OMP_NUM_THREADS": str(means["threads"])} if processes > 1 else {}
    launch([sys.executable, *(many if more else []), "-m", module, str(file)], more)


def launch(command: list[str], more: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run a child to its end, its lines passed to `say`; UserError for exit 2, RuntimeError for any other failure."""
    tail, parent, problem = deque[str](maxlen=30), os.getpid(), ""
    promise = (lambda: _die_with(parent)) if PRCTL else None
    env = {**ENVIRONMENT, **more, **os.environ}
    child = Popen(command, stdout=PIPE, stderr=STDOUT, text=True, start_new_session=True, preexec_fn=promise, env=env)
    try:
        for line in child.stdout or ():
            tail.append(line.rstrip())
            if line.startswith("error: "):
                problem = tail[-1]
            else:
                say(tail[-1])
        child.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):  # only when this stage ends before its child
            if child.poll() is None:
                os.killpg(child.pid, number)
                with suppress(TimeoutExpired):
                    child.wait(GRACE_S)
    if child.returncode == 2 and problem:
        raise UserError(problem.removeprefix("error: "))
    if child.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL, 128 + signal.SIGTERM):
        raise UserError("the child was killed (out of memory?) or told to stop; rerun, and it goes on where it was")
    if child.returncode != 0:
        raise RuntimeError("\n".join([f"{' '.join(command)} ended with {child.returncode}; it said last:", *tail]))


def _die_with(parent: int) -> None:
    """Between fork and exec: the kernel shall kill the child when its parent dies, and it may be dead already."""
    assert PRCTL
    PRCTL(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
