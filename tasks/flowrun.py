"""The Prefect run at work, if there is one: who it is, what people see on its page, and its turn at the trainer.

In: calls of tasks/stage.py. Out: tags, Markdown and table artifacts, the `gpu` slot. Without Prefect all of it is
empty; nothing of it is worth a failed run, so a server that is away is passed over.
"""

import sys
from collections.abc import Generator, Iterable
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tasks.artifacts import Artifact, Config
from tasks.runtime import say

if TYPE_CHECKING:
    from tasks.stage import Result

SLOT_S = 60
"""A slot whose holder was killed is free after so long; Prefect allows no less."""


def in_flow_run() -> bool:
    """Whether a Prefect flow run is at work; without one, stages are plain functions."""
    return "prefect.flow_run_id" in prefect_tags()


def prefect_tags() -> dict[str, str]:
    """The Prefect run at work, with a link to its task, or to the flow outside of one."""
    if "prefect" not in sys.modules:
        return {}
    from prefect.context import FlowRunContext, TaskRunContext
    from prefect.settings import PREFECT_UI_URL

    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow is None or flow.flow_run is None:
        return {}
    tags, path = {"prefect.flow_run_id": str(flow.flow_run.id)}, f"flow-run/{flow.flow_run.id}"
    if task is not None:
        tags["prefect.task_run_id"], path = str(task.task_run.id), f"task-run/{task.task_run.id}"
    return {**tags, "prefect.url": f"{PREFECT_UI_URL.value()}/runs/{path}"}


@contextmanager
def gpu_slot() -> Generator[None]:
    """Our turn at the trainer: under Prefect as many train at once as its limit `gpu` has slots (flows/deploy.py).

    On a machine without a GPU the trainer's place is the CPU: two at once would each take twice as long.
    """
    if not in_flow_run():
        yield
        return
    from prefect.concurrency.sync import concurrency

    held, waiting = ExitStack(), True
    while waiting:
        slot = concurrency("gpu", timeout_seconds=30, lease_duration=SLOT_S, raise_on_lease_renewal_failure=False)
        try:
            held.enter_context(slot)
            waiting = False
        except TimeoutError:
            say("another run is training; waiting for the slot `gpu`")
        except Exception as error:  # whatever a client can raise about a server that is away
            say(f"training without the slot `gpu`: {type(error).__name__}")
            waiting = False
    try:
        yield
    finally:
        with suppress(Exception):
            held.close()


def transient(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a stage failed by its machine (disk, network, a worker out of memory), so that another try may do."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError | BrokenExecutor) and not isinstance(error, TimeoutError)  # as runtime.timeout_min


def show_stage(stage: str, artifact: Artifact, hit: bool, config: Config, page: str) -> None:
    """The stage's artifact in the UI: what it made, from which settings, with which metrics."""
    made = "found in the store" if hit else "built"
    changed = {name: value for name, value in config.model_dump(mode="json").items() if value != default(config, name)}
    lines = [f"# `{artifact}`", f"{made.capitalize()}; content `{artifact.digest[:12]}` in `{artifact.path}`", ""]
    lines += [f"[Metrics and lineage in MLflow]({page})", ""] if page else []
    lines += ["| setting | here | default |", "|---|---|---|"] if changed else ["Every setting is its default."]
    lines += [f"| {name} | `{value}` | `{default(config, name)}` |" for name, value in changed.items()]
    lines += ["", "| metric | value |", "|---|---|"]
    lines += [f"| {name} | {value:,.6g} |" for name, value in artifact.metrics.items()]
    show_note(stage, "\n".join(lines), f"{artifact}, {made}")


def default(config: Config, name: str) -> Any:
    """A setting's default, as JSON."""
    return type(config)().model_dump(mode="json")[name]


def show_summary(name: str, results: Iterable["Result"], page: str, note: str = "") -> None:
    """The run's artifact in the UI: one row a stage, what it made, the way to MLflow and to the next command."""
    rows = [r for r in results if r.key]
    lines = [f"# {name}", note, "| stage | cache | seconds | artifact | first metric |", "|---|---|---|---|---|"]
    for r in rows:
        metric = next((f"{key} {value:,.5g}" for key, value in r.metrics.items()), "")
        lines.append(f"| {r.stage} | {r.cache} | {r.seconds:,.1f} | `{r.stage}:{r.key}` | {metric} |")
    lines += ["", f"[Metrics, figures and lineage in MLflow]({page})" if page else "MLflow has this run later."]
    if models := [r for r in rows if r.stage in ("pretrain", "sft", "prefer", "rl") and r.digest]:
        lines += ["", f"Talk to it: `gptloom chat {models[-1].stage}:{models[-1].key}`"]
    show_note("summary", "\n".join(lines), f"What {name} made")


def show_note(key: str, markdown: str, description: str) -> None:
    """A Markdown artifact of the run at work."""
    if in_flow_run():
        from prefect.artifacts import create_markdown_artifact

        with suppress(Exception):
            create_markdown_artifact(markdown, key=key, description=description)
