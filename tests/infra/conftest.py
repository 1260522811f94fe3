"""What the tests of infra/ share: its folder, its scripts, a PostgreSQL of their own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.servers import free_port

INFRA = Path(__file__).parents[2] / "infra"


def run(name: str, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
    """A finished script of infra/, its output caught."""
    command = [str(INFRA / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env})


@pytest.fixture(scope="session")
def infra() -> Path:
    return INFRA


@pytest.fixture(scope="session")
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run


@pytest.fixture(scope="module")
def new_postgres() -> Iterator[Callable[[], tuple[str, Path]]]:
    """Starts PostgreSQL servers and returns their address and folder; they end with the test."""
    if not any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) and not shutil.which("initdb"):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with tempfile.TemporaryDirectory(
        dir="/tmp"
    ) as folder:  # pytest's own are closed to the user that PostgreSQL runs as
        Path(folder).chmod(0o755)
        made: list[Path] = []

        def new() -> tuple[str, Path]:
            made.append(Path(folder) / str(len(made)))
            done = run("local/postgres.sh", "start", made[-1], free_port(0))
            assert done.returncode == 0, done.stderr
            return done.stdout.strip(), made[-1]

        yield new
        for at in made:
            run("local/postgres.sh", "stop", at)
