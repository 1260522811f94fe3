"""The two servers on this machine: Prefect to run and watch, MLflow to track; SQLite, loopback, logs in one folder.

In: `gptloom up | down | status`. Out: `.gptloom/servers.json` (`$GPTLOOM_HOME`), where `gptloom run` finds them.
`down` ends exactly what `up` started: a process counts as ours only if its start time is the one noted.
"""

import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import create_server
from subprocess import DEVNULL, Popen
from urllib.request import urlopen

import psutil

from gpt.errors import UserError
from tasks.files import locked
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
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.began) < 1 and process.status() != psutil.STATUS_ZOMBIE
        return False

    @property
    def healthy(self) -> bool:
        """Whether it answers."""
        with suppress(OSError), urlopen(self.url + HEALTH[self.name], timeout=2) as answer:
            return answer.status == 200
        return False


def home() -> Path:
    """Where the servers keep their databases and logs."""
    return Path(os.environ.get("GPTLOOM_HOME", ".gptloom")).absolute()


def known() -> dict[str, Server]:
    """The servers that `up` noted and that still run."""
    with suppress(OSError, ValueError, TypeError):  # no note, or one torn by a crash
        noted = [Server(**fields) for fields in json.loads((home() / "servers.json").read_text())]
        return {server.name: server for server in noted if server.alive}
    return {}


def up(ports: dict[str, int | None]) -> dict[str, Server]:
    """Start what does not run yet, each server at its given port or at any free one, and wait until both answer."""
    with locked(home() / "lock", "another `gptloom up` is at work; waiting for it"):
        servers = known()
        for name, server in servers.items():
            if (port := ports.get(name)) and not server.url.endswith(f":{port}"):
                raise UserError(f"{name} already runs at {server.url}; stop it with `gptloom down`, or name no port")
        free = {name: free_port(usual, ports.get(name)) for name, usual in PORTS.items() if name not in servers}
        for name, port in free.items():
            servers[name] = start(name, port)
            note(servers)
    await_answers(servers)
    return servers


def await_answers(servers: dict[str, Server]) -> None:
    """Return when every server answers; UserError for one that stops, or that takes over two minutes."""
    start, shown = time.monotonic(), 0.0
    for name, server in servers.items():
        while not server.healthy:
            waited = time.monotonic() - start
            if waited > 120 or not server.alive:
                what = "does not answer" if server.alive else "stopped"
                raise UserError(f"{name} {what} after {waited:.0f} s; its log says why: {home() / 'logs' / name}.log")
            if waited > shown + 5:
                shown = waited
                say(f"waiting for {name} ({waited:.0f} s; the first start makes the databases)")
            time.sleep(0.3)


def start(name: str, port: int) -> Server:
    """Start one server in a session of its own, on loopback, its output in `logs/`."""
    at, url = home(), f"http://127.0.0.1:{port}"
    (at / "logs").mkdir(parents=True, exist_ok=True)
    data = ["--backend-store-uri", f"sqlite:///{at}/mlflow.db", "--artifacts-destination", f"{at}/mlartifacts"]
    words = ["start"] if name == "prefect" else ["--workers", "1", *data]
    command = [str(Path(sys.executable).parent / name), "server", *words, "--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, **QUIET, "PREFECT_HOME": str(at / "prefect"), "PREFECT_UI_API_URL": f"{url}/api"}
    env.pop("PREFECT_API_URL", None)
    with (at / "logs" / f"{name}.log").open("ab") as log:
        process = Popen(command, stdout=log, stderr=log, stdin=DEVNULL, start_new_session=True, env=env, cwd=at)
    say(f"starting {name} at {url}")
    return Server(name, url, process.pid, psutil.Process(process.pid).create_time())


def note(servers: dict[str, Server]) -> None:
    """Remember the servers, atomically."""
    fresh = home() / "servers.json.tmp"
    fresh.write_text(json.dumps([asdict(s) for s in servers.values()], indent=1))
    fresh.replace(home() / "servers.json")


def down() -> list[str]:
    """End what `up` started, children included; returns the names."""
    servers, processes = known(), []
    for server in servers.values():
        with suppress(psutil.Error):  # it may end by itself meanwhile
            parent = psutil.Process(server.pid)
            processes += [*parent.children(recursive=True), parent]
    for end, grace_s in ((psutil.Process.terminate, 10), (psutil.Process.kill, 1)):
        for process in processes:
            with suppress(psutil.Error):
                end(process)
        processes = psutil.wait_procs(processes, grace_s)[1]
    return list(servers)


def free_port(usual: int, given: int | None = None) -> int:
    """The given port, which must be free; else the usual one or, where somebody has that, any other."""
    for port in [given] if given else [usual, 0]:
        with suppress(OSError, OverflowError), create_server(("127.0.0.1", port)) as probe:
            return probe.getsockname()[1]
    raise UserError(f"port {given or usual} of 127.0.0.1 is taken or not allowed; name another, or none for any")


def connect() -> str | None:
    """Point this process at the servers, those of the environment first; returns MLflow's address if one is known.

    Must run before prefect is imported: it reads its settings once.
    """
    settings = dict(QUIET)
    if home().is_dir():
        settings["PREFECT_HOME"] = str(home() / "prefect")
    urls = {name: server.url for name, server in known().items() if server.healthy}
    if url := urls.get("prefect"):
        settings |= {"PREFECT_API_URL": f"{url}/api", "PREFECT_UI_URL": url}
    if url := urls.get("mlflow"):
        settings["MLFLOW_TRACKING_URI"] = url
    os.environ.update(settings | os.environ)
    return os.environ.get("MLFLOW_TRACKING_URI")


def tracking() -> str:
    """MLflow's address; UserError where none is known."""
    if not (uri := connect()):
        raise UserError("no MLflow server is known; start it with `gptloom up` or set MLFLOW_TRACKING_URI")
    return uri
