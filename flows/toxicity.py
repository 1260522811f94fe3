"""Train a model of toxic lines: a clean sample is read by ingest, labelled texts by the stage that learns from both.

In: labelled sources, clean sources, overrides as a recipe has them. Out: a `Session` with an artifact `toxicity:KEY`,
for `filter.toxicity.model`. With a Prefect server known it is a flow run there; lineage and figures go to MLflow.
"""

import os
from collections.abc import Sequence
from typing import Any

from prefect import flow
from pydantic import ValidationError

from flows.recipe import put
from gpt.errors import UserError
from tasks.artifacts import Classifier, Config
from tasks.ingest import Ingest, ingest
from tasks.runtime import Runtime
from tasks.stage import Session, at_work, opened
from tasks.store import Store
from tasks.toxicity import Toxicity, toxicity


class Lesson(Config):
    """What to learn from: a recipe of two stages."""

    name: str = "train-toxicity"
    """What the run is called in Prefect and MLflow."""
    ingest: Ingest = Ingest()
    """Clean sources to documents."""
    toxicity: Toxicity = Toxicity()
    """Labelled texts and clean documents to a model."""
    runtime: Runtime = Runtime()
    """How to run; outside every key."""


def lesson(data: Sequence[str], clean: Sequence[str], overrides: Sequence[str]) -> Lesson:
    """The checked settings; overrides read `toxicity.label_column=tag` or `ingest.max_mb=20`."""
    given: dict[str, Any] = {"toxicity": {"data": list(data)}, "ingest": {"sources": list(clean)}}
    for override in overrides:
        put(given, override)
    try:
        return Lesson(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = f"settings are those of {', '.join(Toxicity.model_fields)} and of ingest"
        raise UserError(f"{key}={first['input']!r} does not fit: {first['msg']}; {known}") from error


def train(what: Lesson, store: Store) -> Session:
    """The session in which the model was trained, or found."""
    session, params = Session(store, what.runtime), what.model_dump(mode="json", exclude={"runtime"})
    with opened(what.name, params, session, os.environ.get("MLFLOW_TRACKING_URI")):
        (train_toxicity if os.environ.get("PREFECT_API_URL") else weave)(what)
    return session


@flow(name="train-toxicity")
def train_toxicity(what: Lesson) -> Classifier:
    """Labelled texts and a clean sample in, a model of toxic lines out."""
    with at_work(what.name, what.model_dump(mode="json", exclude={"runtime"}), what.runtime):
        return weave(what)


def weave(what: Lesson) -> Classifier:
    """The DAG."""
    return toxicity(what.toxicity, ingest(what.ingest))


def lines(session: Session) -> list[str]:
    """What the model can do, and what to write into a recipe."""
    made = session.results["toxicity"]
    figures = [f"{name.removeprefix('eval/'):<24} {value:.4f}" for name, value in made.metrics.items() if "/" in name]
    look = f"look at the clean lines that it takes for toxic: {made.path}/report"
    return [*figures, look, f"in a recipe: filter: {{toxicity: {{model: 'toxicity:{made.key}'}}}}"]
