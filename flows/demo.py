"""The first quarter of an hour: servers, the demo recipe, and what came of it, told in one page.

In: a store. Out: on stdout the table of stages with measured effects, a sample, a chat answer, links, the next command.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer import echo

from flows.commands.common import table
from flows.servers import connect, up
from tasks.stage import Session
from tasks.store import Store

MODELS = ("base", "sft", "prefer", "rl")
"""As evaluate names them."""


def demo(store: Store) -> None:
    """Bring the servers up, run the demo recipe, show what every stage did."""
    echo("gptloom demo: servers and a worker, then raw text to a chat model; about 8 minutes on 2 cores", err=True)
    servers = up({}, store=store.root)
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
    echo('  gptloom sample pretrain --start "The " --num-samples 3')
    echo("  gptloom chat rl                                                       # ask it something")
    echo("  gptloom down                                                          # stop the servers")


def effects(session: Session) -> None:
    """What each stage changed: documents removed, then every measure of the models beside its trivial baselines."""
    echo("\nWhat it did")
    for stage in ("filter", "dedup"):
        result = session.results[stage]
        echo(f"  {stage}: {result.metrics['data/dropped']:,.0f} documents removed, for example")
        for row in list({row["reason"]: row for row in report(result.path, "examples.json")}.values())[:3]:
            echo(f"    {row['reason']:<15} {brief(row['detail'])}")
            if row["kept"]:
                echo(f"    {'  kept':<15} {brief(row['kept'])}")
    for line in standings(report(session.results["evaluate"].path, "scores.json")):
        echo(f"  {line}")


def standings(scores: list[dict[str, Any]]) -> Iterator[str]:
    """A line a measure: each model's value, with its 95 % interval where it is a share, then the trivial baselines."""
    models = [who for who in MODELS if any(row["who"] == who for row in scores)]
    yield " " * 17 + "".join(f"{who:<20}" for who in models) + "beside"
    for measure in dict.fromkeys(row["measure"] for row in scores):
        rows = {row["who"]: row for row in scores if row["measure"] == measure}
        cells = "".join(f"{told(rows[who]) if who in rows else '-':<20}" for who in models)
        others = ", ".join(f"{who} {row['value']:.3f}" for who, row in rows.items() if who not in models)
        yield f"{measure:<17}{cells}{others}"


def told(row: dict[str, Any]) -> str:
    """`0.876 (0.847-0.900)`, or the value alone."""
    return f"{row['value']:.3f}" + ("" if row["low"] is None else f" ({row['low']:.3f}-{row['high']:.3f})")


def report(path: str, name: str) -> list[dict[str, Any]]:
    """A table of a stage's report."""
    return json.loads((Path(path) / "report" / name).read_text(encoding="utf-8"))


def brief(text: str) -> str:
    """The text's beginning on one line."""
    return " ".join(text.split())[:100]


def samples(session: Session) -> None:
    """A sample of the base model, and a question to the chat model with its answer, as evaluate drew them."""
    drawn = (Path(session.results["evaluate"].path) / "samples.txt").read_text(encoding="utf-8").split("-" * 15 + "\n")
    final = [who for who in MODELS[1:] if who in session.results][-1]
    for start in ("== base, from nothing", *(f"== {final}, {kind}" for kind in ("prompts", "harmful", "harmless"))):
        echo(next((text for text in drawn if text.startswith(start)), "").strip()[:600])
