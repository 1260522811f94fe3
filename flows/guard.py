"""Both servers behind a check of who asks: only their own address as Host, only their own pages as Origin.

In: `uvicorn --factory flows.guard:prefect`, `mlflow server --app-name gptloom`, GUARD_ORIGINS. Out: their ASGI apps,
403 for everything else. Why: Prefect answers any Host and checks no websocket's Origin, so any page that somebody opens
in a browser could reach a server on loopback under a name of its own (DNS rebinding); MLflow checks no GET's Origin.
"""

import os
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose


class Guard:
    """ASGI middleware: refuses foreign hosts and origins, for plain requests and for websockets."""

    def __init__(self, app: ASGIApp, origins: list[str]):
        self.app, self.origins = app, frozenset(origins)
        self.hosts = frozenset(origin.partition("://")[2] for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what comes from us."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            if headers.get("host") not in self.hosts or headers.get("origin", min(self.origins)) not in self.origins:
                websocket, refusal = scope["type"] == "websocket", PlainTextResponse("foreign host or origin\n", 403)
                return await (WebSocketClose(1008) if websocket else refusal)(scope, receive, send)
        await self.app(scope, receive, send)


def guarded(app: Any) -> Guard:
    """An app that answers only to the addresses in GUARD_ORIGINS."""
    return Guard(app, os.environ["GUARD_ORIGINS"].split(","))


def prefect() -> Guard:
    """Prefect's app, guarded.

    On SQLite its transactions begin as readers, and fail at once (503, "database is locked") where another one has
    written before they come to write: 31 times while five runs went on at once, none where they begin as writers.
    """
    from prefect.server.api.server import create_app
    from prefect.server.database.configurations import AioSqliteConfiguration as Sqlite

    begin = Sqlite.begin_transaction
    Sqlite.begin_transaction = lambda self, session, with_for_update=False: begin(self, session, with_for_update=True)
    return guarded(create_app(final=True))


def mlflow() -> Guard:
    """MLflow's app, with passwords where settings.py named a file of users, guarded."""
    if "MLFLOW_AUTH_CONFIG_PATH" in os.environ:
        from mlflow.server.auth import create_app

        return guarded(create_app())
    from mlflow.server.fastapi_app import app

    return guarded(app)
