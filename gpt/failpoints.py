"""Named places where a test may kill this process; inert unless the environment asks.

In: GPTLOOM_FAILPOINT="name:n" kills (SIGKILL) at the n-th pass of `name`; GPTLOOM_FAILPOINT_TRACE names a file that
collects every name passed, one a line, so that a test can enumerate them all.
"""

import os
import signal
from collections import Counter

KILL_AT, TRACE = os.environ.get("GPTLOOM_FAILPOINT"), os.environ.get("GPTLOOM_FAILPOINT_TRACE")
_passes: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Note the name in the trace, and die here if this is the pass that was asked for."""
    _passes[name] += 1
    if TRACE:
        with open(TRACE, "a") as trace:
            trace.write(name + "\n")
    if f"{name}:{_passes[name]}" == KILL_AT:
        os.kill(os.getpid(), signal.SIGKILL)
