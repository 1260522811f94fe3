"""`gptloom run, refresh, train-toxicity, demo, show, presets, plan`: what works on a recipe.

In: a recipe's name and overrides. Out: artifacts in the store and a table of them, or what there would be.
"""

import json
import sys
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, echo

from flows.commands.common import Json, RecipeName, Sets, StoreDir, recipe_of, store_at, table

if TYPE_CHECKING:
    from tasks.stage import Session

Whole = Annotated[bool, Option("--config", help="Print the whole recipe, defaults included, as YAML.")]
Gpus = Annotated[str, Option(help="Hardware to plan for, such as 8xH100; default: this machine's CPU.")]


def run(
    recipe: RecipeName,
    set_: Sets = None,
    until: Annotated[str, Option(help="Build up to this stage, inclusive.")] = "",
    from_: Annotated[str, Option("--from", help="What lies above this stage must be in the store.")] = "",
    only: Annotated[str, Option(help="This stage alone; what lies above it must be in the store.")] = "",
    force: Annotated[list[str] | None, Option(help="Build this stage anew; repeatable.")] = None,
    store: StoreDir = None,
    as_json: Annotated[bool, Option("--json", help="End with one JSON object on stdout, also on failure.")] = False,
) -> None:
    """Run a recipe: every stage that is not in the store yet."""
    echo(f"gptloom: {recipe}", err=True)
    seen: list[Session] = []
    try:
        loaded, at = recipe_of(recipe, set_), store_at(store, writes=True)
        from flows import run as runner

        runner.run(loaded, at, until=until, start=from_, only=only, force=force or [], report=seen.append)
    finally:
        if as_json:
            problem = sys.exception()
            error = (str(problem) or type(problem).__name__) if problem else None
            blank = {"run": None, "error": error, "stages": []}
            echo(json.dumps(runner.summary(seen[0], error) if seen else blank))
        elif seen:
            echo(table(seen[0]))


def refresh(
    recipe: RecipeName,
    set_: Sets = None,
    store: StoreDir = None,
    train: Annotated[bool, Option("--train", help="Go on training from the last model, down to export.")] = False,
    as_json: Json = False,
) -> None:
    """Take in what is new among a recipe's sources, and only that."""
    echo(f"gptloom: {recipe}", err=True)
    loaded, at = recipe_of(recipe, set_), store_at(store, writes=True)
    from flows.refresh import refresh as take_in

    made = take_in(loaded, at, train)
    echo(json.dumps(made.as_json()) if as_json else "\n".join(made.lines()))


def train_toxicity(
    data: Annotated[list[str], Argument(help="Labelled texts: CSV, parquet, JSONL with text, label and maybe lang.")],
    clean: Annotated[list[str] | None, Option(help="Clean text of your kind: what ingest.sources takes.")] = None,
    set_: Sets = None,
    store: StoreDir = None,
) -> None:
    """Train a model of toxic lines for filter.toxicity.model, and say what it can do."""
    echo(f"gptloom: train-toxicity {' '.join(data)}", err=True)
    at = store_at(store, writes=True)
    from flows.servers import connect

    connect()
    from flows.toxicity import lesson, lines, train

    for line in lines(train(lesson(data, clean or ["pydocs"], set_ or []), at)):
        echo(line)


def demo(store: StoreDir = None) -> None:
    """Servers up, the demo recipe end to end, a sample, a chat answer, where to look, what next."""
    from flows.demo import demo as show

    show(store_at(store, writes=True))


def show(recipe: RecipeName = "demo", set_: Sets = None, store: StoreDir = None, config: Whole = False) -> None:
    """The stages of a recipe and whether the store has them."""
    import yaml

    loaded = recipe_of(recipe, set_)
    from flows.run import look

    whole = yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    echo(whole if config else table(look(loaded, store_at(store))))


def presets() -> None:
    """The recipes that ship with gptloom."""
    from flows.recipe import presets as all_presets

    for name, line in all_presets().items():
        echo(f"{name:<18} {line}")


def plan(recipe: RecipeName = "demo", set_: Sets = None, gpus: Gpus = "") -> None:
    """Tokens, parameters, FLOPs, time and memory before anything runs."""
    loaded = recipe_of(recipe, set_)
    from flows.plan import plan as lines

    for line in lines(loaded, gpus):
        echo(line)
