"""The services on this machine: Prefect to run and watch, MLflow to track, a worker that runs what the UI asks for.

In: `gptloom up | down | status`. Out: processes on loopback, their pids in `run/`, logs in `logs/` of `$GPTLOOM_HOME`.
`down` ends exactly what `up` started, also after a reboot or a kill of either: a process writes its own pid before it
becomes the service, and counts as ours only if it began when that file was written.
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from socket import create_server
from subprocess import DEVNULL, Popen
from urllib.request import Request, urlopen

import psutil

from flows.settings import (
    DRIVERS,
    PORTS,
    QUIET,
    Settings,
    authorization,
    client_environment,
    credentials,
    database_url,
    home,
    server_environment,
)
from gpt.errors import UserError
from tasks.files import file_digest, locked
from tasks.runtime import say
from tasks.store import default_store

POOL, MARK = "gptloom", "GPTLOOM_SERVICE"
ADDRESSES = {"prefect": "PREFECT_API_URL", "mlflow": "MLFLOW_TRACKING_URI"}
HEALTH = {"prefect": "/api/health", "mlflow": "/health", "worker": f"/api/work_pools/{POOL}"}
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Server:
    """A service that `up` started."""

    name: str
    url: str
    """Where it listens; of the worker, the server that it asks for work."""
    pid: int

    @property
    def healthy(self) -> bool:
        """Whether it answers; a worker, whether its pool counts it."""
        request = Request(self.url + HEALTH[self.name], headers=authorization())
        with suppress(OSError, ValueError), urlopen(request, timeout=2) as answer:
            return self.name != "worker" or json.load(answer)["status"] == "READY"
        return False


def pid_of(name: str) -> int | None:
    """The process that `up` started for this service, if it still runs; a clock that is set says nothing of it."""
    file = home() / "run" / name
    with suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(file.read_text()))
        ours = process.environ().get(MARK) == str(file) and process.status() != psutil.STATUS_ZOMBIE
        return process.pid if ours else None
    return None


def family(name: str) -> list[psutil.Process]:
    """All processes of a service, those too that a killed one left behind: they inherit its environment."""
    file, found = home() / "run" / name, list[psutil.Process]()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(file):
                found += [process, *process.children(recursive=True)]
    return list(dict.fromkeys(found))


def known() -> dict[str, Server]:
    """The services that `up` started and that still run."""
    settings, pids = Settings.load(), {name: pid_of(name) for name in HEALTH}
    urls = {name: settings.url(name) for name in settings.ports} | {"worker": ""}
    urls["worker"] = urls.get("prefect", "")
    return {name: Server(name, urls[name], pid) for name, pid in pids.items() if pid and urls.get(name)}


def up(
    ports: dict[str, int | None], *, auth: bool | None = None, database: str | None = None, store: Path | None = None
) -> dict[str, Server]:
    """Start what does not run yet and wait until all answer; what is not said here stays as the last `up` had it.

    Ports: the given one, else the one of last time, else the usual, else any free one.
    """
    private_home()
    with locked(home() / "lock", "another `gptloom up` is at work; waiting for it"):
        running = known()
        for name in HEALTH.keys() - running.keys():
            end(family(name))  # the children of a killed one hold its port
        settings = chosen(ports, auth, database, store)
        for name in ("prefect", "mlflow"):
            if name not in running:
                start(name, settings)
        await_answers(["prefect"])
        fresh = deployable()
        if settings.deployed != fresh or "prefect" not in running:
            deploy(settings)
            replace(settings, deployed=fresh).save()
        if "worker" not in running:
            start("worker", settings)
        await_answers(["mlflow", "worker"])
    return known()


def private_home() -> None:
    """The home, which only its owner may enter: databases and logs tell everything but the password."""
    try:
        home().mkdir(parents=True, exist_ok=True)
        home().chmod(0o700)
    except OSError as error:
        raise UserError(f"GPTLOOM_HOME={home()}: {error.strerror}; name a folder of your own") from error


def chosen(ports: dict[str, int | None], auth: bool | None, database: str | None, store: Path | None) -> Settings:
    """The settings of this `up`, noted; UserError where what runs already runs otherwise."""
    old, running = Settings.load(), known()
    said = {"auth": auth, "database": database, "store": str(store) if store else None}
    new = replace(old, **{name: value for name, value in said.items() if value is not None})
    new = replace(new, store=new.store or str(default_store().root))
    for name, server in running.items():
        port_moves = ports.get(name) and ports[name] != old.ports[name]
        if port_moves or (new.auth, new.database, new.store) != (old.auth, old.database, old.store):
            where = f"{server.url} (store {old.store}, {'with' if old.auth else 'without'} passwords)"
            raise UserError(f"{name} already runs at {where}; stop it with `gptloom down`, or name nothing else")
    free = {name: old.ports[name] for name in PORTS if name in running}
    for name in sorted(PORTS.keys() - free.keys(), key=lambda name: not ports.get(name)):  # what was given comes first
        free[name] = free_port((PORTS | old.ports)[name], ports.get(name), taken=[*free.values()])
    if new.database:
        create_databases(new)
    new = replace(new, ports=free)
    new.save()
    return new


def start(name: str, settings: Settings) -> None:
    """Start one service in a session of its own, its output in `logs/`."""
    for folder in ("logs", "run", "prefect"):
        (home() / folder).mkdir(parents=True, exist_ok=True)
    prepare(name, settings)
    other = ("PREFECT_API_", "MLFLOW_TRACKING_", "MLFLOW_AUTH_")  # the ways to servers elsewhere
    env = {k: v for k, v in os.environ.items() if not k.startswith(other)}
    env |= server_environment(name, settings) | {MARK: str(home() / "run" / name)}
    note = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(home() / "run" / name)]
    with (home() / "logs" / f"{name}.log").open("ab") as log:
        command, cwd = [*note, *words(name, settings)], ROOT if name == "worker" else home()
        process = Popen(command, stdout=log, stderr=log, stdin=DEVNULL, start_new_session=True, env=env, cwd=cwd)
    say(f"starting {name}" + (f" at {settings.url(name)}" if name in PORTS else f" for the store {settings.store}"))
    while not became(name, process.pid) and process.poll() is None:  # a few milliseconds
        time.sleep(0.01)


def became(name: str, pid: int) -> bool:
    """Whether the shell has become the service; in the midst of that it has no environment to be known by."""
    with suppress(psutil.Error):
        return psutil.Process(pid).cmdline()[:1] not in ([], ["sh"]) and pid_of(name) == pid
    return False


def words(name: str, settings: Settings) -> list[str]:
    """The command line of a service; secrets are in its environment."""
    binaries, port = Path(sys.executable).parent, settings.ports.get(name)
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    if name == "prefect":
        return [sys.executable, "-m", "uvicorn", "--factory", "flows.guard:prefect", "--log-level", "warning", *listen]
    if name == "worker":
        return [str(binaries / "prefect"), "worker", "start", "--pool", POOL, "--type", "process", "--name", "here"]
    files = ["--artifacts-destination", str(home() / "mlartifacts")]
    return [str(binaries / "mlflow"), "server", "--workers", "1", *files, "--app-name", "gptloom", *listen]


def prepare(name: str, settings: Settings) -> None:
    """Make the databases where they are not there, and MLflow's file that names the one of its users."""
    if name == "mlflow" and not settings.database:
        with sqlite3.connect(home() / "mlflow.db") as file:  # a third of the wait beside other writers; it persists
            file.execute("PRAGMA journal_mode=WAL")
    if name == "mlflow" and settings.auth:
        users, ini = settings.database_of("mlflow_auth"), home() / "auth.ini"
        ini.touch(0o600)
        users = users.replace("%", "%%")  # configparser reads it
        ini.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {users}\nadmin_username = admin\n")
        credentials()


def create_databases(settings: Settings) -> None:
    """Create the databases that PostgreSQL does not have yet."""
    import psycopg2

    at = database_url(settings.database)
    try:
        server = psycopg2.connect(
            host=at.host, port=at.port or 5432, user=at.username, password=at.password, dbname="postgres"
        )
    except psycopg2.OperationalError as error:
        problem = str(error).strip().splitlines()[-1]
        raise UserError(f"--database {at}: {problem}; start PostgreSQL or mend the address") from error
    server.autocommit = True
    with server.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        there = {row[0] for row in cursor.fetchall()}
        for name in DRIVERS.keys() - there:
            cursor.execute(f'CREATE DATABASE "{name}"')
    server.close()


def deployable() -> str:
    """Digest of all that the deployments are made of: they are made anew only when it changed."""
    from tasks.manifest import key_of

    presets, code = (ROOT / "flows").rglob("*.yaml"), (p for f in ("flows", "tasks") for p in (ROOT / f).rglob("*.py"))
    files = [ROOT / "prefect.yaml", *sorted([*presets, *code]), ROOT / "gpt" / "config.py"]
    return key_of([file_digest(path) for path in files])


def deploy(settings: Settings) -> None:
    """Have the deployments made by a child: it needs the server's address before it imports prefect."""
    env, log = {**os.environ, **QUIET, **client_environment(settings, ["prefect"])}, home() / "logs" / "deploy.log"
    say("making the deployments")
    with log.open("ab") as file:
        done = subprocess.run(
            [sys.executable, "-m", "flows.deploy"], stdout=file, stderr=file, env=env, cwd=ROOT, check=False
        )
    if done.returncode:
        raise UserError(f"the deployments could not be made; the log says why: {log}")


def await_answers(names: list[str], limit_s: float = 180.0) -> None:
    """Return when every service answers; UserError for one that stops, or that takes too long."""
    began, shown = time.monotonic(), 0.0
    for name in names:
        while not ((server := known().get(name)) and server.healthy):
            waited = time.monotonic() - began
            if waited > limit_s or not server:
                what = "does not answer" if server else "stopped"
                raise UserError(f"{name} {what} after {waited:.0f} s; its log says why: {home() / 'logs' / name}.log")
            if waited > shown + 5:
                shown = waited
                say(f"waiting for {name} ({waited:.0f} s; the first start makes the databases)")
            time.sleep(0.2)


def down() -> list[str]:
    """End what `up` started, children included; returns the names."""
    servers = known()
    end([process for name in HEALTH for process in family(name)])
    return list(servers)


def end(processes: list[psutil.Process]) -> None:
    """End them, politely at first; one that ends by itself meanwhile is as good."""
    for how, grace_s in ((psutil.Process.terminate, 10), (psutil.Process.kill, 1)):
        for process in processes:
            with suppress(psutil.Error):
                how(process)
        processes = psutil.wait_procs(processes, grace_s)[1]


def free_port(usual: int, given: int | None = None, taken: Sequence[int] = ()) -> int:
    """The given port, which must be free and not `taken`; else the usual one or, where somebody has that, any other."""
    for port in [given] if given else [usual, 0]:
        if port in taken:
            continue
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
    for name, variable in ADDRESSES.items():
        if (server := known().get(name)) and server.healthy:
            told = client_environment(Settings.load(), [name])
            if os.environ.get(variable, told[variable]) == told[variable]:  # another server gets no password of ours
                settings |= told
    os.environ.update(settings | os.environ)
    return os.environ.get("MLFLOW_TRACKING_URI")


def tracking() -> str:
    """MLflow's address; UserError where none is known."""
    if not (uri := connect()):
        raise UserError("no MLflow server is known; start it with `gptloom up` or set MLFLOW_TRACKING_URI")
    return uri
