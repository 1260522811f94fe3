"""Lineage: from a model or artifact down to its source files, by the store's manifests or by MLflow alone.

In: a REF. Out: a tree `{"artifact", "digest", "run", "sources", "inputs": [tree, ...]}` as JSON or indented text.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from tasks.store import Store

Tree = dict[str, Any]


def from_store(store: Store, ref: str) -> Tree:
    """The tree of an artifact in the store."""
    return _from_store(store, ref, "")


def _from_store(store: Store, ref: str, digest: str) -> Tree:
    path, manifest = store.find(ref, digest)
    sources = path / "logs" / "sources.json"
    inputs = [_from_store(store, f"{i['stage']}:{i['key']}", i["digest"]) for i in manifest["inputs"].values()]
    return {
        "artifact": f"{manifest['stage']}:{manifest['key']}",
        "digest": manifest["digest"],
        "run": manifest["tracking"].get("run", ""),
        "sources": json.loads(sources.read_text()) if sources.exists() else [],
        "inputs": inputs,
    }


def from_mlflow(ref: str, uri: str) -> Tree:
    """The tree of a registered model, walked on the MLflow server alone: no file of the store is read."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    model = logged_model(client, ref)
    return _walk(client, str(model.source_run_id), {})


def logged_model(client: Any, ref: str) -> Any:
    """The external model behind `models:/NAME@alias` or `models:/NAME/version`."""
    from mlflow.exceptions import MlflowException

    name, _, alias = ref.removeprefix("models:/").partition("@")
    try:
        version = (
            client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(*name.split("/", 1))
        )
    except (MlflowException, TypeError) as error:
        raise UserError(
            f"{ref}: no such registered model or alias; `models:/gptloom@challenger` is the newest export"
        ) from error
    return client.get_logged_model(version.source.removeprefix("models:/"))


def _walk(client: Any, run_id: str, seen: dict[str, Tree]) -> Tree:
    """A run's own tags name the artifact; its dataset chips and model inputs lead to the runs above."""
    if run_id in seen:
        return seen[run_id]
    run = client.get_run(run_id)
    tags, chips = run.data.tags, run.inputs.dataset_inputs
    context = {id(c): {t.key: t.value for t in c.tags}.get("mlflow.data.context") for c in chips}
    above = {m.source_run_id for i in run.inputs.model_inputs if (m := client.get_logged_model(i.model_id))}
    for chip in chips:
        if context[id(chip)] == "input":
            above.add(_maker(client, run.info.experiment_id, chip.dataset.name, chip.dataset.digest))
    sources = [
        {"path": json.loads(c.dataset.source)["uri"], "digest": c.dataset.digest}
        for c in chips
        if context[id(c)] == "source"
    ]
    stage = tags["stage"]
    seen[run_id] = {
        "artifact": f"{stage}:{tags['artifact.key']}",
        "digest": tags.get(f"artifact.out.{stage}", ""),
        "run": run_id,
        "sources": sources,
        "inputs": [_walk(client, parent, seen) for parent in sorted(above)],
    }
    return seen[run_id]


def _maker(client: Any, experiment: str, stage: str, digest: str) -> str:
    """The run that put out this content; one that built it before one that found it."""
    found = client.search_runs([experiment], f"tags.`artifact.out.{stage}` LIKE '{digest}%'", max_results=50)
    if not found:
        raise UserError(
            f"MLflow knows no run that put out {stage} {digest}; deliver held-back runs with `gptloom sync`"
        )
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


def model_folder(store: Store, ref: str, tracking: Callable[[], str] | None) -> Path:
    """The checkpoint or release folder behind a REF; a plain Hugging Face folder is its own."""
    digest = ""
    if tracking:
        from mlflow import MlflowClient

        uri = tracking()
        tags = logged_model(MlflowClient(uri, uri), ref).tags
        ref, digest = f"{tags['stage']}:{tags['artifact.key']}", tags["artifact.digest"]
    elif (Path(ref) / "config.json").exists() and not (Path(ref) / "artifact.json").exists():
        return Path(ref)
    path, manifest = store.find(ref, digest)
    if manifest["type"] not in ("Checkpoint", "Release"):
        raise UserError(f"{ref} is a {manifest['type']}, not a model; name pretrain, sft or export")
    return path
