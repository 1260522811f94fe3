"""Run a recipe: choose the stages, open the session, weave, and report.

In: a `Recipe` and the switches of `gptloom run`. Out: a `Session` whose results tell what became of every stage.
With a Prefect server known it is a flow run there; without one the same stages run as plain functions.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flows.pipeline import Recipe, gptloom, weave
from gpt.errors import UserError
from tasks.artifacts import Artifact, Config
from tasks.flowrun import in_flow_run
from tasks.stage import Given, Result, Session, Stage, blank, load, opened, using
from tasks.store import Store, building


def trace(recipe: Recipe, given: Given = MappingProxyType({})) -> Session:
    """A session that visited every stage of a recipe and wanted none: the DAG."""
    with using(Session(Store(Path()), wanted=frozenset(), given=given)) as dag:
        weave(recipe)
    return dag


def run(
    recipe: Recipe, store: Store, *, until: str = "", start: str = "", only: str = "", force: Sequence[str] = (),
    given: Given = MappingProxyType({}), note: str = "", report: Callable[[Session], None] = lambda session: None,
) -> Session:  # fmt: skip
    """Run the recipe; `given` replaces inputs of stages, `report` sees the session in the end, also after a failure."""
    dag = trace(recipe, given)
    for name in filter(None, (until, start, only, *force)):
        if name not in dag.edges:
            raise UserError(f"{name}: no stage of this recipe; it has {', '.join(dag.edges)}")
    if only and (until or start):
        raise UserError("--only stands alone; drop --from and --until")
    last, first = until or only, start or only
    if start and until and start not in dag.above(until) | {until}:
        raise UserError(f"--from {start} does not lead to --until {until}; turn them round or drop one")
    session = Session(store, recipe.runtime, force=frozenset(force), given=given, note=note)
    session.wanted = dag.above(last) | {last} if last else frozenset(dag.edges)
    session.must_hit = session.wanted - dag.below(first) - {first} if first else frozenset()
    for name in force:
        if name in session.must_hit or name not in session.wanted:
            raise UserError(f"--force {name}: this run does not build it; mend --from, --only or --until")
    params = recipe.model_dump(mode="json", exclude={"runtime"})
    try:
        with opened(recipe.name, params, session, os.environ.get("MLFLOW_TRACKING_URI")):
            (gptloom if os.environ.get("PREFECT_API_URL") and not in_flow_run() else weave)(recipe)
    finally:
        report(session)
    return session


def known_stages() -> list[str]:
    """Every stage there is, in the recipe's order."""
    return [name for name in Recipe.model_fields if name not in ("name", "runtime")]


def summary(session: Session, error: str | None) -> dict[str, Any]:
    """The object of `--json`."""
    stages = [asdict(session.results.get(name, Result(name))) for name in known_stages()]
    return {"run": session.tracker.id, "error": error, "stages": stages}


class Look(Session):
    """A session that builds nothing: what is in the store is a hit, what hangs on a miss is unknown."""

    def run(self, stage: Stage, config: Config, inputs: Mapping[str, Artifact]) -> Artifact:
        result = self.results[stage.name] = Result(stage.name, "unknown")
        if any(not artifact.digest for artifact in inputs.values()):
            return blank(stage)
        with building(self.store, stage.name, stage.version):
            result.key, _ = stage.identify(config, inputs)
        if not (found := self.store.open(stage.name, result.key)):
            result.cache = "miss"
            return blank(stage)
        artifact = load(stage.kind, *found)
        result.cache, result.digest, result.path = "hit", artifact.digest, str(artifact.path)
        result.metrics, result.seconds = artifact.metrics, found[1]["seconds"]
        return artifact


def look(recipe: Recipe, store: Store) -> Session:
    """Each stage's key and cache state, as far as they can be known without building."""
    with using(Look(store)) as session:
        weave(recipe)
    return session
