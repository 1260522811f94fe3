"""Train a BPE with gigatoken, in a process of its own: it writes to stdout, and it can spin for ever on rare corpora.

In: a file of texts with the byte FF, which no UTF-8 holds, between them; how many tokens; the seconds it may take.
Out: a JSON list of merges, each two lists of bytes. A library of few years: tasks/bpe.py judges what comes out.
"""

import json
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

SEPARATOR = b"\xff"


def main(texts: str, size: str, limit_s: str, merges: str) -> None:
    """Train, within the time allowed: SIGALRM ends the process."""
    from gigatoken import TextFileSource, train_bpe

    signal.alarm(int(limit_s))
    with hushed():
        _, made = train_bpe(TextFileSource([texts], separator=SEPARATOR), int(size), [])
    Path(merges).write_text(json.dumps([[list(left), list(right)] for left, right in made]))


@contextmanager
def hushed() -> Generator[None]:
    """Keep six lines of a library from the person who waits; what it raises is told."""
    silence, before = os.open(os.devnull, os.O_WRONLY), (os.dup(1), os.dup(2))
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        yield
    finally:
        os.dup2(before[0], 1)
        os.dup2(before[1], 2)


if __name__ == "__main__":
    main(*sys.argv[1:])
