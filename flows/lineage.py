"""Lineage: from a model or artifact down to its source files, by the store's manifests or by MLflow alone.

In: a REF. Out: a tree `{"artifact", "digest", "run", "sources", "inputs": [tree, ...]}` as JSON or indented text.
"""

import json
from pathlib import Path
from typing import Any

from flows.servers import tracking
from gpt.errors import UserError
from tasks.store import Store

Tree = dict[str, Any]


def from_store(store: Store, ref: str, digest: str = "") -> Tree:
    """The tree of an artifact in the store."""
    path, manifest = store.find(ref, digest)
    name, run = f"{manifest['stage']}:{manifest['key']}", manifest["tracking"].get("run", "")
    file = path / "logs" / "sources.json"
    sources = json.loads(file.read_text()) if file.exists() else []
    inputs = [from_store(store, f"{i['stage']}:{i['key']}", i["digest"]) for i in manifest["inputs"].values()]
    return {"artifact": name, "digest": manifest["digest"], "run": run, "sources": sources, "inputs": inputs}


def from_mlflow(ref: str, uri: str) -> Tree:
    """The tree of a registered model, walked on the MLflow server alone: no file of the store is read."""
    client, model = logged_model(ref, uri)
    return _walk(client, str(model.source_run_id), {})


def logged_model(ref: str, uri: str) -> tuple[Any, Any]:
    """(client, external model) for `models:/NAME@alias` or `models:/NAME/version`."""
    from mlflow import MlflowClient, MlflowException

    client = MlflowClient(uri, uri)
    name, _, alias = ref.removeprefix("models:/").partition("@")
    try:
        version = (
            client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(*name.split("/"))
        )
    except (MlflowException, TypeError) as error:
        raise UserError(
            f"{ref}: no such registered model or alias; models:/gptloom@challenger is the newest"
        ) from error
    return client, client.get_logged_model(str(version.source).removeprefix("models:/"))


def _walk(client: Any, run_id: str, seen: dict[str, Tree]) -> Tree:
    """A run's own tags name the artifact; its dataset chips and model inputs lead to the runs above."""
    if run_id not in seen:
        run = client.get_run(run_id)
        tags, stage = run.data.tags, run.data.tags["stage"]
        data = {"input": [], "source": [], "output": []}
        for chip in run.inputs.dataset_inputs:
            data[{tag.key: tag.value for tag in chip.tags}["mlflow.data.context"]].append(chip.dataset)
        above = {client.get_logged_model(model.model_id).source_run_id for model in run.inputs.model_inputs}
        above |= {_maker(client, run.info.experiment_id, d.name, d.digest) for d in data["input"]}
        name, digest = f"{stage}:{tags['artifact.key']}", tags.get(f"artifact.out.{stage}", "")
        sources = [{"path": json.loads(d.source)["uri"], "digest": d.digest} for d in data["source"]]
        inputs = [_walk(client, parent, seen) for parent in sorted(above)]
        seen[run_id] = {"artifact": name, "digest": digest, "run": run_id, "sources": sources, "inputs": inputs}
    return seen[run_id]


def _maker(client: Any, experiment: str, stage: str, digest: str) -> str:
    """The run that put out this content; one that built it before one that found it."""
    found = client.search_runs([experiment], f"tags.`artifact.out.{stage}` LIKE '{digest}%'", max_results=50)
    if not found:
        raise UserError(f"MLflow knows no run that put out {stage} {digest}; `gptloom sync` delivers held-back runs")
    return min(found, key=lambda run: (run.data.tags.get("cache") != "miss", run.info.start_time)).info.run_id


def as_text(tree: Tree) -> str:
    """The tree, indented; what was shown once is named, not repeated."""
    return "\n".join(_lines(tree, 0, set()))


def _lines(tree: Tree, depth: int, shown: set[str]) -> list[str]:
    again = tree["artifact"] in shown
    shown.add(tree["artifact"])
    lines = [f"{'  ' * depth}{tree['artifact']}  {tree['digest'][:12]}{'  (above)' if again else ''}"]
    if not again:
        lines += [f"{'  ' * (depth + 1)}source {s['path']}  {s['digest'][:12]}" for s in tree["sources"]]
        lines += [line for parent in tree["inputs"] for line in _lines(parent, depth + 1, shown)]
    return lines


def model_folder(store: Store, ref: str) -> Path:
    """The checkpoint or release folder behind a REF; a plain Hugging Face folder is its own."""
    digest = ""
    if ref.startswith("models:/"):
        tags = logged_model(ref, tracking())[1].tags
        ref, digest = f"{tags['stage']}:{tags['artifact.key']}", tags["artifact.digest"]
    elif (Path(ref) / "config.json").exists() and not (Path(ref) / "artifact.json").exists():
        return Path(ref)
    path, manifest = store.find(ref, digest)
    if manifest["type"] not in ("Checkpoint", "Release"):
        raise UserError(f"{ref} is a {manifest['type']}, not a model; name pretrain, sft or export")
    return path
