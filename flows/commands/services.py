"""`gptloom up, down, status, deploy, sync`: Prefect, MLflow and the worker on this machine.

In: ports, a database. Out: services that run, their addresses.
"""

import os
from typing import Annotated

from typer import Option, echo

from flows.commands.common import StoreDir, store_at
from gpt.errors import UserError

PrefectPort = Annotated[int | None, Option(help="Default 4200, or any free port.")]
MlflowPort = Annotated[int | None, Option(help="Default 5000, or any free port.")]


def up(
    prefect_port: PrefectPort = None,
    mlflow_port: MlflowPort = None,
    auth: Annotated[bool | None, Option(help="Ask for user and password on both servers.")] = None,
    database: Annotated[
        str | None,
        Option(envvar="GPTLOOM_DATABASE", help="postgresql://user:password@host:port; default: SQLite files."),
    ] = None,
    store: StoreDir = None,
) -> None:
    """Start Prefect, MLflow and a worker on this machine, and make the deployments; what was said before is kept."""
    from flows.servers import up as start

    folder = store_at(store, writes=True).root if store else None
    start({"prefect": prefect_port, "mlflow": mlflow_port}, auth=auth, database=database, store=folder)
    status()
    echo("stop them with: gptloom down")


def down() -> None:
    """Stop what `up` started."""
    from flows.servers import down as stop

    echo(f"stopped: {', '.join(stop()) or 'nothing was running'}")


def status() -> None:
    """Which services run, whether they answer, and where things are."""
    from flows.servers import HEALTH, known
    from flows.settings import Settings, home

    servers, settings = known(), Settings.load()
    for name in HEALTH:
        server = servers.get(name)
        about = f"{server.url}  {'up' if server.healthy else 'starting'} (pid {server.pid})" if server else "down"
        echo(f"{name:<8} {about}")
    echo(f"store    {settings.store or '-'}\nlogs     {home() / 'logs'}")
    if settings.auth:
        echo(f"login    user and password stand in {home() / 'auth.json'}")


def deploy() -> None:
    """Make the deployments on the Prefect server of PREFECT_API_URL, else on the one that `up` started."""
    from flows.servers import connect

    connect()
    if "PREFECT_API_URL" not in os.environ:
        raise UserError("no Prefect server is known; start it with `gptloom up` or set PREFECT_API_URL")
    from flows.deploy import main as make

    if make():
        raise UserError("Prefect could not make the deployments; its lines above say why")


def sync(store: StoreDir = None) -> None:
    """Deliver to MLflow what an outage or a run without servers held back."""
    from flows.servers import tracking

    uri = tracking()
    from tasks.courier import sync as deliver

    echo(f"{deliver(store_at(store).root, uri)} runs delivered to {uri}")
