"""Run one stage again, with other settings or other inputs: of a recipe, or as it was made for a model.

In: a stage's name, a recipe or the REF of a model or artifact, changes, input REFs. Out: the run's session.
With a recipe what lies above must be in the store. With a REF settings and inputs are those of its own lineage, as the
manifests tell, so any registered model can be evaluated or exported anew.
"""

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import pipeline
from flows.lineage import model_folder
from flows.recipe import checked, load, presets, put
from flows.run import look, run
from gpt.errors import UserError
from tasks import artifacts
from tasks.artifacts import Artifact, Checkpoint
from tasks.stage import Session, Stage
from tasks.stage import load as load_artifact
from tasks.store import Manifest, Store


def rerun(
    name: str, of: str, store: Store, changes: Mapping[str, Any], inputs: Mapping[str, str], force: bool
) -> Session:
    """Run the stage; `changes` are settings to change (nested, None: as it was), `inputs` REFs by the input's name."""
    stage = stage_named(name)
    settings = flat(changes, stage.config_type)
    told = [f"{name}.{path}={json.dumps(value, ensure_ascii=False)}" for path, value in settings]
    given = {port: artifact(store, ref, kinds(stage)[port]) for port, ref in inputs.items() if ref}
    if of in presets() or Path(of).suffix in (".yaml", ".yml"):
        recipe, before = load(of, told), look(load(of), store).results.get(name)
    else:
        made = ancestor(store, locate(store, of)[1], name)
        recipe, before = recorded(name, made, told), made
        noted = {port: _same(store, one) for port, one in made["inputs"].items()}
        given = {**dict.fromkeys(stage.parameters[1:]), **noted, **given}  # what it was made without, it is without
    key = before["key"] if isinstance(before, dict) else before.key if before else ""
    note = f"`{name}:{key}` with {', '.join(f'`{one}`' for one in told)}" if told else f"As in {of}."
    return run(recipe, store, only=name, force=[name] if force else [], given={name: given}, note=note)


def stage_named(name: str) -> Stage:
    """The stage of that name."""
    return getattr(pipeline, name)


def kinds(stage: Stage) -> dict[str, type[Artifact]]:
    """The stage's inputs and what each must be."""
    hints = typing.get_type_hints(stage.fn)
    found = {port: [*typing.get_args(hints[port]), hints[port]] for port in stage.parameters[1:]}
    return {port: next(kind for kind in these if isinstance(kind, type)) for port, these in found.items()}


def flat(changes: Mapping[str, Any], kind: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every setting of `kind` that is to change; "none" stands for null."""
    types = typing.get_type_hints(kind)
    for name, value in changes.items():
        if dataclasses.is_dataclass(types.get(name)) and isinstance(value, Mapping):
            yield from flat(value, types[name], f"{above}{name}.")
        elif value is not None:
            yield f"{above}{name}", None if value == "none" else value


def locate(store: Store, ref: str) -> tuple[Path, Manifest]:
    """The artifact behind `stage:key`, a path, or a registered model's `models:/...`."""
    return store.find(str(model_folder(store, ref)) if ref.startswith("models:/") else ref)


def artifact(store: Store, ref: str, kind: type[Artifact]) -> Artifact:
    """The typed artifact behind a REF; where a checkpoint is due, a release stands for the one it was made from."""
    path, manifest = locate(store, ref)
    if kind is Checkpoint and manifest["type"] == "Release":
        return _same(store, manifest["inputs"]["model"])
    return load_artifact(kind, path, manifest)


def ancestor(store: Store, manifest: Manifest, name: str) -> Manifest:
    """The nearest artifact of a stage in an artifact's lineage, itself included."""
    level = [manifest]
    while level:
        if found := next((m for m in level if m["stage"] == name), None):
            return found
        above = {(i["stage"], i["key"], i["digest"]) for m in level for i in m["inputs"].values()}
        level = [store.find(f"{stage}:{key}", digest)[1] for stage, key, digest in sorted(above)]
    raise UserError(f"{manifest['stage']}:{manifest['key']} was made without {name}; name a model that has it")


def recorded(name: str, made: Manifest, told: Sequence[str]) -> pipeline.Recipe:
    """A recipe in which the stage has the settings that the manifest tells, changed as told."""
    given: dict[str, Any] = {"name": f"{name}:{made['key']}", name: made["config"]}
    for override in told:
        put(given, override)
    return checked(given, f"{name}:{made['key']}")


def _same(store: Store, noted: Mapping[str, str]) -> Artifact:
    """An input as a manifest notes it."""
    path, manifest = store.find(f"{noted['stage']}:{noted['key']}", noted["digest"])
    return load_artifact(getattr(artifacts, manifest["type"]), path, manifest)
