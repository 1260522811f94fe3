"""The first quarter of an hour: servers, the demo recipe, and what came of it, told in one page.

In: a store. Out: on stdout the table of stages with measured effects, a sample, a chat answer, links, the next command.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from typer import echo

from flows.cli import table
from flows.servers import connect, up
from tasks.stage import Session
from tasks.store import Store


def demo(store: Store) -> None:
    """Bring the servers up, run the demo recipe, show what every stage did."""
    echo("gptloom demo: two servers, then raw text to a chat model; about 6 minutes on 2 cores", err=True)
    servers = up({})
    connect()
    from flows.recipe import load
    from flows.run import run

    session = run(load("demo"), store)
    echo("\n" + table(session))
    effects(session)
    samples(session)
    echo(f"\nLook at it\n  Prefect  {servers['prefect'].url}/runs")
    echo(f"  MLflow   {session.url or servers['mlflow'].url}")
    echo(f"  model    {session.results['export'].path}")
    echo("\nNext" + ("" if shutil.which("gptloom") else "\n  source .venv/bin/activate"))
    echo("  gptloom run demo --set 'ingest.sources=[YOUR.txt]' --set name=mine    # your own text, same recipe")
    echo('  gptloom sample sft --start "The " --num-samples 3')
    echo("  gptloom down                                                          # stop the two servers")


def effects(session: Session) -> None:
    """What each stage changed: documents removed, then every measure of the models beside its trivial baselines."""
    echo("\nWhat it did")
    for stage in ("filter", "dedup"):
        result = session.results[stage]
        echo(f"  {stage}: {result.metrics['data/dropped']:,.0f} documents removed, for example")
        for row in list({row["reason"]: row for row in report(result.path, "examples.json")}.values())[:3]:
            echo(f"    {row['reason']:<15} {brief(row['detail'])}")
            if "kept" in row:
                echo(f"    {'  kept':<15} {brief(row['kept'])}")
    scores = report(session.results["evaluate"].path, "scores.json")
    for measure in dict.fromkeys(row["measure"] for row in scores):
        values = ", ".join(f"{row['who']} {row['value']:.3f}" for row in scores if row["measure"] == measure)
        echo(f"  {measure + ':':<18} {values}")


def report(path: str, name: str) -> list[dict[str, Any]]:
    """A table of a stage's report."""
    return json.loads((Path(path) / "report" / name).read_text(encoding="utf-8"))


def brief(text: str) -> str:
    """The text's beginning on one line."""
    return " ".join(text.split())[:100]


def samples(session: Session) -> None:
    """A sample of the base model, and a question to the chat model with its answer, as evaluate drew them."""
    drawn = (Path(session.results["evaluate"].path) / "samples.txt").read_text(encoding="utf-8").split("-" * 15 + "\n")
    for start in ("== base, from nothing", "== sft, prompts", "== sft, harmful", "== sft, harmless"):
        echo(next((text for text in drawn if text.startswith(start)), "").strip()[:600])
