"""The metrics journal: what a trainer measured, as JSON lines that nothing but a disk has to receive.

In: `log(step, {name: value})`. Out: a file of `[time_ms, step, {name: value}]` lines, which tasks/courier.py ships to
MLflow: training never waits for a server.
"""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any


class Journal:
    """Append to a journal. What a killed writer left torn goes, and so do lines after `after_step` when it is given."""

    def __init__(self, path: Path, after_step: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o644)
        lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        keep = [line for line in lines if after_step is None or json.loads(line)[1] <= after_step]
        os.ftruncate(self.fd, sum(map(len, keep)))  # steps only grow, so what is kept is the head of the file

    def log(self, step: int, values: dict[str, Any]) -> None:
        """One line, in one write: a kill leaves it whole or torn at the end of the file; a full disk costs just it."""
        line, end = (json.dumps([int(time.time() * 1000), step, values]) + "\n").encode(), os.fstat(self.fd).st_size
        try:
            whole = os.write(self.fd, line) == len(line)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            whole = False
        if not whole:
            os.ftruncate(self.fd, end)

    def sync(self) -> None:
        """Put it on the disk; called before each checkpoint, so that no checkpoint is ahead of its journal."""
        os.fsync(self.fd)
