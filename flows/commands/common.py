"""What commands share: switches that mean the same everywhere, the store and the recipe that they name.

In: what was typed. Out: a Store, a Recipe, a table; UserError for what cannot be. Imports of weight live inside.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from gpt.errors import UserError

if TYPE_CHECKING:
    from flows.pipeline import Recipe
    from tasks.stage import Session
    from tasks.store import Store

RecipeName = Annotated[str, Argument(help="A preset's name or a YAML file.", show_default=True)]
Sets = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.")]
StoreDir = Annotated[Path | None, Option("--store", help="The store's folder; default $GPTLOOM_STORE or ./store.")]
Ref = Annotated[str, Argument(help="stage:key, stage (its newest), a path, or models:/gptloom@challenger.")]
Json = Annotated[bool, Option("--json", help="Machine-readable output.")]


def store_at(folder: Path | None, writes: bool = False) -> "Store":
    """The store a command works on; UserError for one that is no folder, or where nothing can be written."""
    from tasks.store import Store, default_store

    store = Store(folder.absolute()) if folder else default_store()
    try:
        if writes:
            store.root.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=store.root).close()
        elif store.root.exists():
            os.listdir(store.root)
    except OSError as error:
        raise UserError(f"--store {store.root}: {error.strerror}; name a folder of your own") from error
    return store


def recipe_of(name: str, overrides: list[str] | None) -> "Recipe":
    """A command's recipe; the servers come first, because Prefect reads its settings, telemetry's too, on import."""
    from flows.servers import connect

    connect()
    from flows.recipe import load

    return load(name, overrides or [])


def table(session: "Session") -> str:
    """One line a stage: what it did, how long it took, its headline."""
    from tasks.measures import headline

    lines = [f"{'stage':<10} {'cache':<8} {'seconds':>8}  {'artifact':<28} headline"]
    for r in session.results.values():
        artifact = f"{r.stage}:{r.key}" if r.key else "-"
        lines.append(f"{r.stage:<10} {r.cache:<8} {r.seconds:>8.1f}  {artifact:<28} {headline(r.metrics)}")
    return "\n".join([*lines, *([f"MLflow: {session.url}"] if session.url else [])])
