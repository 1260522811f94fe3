"""What the services on this machine are told: quiet defaults, addresses, databases, credentials; and where it is kept.

In: `gptloom up`'s switches. Out: the environment of each service and of every client. `$GPTLOOM_HOME` (`.gptloom`)
holds `servers.json` (ports, database, store) and, once `--auth` was given, `auth.json`: both for their owner only.
Secrets travel by environment, never by command line, where every user of the machine could read them.
"""

import base64
import json
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt.errors import UserError

QUIET = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "gptloom",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # in memory, as is usual, a killed server forgets who held the slot `gpu`, and nobody gets it ever again
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the automation in flows/deploy.py waits for three of them
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its own five tries take four minutes to say that a server is away
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes and 0.5 GB instead of 10 and 2.2 GB
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
PORTS = {"prefect": 4200, "mlflow": 5000}
DRIVERS = {"prefect": "postgresql+asyncpg", "mlflow": "postgresql+psycopg2", "mlflow_auth": "postgresql+psycopg2"}
"""Databases and their drivers; a bare `postgresql://` means another driver in every release of SQLAlchemy."""
USER = "admin"


def home() -> Path:
    """Where the services keep their databases and logs."""
    return Path(os.environ.get("GPTLOOM_HOME", ".gptloom")).absolute()


@dataclass(frozen=True)
class Settings:
    """What `up` was told, so that the next `up` finds the same addresses, databases and store."""

    ports: dict[str, int] = field(default_factory=dict)
    auth: bool = False
    database: str = ""
    """`postgresql://user:password@host:port`, or empty: SQLite files at home."""
    store: str = ""
    deployed: str = ""
    """Digest of the code whose deployments the Prefect server has."""

    @classmethod
    def load(cls) -> "Settings":
        """Those of the last `up`; the defaults where there was none, or its note is torn."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((home() / "servers.json").read_text()))
        return cls()

    def save(self) -> None:
        """Remember them, atomically."""
        write_private(home() / "servers.json", asdict(self))

    def url(self, name: str) -> str:
        """A server's address; the worker's is its Prefect server's."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def database_of(self, name: str) -> str:
        """The SQLAlchemy address of one of the DRIVERS' databases."""
        if not self.database:
            file = home() / {"prefect": "prefect/prefect.db", "mlflow_auth": "mlflow-auth.db"}.get(name, "mlflow.db")
            return f"sqlite{'+aiosqlite' if name == 'prefect' else ''}:///{file}"
        at = database_url(self.database).set(drivername=DRIVERS[name], database=name)
        return at.render_as_string(hide_password=False)


def write_private(path: Path, value: Any) -> None:
    """A JSON file that only its owner can read, replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(value, file, indent=1)
    fresh.replace(path)


def database_url(database: str) -> Any:
    """The parsed address; UserError for one that is not `postgresql://user:password@host:port`."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    with suppress(ArgumentError, ValueError):
        if (url := make_url(database)).drivername == "postgresql" and url.host and not url.database:
            return url
    raise UserError("--database must read postgresql://user:password@host:port, without the name of a database")


def credentials() -> dict[str, str]:
    """Password and key, made at the first need and kept: MLflow takes another password only through its own API."""
    file = home() / "auth.json"
    if not file.exists():
        write_private(file, {"user": USER, "password": secrets.token_urlsafe(24), "key": secrets.token_urlsafe(24)})
    return json.loads(file.read_text())


def authorization() -> dict[str, str]:
    """The header of a request to either server."""
    if not Settings.load().auth:
        return {}
    known = credentials()
    return {"Authorization": "Basic " + base64.b64encode(f"{known['user']}:{known['password']}".encode()).decode()}


def server_environment(name: str, settings: Settings) -> dict[str, str]:
    """What a service is told, besides its command line."""
    told = {**QUIET, "PREFECT_HOME": str(home() / "prefect")}
    if name == "worker":
        store = {"GPTLOOM_STORE": settings.store, "GPTLOOM_HOME": str(home())}
        return told | client_environment(settings, ["prefect", "mlflow"]) | store | {"PREFECT_LOGGING_LEVEL": "INFO"}
    port, known = settings.ports[name], credentials() if settings.auth else {}
    origins = ",".join(f"http://{host}:{port}" for host in ("127.0.0.1", "localhost"))
    told["GUARD_ORIGINS"] = origins
    if name == "prefect":
        told["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = settings.database_of("prefect")
        told |= {"PREFECT_UI_API_URL": "/api", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins}
        if known:
            told["PREFECT_SERVER_API_AUTH_STRING"] = f"{known['user']}:{known['password']}"
            told["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] = "true"
        return told
    told["MLFLOW_BACKEND_STORE_URI"] = settings.database_of("mlflow")
    if known:
        told |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": known["key"], "MLFLOW_AUTH_CONFIG_PATH": str(home() / "auth.ini")}
        told |= {"MLFLOW_AUTH_ADMIN_USERNAME": known["user"], "MLFLOW_AUTH_ADMIN_PASSWORD": known["password"]}
    return told


def client_environment(settings: Settings, names: list[str]) -> dict[str, str]:
    """Where the named servers are, and how to get in."""
    told, known = {}, credentials() if settings.auth else {}
    if "prefect" in names:
        told |= {"PREFECT_API_URL": f"{settings.url('prefect')}/api", "PREFECT_UI_URL": settings.url("prefect")}
        told |= {"PREFECT_API_AUTH_STRING": f"{known['user']}:{known['password']}"} if known else {}
    if "mlflow" in names:
        told["MLFLOW_TRACKING_URI"] = settings.url("mlflow")
        told |= {"MLFLOW_TRACKING_USERNAME": known["user"]} if known else {}
        told |= {"MLFLOW_TRACKING_PASSWORD": known["password"]} if known else {}
    return told
