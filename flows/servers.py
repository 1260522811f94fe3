"""The two servers on this machine: Prefect to run and watch, MLflow to track; SQLite, loopback, logs in one folder.

In: `gptloom up | down | status`. Out: `.gptloom/servers.json` (`$GPTLOOM_HOME`), where `gptloom run` finds them.
`down` ends exactly what `up` started: a process counts as ours only if its start time is the one noted.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from gpt.errors import UserError
from tasks.runtime import say

QUIET = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "gptloom",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_CLI_PROMPT": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes and 0.5 GB instead of 10 and 2.2 GB
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
PORTS = {"prefect": 4200, "mlflow": 5000}
HEALTH = {"prefect": "/api/health", "mlflow": "/health"}


@dataclass(frozen=True)
class Server:
    """A started server: its address, its process and when that process began."""

    name: str
    url: str
    pid: int
    began: float

    @property
    def alive(self) -> bool:
        """Whether the process that `up` started still runs."""
        with suppress(psutil.Error):
            return abs(psutil.Process(self.pid).create_time() - self.began) < 1 and not _is_zombie(self.pid)
        return False

    @property
    def healthy(self) -> bool:
        """Whether it answers."""
        with suppress(OSError), urllib.request.urlopen(self.url + HEALTH[self.name], timeout=2) as answer:
            return answer.status == 200
        return False


def _is_zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def home() -> Path:
    """Where the servers keep their databases and logs."""
    return Path(os.environ.get("GPTLOOM_HOME", ".gptloom")).absolute()


def known() -> dict[str, Server]:
    """The servers that `up` noted and that still run."""
    try:
        servers = [Server(**s) for s in json.loads((home() / "servers.json").read_text())]
    except (OSError, ValueError, TypeError):  # none, or torn by a crash
        servers = []
    return {s.name: s for s in servers if s.alive}


def up(ports: dict[str, int | None], timeout_s: float = 120.0) -> dict[str, Server]:
    """Start what does not run yet and wait until both answer."""
    servers = known()
    for name in PORTS:
        if name not in servers:
            servers[name] = start(name, ports.get(name) or free_port(PORTS[name]))
            note(servers)
    began = shown = time.monotonic()
    while not_yet := [s for s in servers.values() if not s.healthy]:
        if dead := [s.name for s in not_yet if not s.alive]:
            raise UserError(f"{dead[0]} stopped while starting; its log says why: {home() / 'logs' / dead[0]}.log")
        if time.monotonic() - began > timeout_s:
            raise UserError(
                f"{not_yet[0].name} does not answer after {timeout_s:.0f} s; see {home() / 'logs'}; then `gptloom down`"
            )
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            names = ", ".join(s.name for s in not_yet)
            say(f"waiting for {names} ({shown - began:.0f} s; the first start makes the databases)")
        time.sleep(0.3)
    return servers


def start(name: str, port: int) -> Server:
    """Start one server in a session of its own, on loopback, its output in `logs/`."""
    at, url = home(), f"http://127.0.0.1:{port}"
    (at / "logs").mkdir(parents=True, exist_ok=True)
    database, files = f"sqlite:///{at}/mlflow.db", str(at / "mlartifacts")
    words = {
        "prefect": ["server", "start"],
        "mlflow": ["server", "--workers", "1", "--backend-store-uri", database, "--artifacts-destination", files],
    }[name]
    command = [str(Path(sys.executable).parent / name), *words, "--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, **QUIET, "PREFECT_HOME": str(at / "prefect"), "PREFECT_UI_API_URL": f"{url}/api"}
    env.pop("PREFECT_API_URL", None)
    with (at / "logs" / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env=env, cwd=at
        )
    say(f"starting {name} at {url}")
    return Server(name, url, process.pid, psutil.Process(process.pid).create_time())


def note(servers: dict[str, Server]) -> None:
    """Remember the servers, atomically."""
    fresh = home() / "servers.json.tmp"
    fresh.write_text(json.dumps([asdict(s) for s in servers.values()], indent=1))
    fresh.replace(home() / "servers.json")


def down(wait_s: float = 10.0) -> list[str]:
    """End what `up` started, children included; returns the names."""
    servers = known()
    processes = []
    for server in servers.values():
        parent = psutil.Process(server.pid)
        processes += [*parent.children(recursive=True), parent]
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(processes, wait_s)[1]:
        with suppress(psutil.Error):
            process.kill()
    (home() / "servers.json").unlink(missing_ok=True)
    return list(servers)


def free_port(wanted: int) -> int:
    """The wanted port if nobody has it, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    raise UserError(
        f"no free port on 127.0.0.1, not even near {wanted}; name one with --prefect-port and --mlflow-port"
    )


def connect() -> str | None:
    """Point this process at the servers, those of the environment first; returns MLflow's address if one is known.

    Must run before prefect is imported: it reads its settings once.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if home().is_dir():
        os.environ.setdefault("PREFECT_HOME", str(home() / "prefect"))
    servers = {s.name: s for s in known().values() if s.healthy}
    if "prefect" in servers:
        os.environ.setdefault("PREFECT_API_URL", servers["prefect"].url + "/api")
        os.environ.setdefault("PREFECT_UI_URL", servers["prefect"].url)
    if "mlflow" in servers:
        os.environ.setdefault("MLFLOW_TRACKING_URI", servers["mlflow"].url)
    return os.environ.get("MLFLOW_TRACKING_URI")
