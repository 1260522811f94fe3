"""The first quarter of an hour: servers, the demo recipe, and what came of it, told in one page.

In: a store. Out: on stdout the table of stages with measured effects, a sample, a chat answer, links, the next command.
"""

import json
import shutil
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
    if not shutil.which("gptloom"):
        typer.echo("  source .venv/bin/activate")
    typer.echo("  gptloom run demo --set 'ingest.sources=[YOUR.txt]' --set name=mine    # your own text, same recipe")
    typer.echo('  gptloom sample sft --start "The " --num-samples 3')
    typer.echo("  gptloom down                                                          # stop the two servers")


def effects(session: "Session") -> None:
    """What each stage changed: documents removed, then every measure of the models beside its trivial baselines."""
    typer.echo("\nWhat it did")
    for stage in ("filter", "dedup"):
        result = session.results[stage]
        typer.echo(f"  {stage}: {result.metrics['data/dropped']:,.0f} documents removed, for example")
        for row in list({row["reason"]: row for row in report(result.path, "examples.json")}.values())[:3]:
            typer.echo(f"    {row['reason']:<15} {brief(row['detail'], 100)}")
            if "kept" in row:
                typer.echo(f"    {'  kept':<15} {brief(row['kept'], 100)}")
    scores = report(session.results["evaluate"].path, "scores.json")
    for measure in dict.fromkeys(row["measure"] for row in scores):
        rows = [row for row in scores if row["measure"] == measure]
        typer.echo(f"  {measure + ':':<18} " + ", ".join(f"{row['who']} {row['value']:.3f}" for row in rows))


def report(path: str, name: str) -> list[dict[str, Any]]:
    """A table of a stage's report."""
    return json.loads((Path(path) / "report" / name).read_text(encoding="utf-8"))


def brief(text: str, length: int) -> str:
    """The text's beginning on one line."""
    return " ".join(text.split())[:length]


def samples(session: "Session") -> None:
    """A sample of the base model, and a question to the chat model with its answer, as evaluate drew them."""
    drawn = (Path(session.results["evaluate"].path) / "samples.txt").read_text(encoding="utf-8").split("-" * 15 + "\n")
    for start in ("== base, from nothing", "== sft, prompts", "== sft, harmful", "== sft, harmless"):
        typer.echo(next((text for text in drawn if text.startswith(start)), "").strip()[:600])
