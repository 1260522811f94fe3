"""The first quarter of an hour: servers, the demo recipe, and what came of it, told in one page.

In: a store. Out: on stdout the table of stages with measured effects, a sample, a chat answer, links, the next command.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from tasks.stage import Session
    from tasks.store import Store


def demo(store: "Store") -> None:
    """Bring the servers up, run the demo recipe, show what every stage did."""
    typer.echo("gptloom demo: two servers, then raw text to a chat model; about 6 minutes on 2 cores", err=True)
    from flows.servers import connect, up

    servers = up({})
    connect()
    from flows.cli import table
    from flows.recipe import load
    from flows.run import run

    session = run(load("demo"), store)
    typer.echo("\n" + table(session))
    effects(session)
    samples(session)
    typer.echo("\nLook at it")
    typer.echo(f"  Prefect  {servers['prefect'].url}/runs")
    typer.echo(f"  MLflow   {session.url or servers['mlflow'].url}")
    typer.echo(f"  model    {session.results['export'].path}")
    typer.echo("\nNext")
    typer.echo("  gptloom run demo --set 'ingest.sources=[your.txt]' --set name=mine    # your own text, same recipe")
    typer.echo('  gptloom sample sft --start "The " --num-samples 3')
    typer.echo("  gptloom down                                                          # stop the two servers")


def effects(session: "Session") -> None:
    """What each stage changed, beside its trivial baseline, with a removed document of each kind."""
    typer.echo("\nWhat it did")
    for stage in ("filter", "dedup"):
        result = session.results[stage]
        typer.echo(f"  {stage}: {result.metrics['data/dropped']:,.0f} documents removed, for example")
        for row in rows(result.path, "examples.json")[:2]:
            typer.echo(f"    {row['reason']}: {' '.join(str(row['excerpt']).split())[:90]}")
    typer.echo((Path(session.results["evaluate"].path) / "report" / "scores.md").read_text())


def rows(path: str, name: str) -> list[dict[str, Any]]:
    """A table of a stage's report."""
    file = Path(path) / "report" / name
    return json.loads(file.read_text()) if file.exists() else []


def samples(session: "Session") -> None:
    """A sample of the base model and an answer of the chat model, as evaluate drew them."""
    typer.echo((Path(session.results["evaluate"].path) / "samples.txt").read_text()[:1500])
