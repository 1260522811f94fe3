"""Tell a Prefect server what can be run: the work pool, the deployments of prefect.yaml, the limit, the automation.

In: the server that PREFECT_API_URL names (`gptloom up` sets it; in containers the environment does). Out: the same
things there, however often it is called. The deployments are made by Prefect's own command from `prefect.yaml`.
"""

import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from flows.servers import POOL, ROOT

GPU_SLOTS = 1
"""Trainings that may run at once on the machine (docs/operations.md tells how to raise it)."""
LOST = timedelta(seconds=90)
"""A flow run that sends no heartbeat for so long is dead: three of those that settings.QUIET asks for."""


def main() -> int:
    """Make everything; the exit code of Prefect's own `deploy`, which makes the deployments."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        make_pool(client)
        make_limit(client)
        make_automation(client)
        wanted = merge(client)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(wanted)
        prefect = str(Path(sys.executable).parent / "prefect")
        # from ROOT: Prefect has its runs start in the folder where deploy was called
        command = [prefect, "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        return subprocess.run(command, cwd=ROOT, check=False).returncode


def make_pool(client: Any) -> None:
    """The pool whose runs are processes of the worker's machine."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        about = "Runs on the machine of the worker that `gptloom up` started."
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", description=about, base_job_template=template)
        )


def make_limit(client: Any) -> None:
    """The limit `gpu`; one that is there keeps the slots that somebody gave it."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_global_concurrency_limit_by_name("gpu")
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=GPU_SLOTS))


def merge(client: Any) -> str:
    """prefect.yaml with the schedules and parameters that people gave a scheduled deployment in the UI.

    What an earlier prefect.yaml deployed and this one does not know is deleted; people's own deployments stay.
    """
    import yaml
    from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName

    wanted = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    named = {(d["name"], d["entrypoint"]): d for d in wanted["deployments"]}
    entrypoints = {entrypoint for _, entrypoint in named}
    for there in client.read_deployments(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))):
        if (there.entrypoint or "").startswith("flows.") and there.entrypoint not in entrypoints:
            client.delete_deployment(there.id)
        elif "schedules" in (mine := named.get((there.name, there.entrypoint), {})):
            mine |= {"schedules": [schedule(one) for one in there.schedules], "parameters": there.parameters}
    return yaml.safe_dump(wanted, allow_unicode=True)


def schedule(there: Any) -> dict[str, Any]:
    """A schedule of the server as prefect.yaml spells it."""
    told = there.schedule.model_dump(mode="json", exclude_none=True) | {"active": there.active, "slug": there.slug}
    return {name: value for name, value in told.items() if value is not None}


def make_automation(client: Any) -> None:
    """A run whose process was killed is marked crashed; the open-source server has no such automation of its own."""
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.states import StateType

    beat, ends = "prefect.flow-run.heartbeat", ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended")
    trigger = EventTrigger(
        after={beat},
        expect={beat, *(f"prefect.flow-run.{end}" for end in ends)},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=LOST,
    )
    message = f"No heartbeat for {LOST.seconds} s: its process was killed. Retry goes on where it was."
    crash = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message)
    wanted = AutomationCore(
        name="gptloom: mark dead runs", description="A killed run shows as Crashed.", trigger=trigger, actions=[crash]
    )
    if there := client.read_automations_by_name(wanted.name):
        client.update_automation(there[0].id, wanted)
    else:
        client.create_automation(wanted)


if __name__ == "__main__":
    sys.exit(main())
