"""The training program: `python -m gpt.train run.json`, started by tasks/trainer.py or by hand.

In: run.json with task, out, lock, data, tokenizer, init, vocab_size, model, train, device and threads.
On several GPUs or machines: `torchrun --nproc-per-node 8 -m gpt.train run.json` (docs/scaling.md).
Out: a Checkpoint folder in `out`, progress on stdout. Exit 0: finished. 143: stopped by SIGTERM or SIGINT, with a
checkpoint where a step was done; the same command goes on from there. 2: one line `error: ...` that says what to mend.
"""

import ctypes
import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from gpt.errors import UserError


def main() -> int:
    """Install handlers, take the lock, then import torch.

    Until the first step is done, which may compile for half a minute, there is nothing to lose: a signal ends us at
    once. From then on, and of several ranks always, it means a checkpoint first.
    """
    stop, rank = threading.Event(), os.environ.get("RANK")
    on_signal((lambda *_: os._exit(143)) if rank is None else lambda *_: stop.set())
    try:
        run = json.loads(Path(sys.argv[1]).read_text())
        if rank is not None and sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no rank outlives its torchrun
        if rank in (None, "0"):
            hold(Path(run["lock"]), stop)
        from gpt.loop import train

        return 0 if train(run, stop, begun=lambda: on_signal(lambda *_: stop.set())) else 143
    except (UserError, OSError, SafetensorError) as error:  # the last: disk full
        print(f"error: {error}", flush=True, file=sys.stderr)
        return 2


def on_signal(do: Callable[..., object]) -> None:
    """What SIGTERM and SIGINT mean from here on."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, do)


def hold(lock: Path, stop: threading.Event, wait_s: float = 60.0) -> None:
    """Take the kernel's lock for the rest of this process's life, so that a folder never has two writers."""
    fd, deadline = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline or stop.wait(0.1):
                raise UserError(f"another trainer holds {lock}; wait for it or end it, then run again") from None


def end(code: int) -> NoReturn:
    """Leave. A rank does so at once: a thread of torch's that asks for the interpreter as it ends, aborts all."""
    if "RANK" in os.environ:
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    end(main())
