"""Files as the store needs them: flushed to the disk, shared by links, named by content, locked by the kernel.

In: paths. Out: digests (remembered on this machine, so that a file is read once), hard links, locks that die with
their holder.
"""

import fcntl
import functools
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.runtime import say


def link(source: Path, target: Path) -> None:
    """Share a file between folders without a copy; across devices, copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = file_digest(source)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    else:
        _remember(_identity(target), digest)  # a new link gives the inode a new ctime


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex; 0.6 GiB/s on one core."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, remembered on this machine by inode, size, mtime and ctime."""
    identity, began = _identity(path), time.time_ns()
    with suppress(sqlite3.Error, OSError):
        if row := _memory().execute("SELECT sha256 FROM digests WHERE identity = ?", (identity,)).fetchone():
            return row[0]
    digest = hash_file(path)
    if began - path.stat().st_ctime_ns > 20_000_000:  # younger than a clock tick: a later change could look the same
        _remember(identity, digest)
    return digest


def _identity(path: Path) -> str:
    s = path.stat()
    return f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}"


def _remember(identity: str, digest: str) -> None:
    with suppress(sqlite3.Error, OSError):
        _memory().execute("INSERT OR REPLACE INTO digests VALUES (?, ?)", (identity, digest))


@functools.cache
def _memory() -> sqlite3.Connection:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptloom"
    home.mkdir(parents=True, exist_ok=True)
    memory = sqlite3.connect(home / "digests.sqlite", timeout=10, isolation_level=None, check_same_thread=False)
    memory.execute("PRAGMA journal_mode=WAL")
    memory.execute("PRAGMA synchronous=OFF")  # a lost memory costs one more hash
    memory.execute("CREATE TABLE IF NOT EXISTS digests (identity TEXT PRIMARY KEY, sha256 TEXT) WITHOUT ROWID")
    return memory


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, waiting: str = "") -> Generator[None]:
    """A kernel lock that ends with its holder, however it ends; the file stays for ever."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if is_locked(path):
            say(waiting or f"waiting for {path}")
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
