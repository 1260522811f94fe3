"""What people start from Prefect's UI beside the whole pipeline: a stage, a refresh, a promotion; each a thin flow.

In: the forms of the UI. Out: runs; prefect.yaml names these flows, one a stage, by module and name. A stage's form has
every setting of the stage, empty where it shall be as the recipe has it, and every input.
"""

import dataclasses
import typing
from typing import Any, Literal

from prefect import Flow, flow
from pydantic import BaseModel, Field, TypeAdapter, create_model

from flows.pipeline import Recipe, gptloom
from flows.recipe import load, presets
from flows.rerun import kinds, rerun, stage_named
from flows.run import known_stages
from flows.servers import tracking
from tasks.artifacts import Artifact
from tasks.flowrun import show_note
from tasks.stage import Stage
from tasks.store import default_store


def form(kind: Any, name: str) -> type[BaseModel]:
    """A model with the fields of a stage's settings, each of which may be left empty."""
    whole: dict[str, Any] = TypeAdapter(kind).json_schema()
    fields: dict[str, Any] = {}
    types: dict[str, Any] = typing.get_type_hints(kind)
    for field in whole["properties"]:
        annotation = types[field]
        about = whole["properties"][field]
        told = f"{about.get('description', '')} Default {about.get('default')}."
        inner: Any = form(annotation, f"{name}_{field}") if dataclasses.is_dataclass(annotation) else annotation
        off = Literal["none"] if type(None) in typing.get_args(annotation) else None
        told += " The word none switches it off." if off else ""
        fields[field] = (inner | off | None, Field(None, description=told, json_schema_extra=plain))
    return create_model(name, __doc__="Empty: as the recipe has it.", **fields)


def plain(schema: dict[str, Any]) -> None:
    """In the UI an empty field, where a schema that allows null would show a switch between a type and None.

    A select and an object keep the switch: the UI sends null for them even when nobody touched them.
    """
    kinds_ = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    if not any("enum" in kind or kind.get("type") == "object" for kind in kinds_):
        del schema["default"], schema["anyOf"]
        schema |= kinds_[0] if len(kinds_) == 1 else {"anyOf": kinds_}


def of_preset(name: str) -> Flow:
    """The pipeline with a preset's settings in its form."""

    def body(recipe: Recipe) -> Artifact:
        return gptloom.fn(recipe)

    body.__defaults__, body.__doc__ = (load(name),), gptloom.fn.__doc__
    return Flow(body, name=gptloom.name, flow_run_name=gptloom.flow_run_name, description=presets()[name])


def of_stage(stage: Stage) -> Flow:
    """The flow that runs one stage again."""
    changes = form(stage.config_type, f"{stage.name}_changes")
    about = {port: f"{kind.__name__}: stage:key, a path, models:/..." for port, kind in kinds(stage).items()}
    ports: Any = {port: (str, Field("", description=f"{told} Empty: the recipe's.")) for port, told in about.items()}
    inputs = create_model(f"{stage.name}_inputs", __doc__="Take these instead of what the recipe gives.", **ports)

    def body(recipe: str = "demo", changes: Any = None, inputs: Any = None, force: bool = False) -> None:
        told = changes.model_dump(mode="json", exclude_none=True) if changes else {}
        rerun(stage.name, recipe, default_store(), told, inputs.model_dump() if inputs else {}, force)

    body.__annotations__ |= {"changes": changes, "inputs": inputs}
    body.__defaults__ = ("demo", changes(), inputs(), False)
    body.__doc__ = f"""{stage.doc}

    Args:
        recipe: A preset, a YAML file, or a model or artifact (models:/gptloom@challenger, export:KEY) whose settings
            and inputs are taken. Of a recipe all that lies above this stage must be in the store.
        changes: Settings of this stage that are to be other than there.
        inputs: Artifacts to take instead of those that lie above this stage.
        force: Build it even if the store has it.
    """
    return Flow(body, name=stage.name, flow_run_name=f"{stage.name} of {{recipe}}", description=stage.doc)


globals().update({name: of_stage(stage_named(name)) for name in known_stages()})
globals().update({name.replace("-", "_"): of_preset(name) for name in presets()})


@flow(name="refresh", flow_run_name="refresh of {recipe}")
def refresh(recipe: str = "refresh-nightly", train: bool = False) -> None:
    """Take in new, changed and removed sources; redo only what they change.

    Args:
        recipe: A preset or a YAML file whose sources are looked at again.
        train: Go on training on old and new documents, then all stages down to the release.
    """
    from flows.refresh import refresh as take_in

    report = take_in(load(recipe), default_store(), train)
    show_note("refresh", report.markdown(), f"What the refresh of {recipe} took in")


@flow(name="promote", flow_run_name="promote {model}")
def promote(model: str = "models:/gptloom@challenger", force: bool = False) -> None:
    """Make a registered model the champion, if it is no worse than the one there.

    Args:
        model: The candidate: an alias or a version.
        force: Promote it whatever the comparison says.
    """
    from flows.promote import promote as decide

    verdict = decide(model, tracking(), force)
    show_note("promote", str(verdict), f"Whether {model} became the champion")
