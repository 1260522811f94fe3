"""Lineage: from a model or artifact down to its source files, by the store's manifests or by MLflow alone.

In: a REF. Out: the tree of tasks/lineage.py, the same either way but for `run`: MLflow's own id there, the journal's in
the store. A run names its inputs and outputs in tags, so one search for a pipeline's runs leads to the sources.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.servers import tracking
from gpt.errors import UserError
from tasks.courier import makers
from tasks.lineage import EARLIER, Tree, grown, leaf, name, page
from tasks.notes import NAME
from tasks.store import Store


def from_store(store: Store, ref: str, digest: str = "") -> Tree:
    """The tree of an artifact in the store."""
    path, manifest = store.find(ref, digest)
    return grown(store.root, manifest, path, {})


def from_mlflow(ref: str, uri: str) -> Tree:
    """The tree of a registered model, walked on the MLflow server alone: no file of the store is read."""
    client, model = logged_model(ref, uri)
    return Walk(client, model.experiment_id).tree(name_of(model), model.tags["artifact.digest"])


class Walk:
    """The runs of the pipelines met so far, by what they put out."""

    def __init__(self, client: Any, experiment: str):
        self.client, self.experiment = client, experiment
        self.runs, self.trees = dict[tuple[str, str], Any](), dict[tuple[str, str], Tree]()

    def run(self, artifact: str, digest: str) -> Any:
        """The run that put this out; with it come all runs of its pipeline, which is where its inputs are."""
        if (artifact, digest) not in self.runs:
            if not (found := makers(self.client, self.experiment, artifact, digest)):
                what = f"MLflow knows no run that put out {artifact} with content {digest[:12]}"
                raise UserError(f"{what}; `gptloom sync` delivers held-back runs")
            self.runs[artifact, digest] = found[0]
            parent = found[0].data.tags["mlflow.parentRunId"]
            for run in self.client.search_runs([self.experiment], f"tags.`mlflow.parentRunId` = '{parent}'"):
                made = run.data.tags
                out = made.get(f"artifact.out.{made['stage']}", "")
                self.runs.setdefault((f"{made['stage']}:{made['artifact.key']}", out), run)
        return self.runs[artifact, digest]

    def tree(self, artifact: str, digest: str, left: int = EARLIER) -> Tree:
        """The tree of an artifact; a leaf where none are left to follow."""
        if left < 0:
            return leaf(artifact, digest)
        if (artifact, digest) not in self.trees:
            run = self.run(artifact, digest)
            tags, config = run.data.tags, run.data.params
            named = [value.partition("@") for name, value in tags.items() if name.startswith("artifact.in.")]
            facts = {"created": tags["artifact.created"], "seconds": float(tags["artifact.seconds"])}
            facts |= {"run": tags.get("cache.source_run_id", run.info.run_id), "headline": tags["artifact.headline"]}
            same = f"{tags['stage']}:"
            facts["inputs"] = [self.tree(a, content, left - a.startswith(same)) for a, _, content in named]
            facts |= {"config": config, "sources": sources(run)}
            self.trees[artifact, digest] = leaf(artifact, digest) | facts
        return self.trees[artifact, digest]


def sources(run: Any) -> list[dict[str, Any]]:
    """The source files among a run's dataset chips."""
    chips = [{tag.key: tag.value for tag in chip.tags} for chip in run.inputs.dataset_inputs]
    read = [chip for chip in chips if chip["mlflow.data.context"] == "source"]
    counts = [{name: int(chip[name]) for name in ("documents", "bytes")} for chip in read]
    names = ("path", "kind", "digest")
    return [{name: chip[name] for name in names} | has for chip, has in zip(read, counts, strict=True)]


def registered(ref: str, uri: str) -> tuple[Any, Any]:
    """(client, version) for `models:/NAME@alias` or `models:/NAME/version`."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient, MlflowException

    client = MlflowClient(uri, uri)
    name, _, alias = ref.removeprefix("models:/").partition("@")
    try:
        if alias:
            return client, client.get_model_version_by_alias(name, alias)
        return client, client.get_model_version(*name.split("/"))
    except (MlflowException, TypeError) as error:
        if getattr(error, "error_code", "") == "INTERNAL_ERROR":  # what its client says of a server that is away
            what = f"MLflow at {uri} does not answer ({str(error).splitlines()[0][:120]})"
            raise UserError(f"{what}; see `gptloom status`, or mend MLFLOW_TRACKING_URI") from error
        what = f"{ref}: no such registered model, alias or version"
        raise UserError(f"{what}; models:/gptloom@challenger is the newest") from error


def logged_model(ref: str, uri: str) -> tuple[Any, Any]:
    """(client, external model) of a registered one."""
    client, version = registered(ref, uri)
    return client, release(client, version)


def release(client: Any, version: Any) -> Any:
    """The external model of a version; UserError for one that no stage has made."""
    from mlflow import MlflowException

    source = str(version.source)
    with suppress(MlflowException):
        model = client.get_logged_model(source.removeprefix("models:/")) if source.startswith("models:/") else None
        if model and "artifact.key" in model.tags:
            return model
    what = f"models:/{version.name}/{version.version} was not registered by gptloom: its source is {source}"
    raise UserError(f"{what}; name a version that `export` made, as models:/{NAME}@challenger")


def name_of(model: Any) -> str:
    """The artifact that an external model stands for."""
    return f"{model.tags['stage']}:{model.tags['artifact.key']}"


def write_page(file: Path, tree: Tree) -> None:
    """The tree as one HTML page; UserError where it cannot be written."""
    try:
        file.write_text(page(tree), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {file}: {error.strerror}; name a file in a folder of your own") from error


def as_text(tree: Tree) -> str:
    """The tree, indented; what was shown once is named, not repeated."""
    return "\n".join(_lines(tree, 0, set()))


def _lines(tree: Tree, depth: int, shown: set[str]) -> list[str]:
    again = name(tree) in shown
    shown.add(name(tree))
    lines = [f"{'  ' * depth}{tree['artifact']}  {tree['digest'][:12]}{'  (above)' if again else ''}"]
    if not again:
        lines += [f"{'  ' * (depth + 1)}source {s['path']}  {s['digest'][:12]}" for s in tree["sources"]]
        lines += [line for parent in tree["inputs"] for line in _lines(parent, depth + 1, shown)]
    return lines


def model_folder(store: Store, ref: str) -> Path:
    """The checkpoint or release folder behind a REF; a plain Hugging Face folder is its own."""
    digest = ""
    if ref.startswith("models:/"):
        model = logged_model(ref, tracking())[1]
        ref, digest = name_of(model), model.tags["artifact.digest"]
    elif (Path(ref) / "config.json").exists() and not (Path(ref) / "artifact.json").exists():
        return Path(ref)
    path, manifest = store.find(ref, digest)
    if manifest["type"] not in ("Checkpoint", "Release"):
        raise UserError(f"{ref} is a {manifest['type']}, not a model; name pretrain, sft or export")
    return path
