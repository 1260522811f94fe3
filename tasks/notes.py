"""What people read in MLflow besides numbers: the notes of runs, with live links, and the board's columns.

In: rows of stages and a function from a run to its link. Out: Markdown, which MLflow folds after 100 pixels; of these
it covers 60, so that until one presses "Show more" only the links of the first two lines can be pressed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NAME = "gptloom"
"""Of the experiment and of the registered model."""
PAGE = "?workflowType=machine_learning"
"""Every link's end: a fresh browser would open MLflow's GenAI mode without it."""
SHOWN = ("eval/bpb", "eval/arithmetic", "eval/pair_accuracy", "val/bpb")
"""Metrics that are columns of the board; more would need scrolling."""
BOARD = {
    "selectedColumns": ["tags.`cache`", *(f"metrics.`{name}`" for name in SHOWN)],
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
}
"""The runs page as the view `board` shows it; MLflow documents this nowhere, so each new version is to be looked at."""

Row = Mapping[str, Any]


def run_link(experiment: str, run: str) -> str:
    """A run's page, below the server's address."""
    return f"#/experiments/{experiment}/runs/{run}{PAGE}"


def experiment_tags(experiment: str) -> dict[str, str]:
    """The experiment's kind, its board, and its note, of which MLflow shows one line."""
    board = f"#/experiments/{experiment}/runs{PAGE}&viewStateShareKey=board"
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.sharedViewState.board": json.dumps(BOARD),
        "mlflow.note.content": f"Every run of gptloom; [show their scores]({board}) as columns, stages behind the +.",
    }


def of_pipeline(stages: Sequence[Row], own: str, link: Callable[[str], str], tags: Row, version: str) -> str:
    """A parent's note: its release and its run in Prefect, a line of links to its stages, its command, a table."""
    links = [f"[{row['stage']}]({link(row['id'])})" for row in stages]
    release = f"[{NAME}, version {version}](#/models/{NAME}/versions/{version}{PAGE})"
    around = [*([release, picture(own)] if version else []), *prefect(tags.get("prefect.url"))]
    head = [" · ".join(around), " → ".join(links), f"`{tags['mlflow.source.name']}`"]
    lines = ["  \n".join(filter(None, head)), ""]  # two blanks break a line without a gap
    lines += ["| stage | cache | artifact | headline |", "|---|---|---|---|"]
    for row, to in zip(stages, links, strict=True):
        lines.append(f"| {to} | {row['cache']} | `{row['stage']}:{row['key']}` | {row.get('headline', '')} |")
    return "\n".join(lines)[:7900]


def of_version(artifact: str, pipeline: str) -> str:
    """A registered version's description, to which the gate adds its outcome."""
    return f"Release `{artifact}` of [this run]({pipeline}) · {picture(pipeline)}"


def picture(pipeline: str) -> str:
    """A link to the picture of a release's lineage, which lies with the pipeline's run."""
    return f"[where it comes from]({pipeline.replace(PAGE, '/artifacts/lineage.html' + PAGE)})"


def of_stage(inputs: Sequence[tuple[str, str]], task: str | None, pipeline: str) -> str:
    """A child's note: links to the runs that made its inputs (name, link), to its task in Prefect and to its parent."""
    above = [f"[{name}]({link})" if link else f"`{name}`" for name, link in inputs]
    origin = f"From {', '.join(above)}" if above else "From its sources, the chips above"
    return " · ".join([origin, f"[the whole run]({pipeline})", *prefect(task)])


def prefect(url: str | None) -> list[str]:
    """The link to the run in Prefect, if it had one."""
    return [f"[its run in Prefect]({url})"] if url else []
