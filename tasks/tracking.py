"""Tracking: what a run did, written first to a journal on disk and delivered from there to MLflow, each point once.

In: `Tracker` and `Child` calls of the stages; the trainer's own `logs/metrics.jsonl`. Out: `<store>/tracking/<run>/`
and, when a server answers, a parent run, one child per stage, dataset entities, external models, a model version.
Method: at-least-once delivery of idempotent events is once. Nothing here blocks or fails a run: a server that is away
leaves the journal behind its mark, and `gptloom sync` delivers the rest.
"""

import getpass
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.errors import UserError
from tasks.artifacts import Artifact, Config
from tasks.runtime import say
from tasks.store import is_locked, key_of, locked

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = REGISTERED = "gptloom"
MODELS = ("Checkpoint", "Release")
"""Artifact types that MLflow shows as models; the others are datasets."""


def now_ms() -> int:
    """Unix time in milliseconds, as MLflow counts."""
    return int(time.time() * 1000)


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names, the way MLflow shows parameters."""
    if isinstance(value, Mapping) and (value or not prefix):
        return {k: v for name, part in value.items() for k, v in flat(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): str(value)[:6000]}


# -- the journal ------------------------------------------------------------------------------------------------------


class Tracker:
    """The parent run of one pipeline run: a journal, and a courier thread where there is a server."""

    def __init__(
        self, store: Path, name: str, params: Mapping[str, Any], tags: Mapping[str, str], uri: str | None = None
    ):
        self.id = uuid.uuid4().hex
        self.folder = store / "tracking" / f"{time.strftime('%Y%m%d-%H%M%S')}-{self.id[:8]}"
        self.folder.mkdir(parents=True)
        self._lock = locked(self.folder / "lock")
        self._lock.__enter__()
        self._events = (self.folder / "events.jsonl").open("ab", buffering=0)
        self.stages: list[dict[str, Any]] = []
        self.whole = True
        source = {
            "mlflow.source.name": " ".join(["gptloom", *sys.argv[1:]]),
            "mlflow.source.type": "LOCAL",
            "mlflow.user": user(),
        }
        tags = {"stage": "pipeline", "config.digest": key_of(params), **source, **tags}
        self.tags = {name: value for name, value in tags.items() if name.startswith(("mlflow.", "prefect."))}
        self.event("run", id=self.id, parent=None, name=name, tags=tags, params=flat(params))
        self.courier = Courier(self.folder, uri) if uri else None
        if self.courier:
            self.courier.start()

    def event(self, do: str, **what: Any) -> None:
        """Append one event; what is not in this file never happened. A full disk ends the journal, not the run."""
        line = json.dumps({"do": do, "at": now_ms(), **what}).encode() + b"\n"
        try:
            self.whole = self.whole and self._events.write(line) == len(line)
        except OSError as error:
            self.whole = False
            say(f"tracking ends here: {error.strerror}")

    def child(self, stage: str) -> "Child":
        """The child run of the next stage."""
        return Child(self, stage)

    def close(self, status: str, release: str | None = None, wait_s: float = 30.0) -> str:
        """End the parent with its lineage note, register the release, wait for the courier; returns the run's URL."""
        self.event("note", id=self.id, stages=self.stages)
        if release:
            self.event("register", id=self.id, name="export", digest=release)
        self.event("end", id=self.id, status=status)
        self._events.close()
        url = self.courier.close(wait_s if self.whole else 1.0) if self.courier else ""
        self._lock.__exit__(None, None, None)
        return url


class Child:
    """The tracked run of one stage; without a tracker every call is a no-op."""

    def __init__(self, tracker: Tracker | None = None, stage: str = ""):
        self.tracker, self.stage = tracker, stage
        self.id = uuid.uuid4().hex if tracker else ""
        self.ids = {"run": self.id, "pipeline": tracker.id} if tracker else {}

    def start(self, key: str, config: Config, inputs: Mapping[str, Artifact]) -> None:
        """Create the run: its parameters, and its inputs as dataset entities or models."""
        if not (t := self.tracker):
            return
        index = len(t.stages) + 1
        tags = {"stage": self.stage, "stage.index": str(index), "artifact.key": key, **t.tags, **prefect_tags()}
        tags["config.digest"] = key_of(config.model_dump(mode="json"))
        self.row: dict[str, Any] = {"id": self.id, "stage": self.stage, "key": key, "cache": "failed"}
        t.stages.append(self.row)
        if index == 1 and "prefect.url" not in t.tags:  # the parent begins before the flow run does
            t.event("tags", id=t.id, tags=prefect_tags(task=False))
        params = flat(config.model_dump(mode="json"))
        t.event("run", id=self.id, parent=t.id, name=f"{index} {self.stage}", tags=tags, params=params)
        for port, artifact in inputs.items():
            t.event("input", id=self.id, **describe(artifact), tags={"port": port})

    def building(self, work: Path) -> None:
        """Follow the metrics that a trainer will write in this work folder."""
        if self.tracker:
            self.tracker.event("follow", id=self.id, journal=str(work / "logs" / "metrics.jsonl"))

    def finish(self, artifact: Artifact, manifest: Mapping[str, Any], hit: bool) -> None:
        """Record the output, its source files and its metrics; a hit points to the run that made it."""
        if not (t := self.tracker):
            return
        cache = "hit" if hit else "miss"
        self.row.update(cache=cache, digest=artifact.digest, path=str(artifact.path), metrics=artifact.metrics)
        sources = artifact.path / "logs" / "sources.json"
        for source in json.loads(sources.read_text()) if sources.exists() else []:
            facts = {"documents": source["documents"], "bytes": source["bytes"]}
            name = Path(source["path"]).name or source["kind"]
            t.event("source", id=self.id, name=name, digest=source["digest"], uri=source["path"], facts=facts)
        t.event("output", id=self.id, **describe(artifact), tags={}, config=flat(manifest["config"]))
        tags = {"cache": cache, f"artifact.out.{self.stage}": artifact.digest}
        if hit:
            t.event("made_by", id=self.id, run=manifest["tracking"].get("run", ""))
        elif (artifact.path / "report").is_dir():
            t.event("files", id=self.id, folder=str(artifact.path / "report"))
        if not hit:
            t.event("ship", id=self.id, journal=str(artifact.path / "logs" / "metrics.jsonl"))
        t.event("metrics", id=self.id, values=artifact.metrics)
        if self.stage in ("evaluate", "export"):  # the headline numbers, so that the parent's row has columns
            t.event("metrics", id=t.id, values=artifact.metrics)
        t.event("tags", id=self.id, tags=tags)
        t.event("end", id=self.id, status="FINISHED")

    def fail(self, error: BaseException) -> None:
        """End the run as failed (or killed, when it was told to stop) with the error's first line."""
        if not self.tracker or not hasattr(self, "row"):
            return
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        self.tracker.event(
            "tags", id=self.id, tags={"error": f"{type(error).__name__}: {error}"[:1000], "cache": "failed"}
        )
        self.tracker.event("end", id=self.id, status=status)


def describe(artifact: Artifact) -> dict[str, Any]:
    """An artifact as MLflow will show it: metadata only, the bytes stay in the store."""
    kind = type(artifact).__name__
    return {"kind": kind, "name": artifact.stage, "digest": artifact.digest, "key": artifact.key,
            "uri": str(artifact.path), "facts": artifact.metrics}  # fmt: skip


def user() -> str:
    """Who runs this, for MLflow's user column."""
    with suppress(OSError, KeyError):
        return getpass.getuser()
    return "unknown"


def prefect_tags(task: bool = True) -> dict[str, str]:
    """The Prefect run at work, with a link to it (or to its flow)."""
    if "prefect" not in sys.modules:
        return {}
    from prefect.context import FlowRunContext, TaskRunContext
    from prefect.settings import PREFECT_UI_URL

    flow, stage = FlowRunContext.get(), TaskRunContext.get()
    if flow is None or flow.flow_run is None:
        return {}
    tags = {"prefect.flow_run_id": str(flow.flow_run.id)}
    path = f"flow-run/{flow.flow_run.id}"
    if task and stage is not None:
        tags["prefect.task_run_id"], path = str(stage.task_run.id), f"task-run/{stage.task_run.id}"
    return {**tags, "prefect.url": f"{PREFECT_UI_URL.value()}/runs/{path}"}


# -- delivery ---------------------------------------------------------------------------------------------------------


class Courier(threading.Thread):
    """Delivers one journal in order, as far as the server takes it; `delivered.json` is its memory over kills."""

    def __init__(self, folder: Path, uri: str):
        super().__init__(name="courier", daemon=True)
        self.folder, self.uri = folder, uri
        self.memory = folder / "delivered.json"
        self.state: dict[str, Any] = {"uri": uri, "at": 0, "runs": {}, "steps": {}, "follow": {}, "done": False}
        if self.memory.exists() and (state := json.loads(self.memory.read_text()))["uri"] == uri:
            self.state = state
        self._closing = threading.Event()
        self._client: MlflowClient | None = None

    @property
    def client(self) -> "MlflowClient":
        """The client, made late: importing mlflow costs a second, and data workers never need it."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the default of 7 blocks for four minutes
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def run(self) -> None:
        """Deliver until told to close and nothing is left; while the server is away, ask ever less often."""
        pause_s = 0.2
        while not self.state["done"]:
            try:
                self.deliver()
                pause_s = 0.2 if not self._closing.is_set() else 0.0
            except Exception:
                pause_s = min(30.0, max(1.0, pause_s * 2))
            if self._closing.wait(pause_s) and pause_s >= 1.0:
                time.sleep(1.0)

    def close(self, wait_s: float) -> str:
        """Wait for the last delivery, at most `wait_s`; returns the parent run's URL, or "" where something waits."""
        self._closing.set()
        self.join(wait_s)
        if not self.state["done"]:
            say(f"MLflow at {self.uri} did not take everything; {self.folder} keeps it, `gptloom sync` delivers it")
            return ""
        return self.url(next(iter(self.state["runs"].values())))

    def url(self, run: str) -> str:
        """A run's page; a fresh browser would open MLflow's GenAI mode without the parameter."""
        return f"{self.uri}/#/experiments/{self.state['experiment']}/runs/{run}?workflowType=machine_learning"

    def deliver(self) -> bool:
        """One pass over what is new: the journals that trainers are writing, then the events. True when all is done."""
        for run, journal in self.state["follow"].items():
            self._guarded({"do": "relay", "id": run, "journal": journal})
        with (self.folder / "events.jsonl").open("rb") as events:
            events.seek(self.state["at"])
            for line in events:
                if not line.endswith(b"\n"):
                    break
                self._guarded(json.loads(line))
                self.state["at"] += len(line)
                self._save()
        return self.state["done"]

    def _guarded(self, event: dict[str, Any]) -> None:
        """A refusal (4xx) is said and passed over, so that one bad event never holds up the rest."""
        from mlflow.exceptions import MlflowException

        if event["do"] != "run" and event["id"] not in self.state["runs"]:
            return  # its run was refused, and that was said
        try:
            getattr(self, f"_do_{event['do']}")(event)
        except MlflowException as error:
            status = error.get_http_status_code()
            if not 400 <= status < 500 or status in (401, 403, 429) or event.get("parent", "") is None:
                raise  # it is away, or refuses the parent run, without which there is nothing to deliver to
            say(f"MLflow refused {event['do']}: {str(error).splitlines()[0][:200]}")

    def _save(self) -> None:
        fresh = self.memory.with_suffix(".tmp")
        fresh.write_text(json.dumps(self.state))
        fresh.replace(self.memory)

    def _do_run(self, event: dict[str, Any]) -> None:
        from mlflow.entities import Param

        experiment = self._experiment()
        found = self.client.search_runs([experiment], f"tags.`gptloom.id` = '{event['id']}'", max_results=1)
        if not found:  # else made by a courier that died before it could note so
            tags = {"gptloom.id": event["id"], **event["tags"]}
            if event["parent"]:
                tags["mlflow.parentRunId"] = self.state["runs"][event["parent"]]
            found = [self.client.create_run(experiment, event["at"], tags, event["name"])]
        run = self.state["runs"][event["id"]] = found[0].info.run_id
        self.client.log_batch(run, params=[Param(k, v) for k, v in event["params"].items()])

    def _experiment(self) -> str:
        if "experiment" not in self.state:
            found = self.client.get_experiment_by_name(EXPERIMENT)
            tags = {"mlflow.experimentKind": "custom_model_development"}
            self.state["experiment"] = (
                found.experiment_id if found else self.client.create_experiment(EXPERIMENT, tags=tags)
            )
        return self.state["experiment"]

    def _do_source(self, event: dict[str, Any]) -> None:
        self._dataset(event, {"mlflow.data.context": "source"})
        parent = next(iter(self.state["runs"]))
        self._dataset({**event, "id": parent}, {"mlflow.data.context": "source"})

    def _do_input(self, event: dict[str, Any]) -> None:
        from mlflow.entities import LoggedModelInput

        if event["kind"] in MODELS:
            if model := self._model(event):
                self.client.log_inputs(self.state["runs"][event["id"]], models=[LoggedModelInput(model)])
        else:
            self._dataset(event, {"mlflow.data.context": "input", **event["tags"]})

    def _do_output(self, event: dict[str, Any]) -> None:
        if event["kind"] in MODELS:
            self._output_model(event)
        else:
            self._dataset(event, {"mlflow.data.context": "output"})

    def _dataset(self, event: dict[str, Any], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source, profile = json.dumps({"uri": event["uri"]}), json.dumps(event["facts"])
        dataset = Dataset(event["name"], event["digest"][:36], "local", source, profile=profile)
        chips = [DatasetInput(dataset, [InputTag(k, v) for k, v in tags.items()])]
        self.client.log_inputs(self.state["runs"][event["id"]], chips)

    def _model(self, event: dict[str, Any]) -> str | None:
        """The external model of a stage's content; two stages may put out equal bytes."""
        which = f"tags.`artifact.digest` = '{event['digest']}' AND tags.stage = '{event['name']}'"
        found = self.client.search_logged_models([self._experiment()], which, max_results=1)
        return found[0].model_id if found else None

    def _output_model(self, event: dict[str, Any]) -> None:
        run = self.state["runs"][event["id"]]
        model = self._model(event)
        if model is None:
            tags = {"artifact.digest": event["digest"], "artifact.key": event["key"], "artifact.uri": event["uri"],
                    "stage": event["name"]}  # fmt: skip
            name = f"{event['name']}-{event['key'][:8]}"
            model = self.client.create_logged_model(
                self._experiment(), name, run, tags, event["config"], event["kind"]
            ).model_id
            self.client.finalize_logged_model(model, "READY")
        self._output(run, model)

    def _output(self, run: str, model: str) -> None:
        """A model out of a run."""
        from mlflow.entities import LoggedModelOutput

        outputs = self.client.get_run(run).outputs
        if model not in {m.model_id for m in (outputs.model_outputs if outputs else [])}:  # twice is a 400
            self.client.log_outputs(run, [LoggedModelOutput(model, 0)])

    def _do_made_by(self, event: dict[str, Any]) -> None:
        run = self.state["runs"][event["id"]]
        maker = self.client.search_runs([self._experiment()], f"tags.`gptloom.id` = '{event['run']}'", max_results=1)
        note = "Served from cache; its maker is not on this server."
        if maker:
            made = maker[0].info.run_id
            self.client.set_tag(run, "cache.source_run_id", made)
            note = f"Served from cache. Produced by [run {made[:8]}]({self._link(made)})"
        self.client.set_tag(run, "mlflow.note.content", note)

    def _link(self, run: str) -> str:
        return f"#/experiments/{self.state['experiment']}/runs/{run}?workflowType=machine_learning"

    def _do_files(self, event: dict[str, Any]) -> None:
        if Path(event["folder"]).is_dir():
            self.client.log_artifacts(self.state["runs"][event["id"]], event["folder"], "report")

    def _do_metrics(self, event: dict[str, Any]) -> None:
        """Final values; a name that the run's own curve already carries is left to the curve."""
        from mlflow.entities import Metric

        curve = self.state["steps"].get(event["id"], {})
        points = [Metric(k, float(v), event["at"], 0) for k, v in event["values"].items() if k not in curve]
        self.client.log_batch(self.state["runs"][event["id"]], metrics=points)

    def _do_tags(self, event: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.state["runs"][event["id"]], tags=[RunTag(k, v) for k, v in event["tags"].items()])

    def _do_follow(self, event: dict[str, Any]) -> None:
        self.state["follow"][event["id"]] = event["journal"]

    def _do_relay(self, event: dict[str, Any]) -> None:
        """What a trainer has written so far."""
        self._ship(event["id"], Path(event["journal"]))

    def _do_ship(self, event: dict[str, Any]) -> None:
        """The rest of a trainer's journal, which moved with its folder when that was published."""
        self._ship(event["id"], Path(event["journal"]))
        self.state["follow"].pop(event["id"], None)

    def _do_end(self, event: dict[str, Any]) -> None:
        self._do_ship({"journal": self.state["follow"].get(event["id"], ""), **event})
        self.client.set_terminated(self.state["runs"][event["id"]], event["status"], event["at"])
        self.state["done"] = event["id"] == next(iter(self.state["runs"]))

    def _do_note(self, event: dict[str, Any]) -> None:
        """The parent's note: the run as a line of live links, then a table."""
        rows = [row for row in event["stages"] if row["id"] in self.state["runs"]]
        links = [f"[{row['stage']}]({self._link(self.state['runs'][row['id']])})" for row in rows]
        lines = [f"### {' → '.join(links)}", "", "| stage | cache | artifact | headline |", "|---|---|---|---|"]
        for row, link in zip(rows, links, strict=True):
            head = next((f"{k} {v:,.5g}" for k, v in row.get("metrics", {}).items()), "")
            lines.append(f"| {link} | {row['cache']} | `{row['stage']}:{row['key']}` | {head} |")
        self.client.set_tag(self.state["runs"][event["id"]], "mlflow.note.content", "\n".join(lines)[:7900])

    def _do_register(self, event: dict[str, Any]) -> None:
        """One version of the registered model per release content, alias `challenger`."""
        from mlflow.exceptions import MlflowException

        model = self._model(event)
        with suppress(MlflowException):  # it exists
            self.client.create_registered_model(REGISTERED)
        versions = self.client.search_model_versions(f"name = '{REGISTERED}'")
        version = next((v for v in versions if v.source == f"models:/{model}"), None)
        if version is None:
            run, tags = self.client.get_logged_model(str(model)).source_run_id, {"artifact.digest": event["digest"]}
            version = self.client.create_model_version(
                REGISTERED, f"models:/{model}", run, tags, model_id=model, await_creation_for=0
            )
        self.client.set_registered_model_alias(REGISTERED, "challenger", version.version)
        self._output(self.state["runs"][event["id"]], str(model))

    def _ship(self, run: str, journal: Path) -> None:
        """Send each name's points above its last step sent: a trainer that goes back repeats itself, we do not."""
        from mlflow.entities import Metric

        if not journal.is_file():
            return
        sent = self.state["steps"].setdefault(run, {})
        points: list[Metric] = []
        for line in journal.read_bytes().splitlines(keepends=True):
            with suppress(ValueError, TypeError):
                at, step, values = json.loads(line) if line.endswith(b"\n") else (0, 0, {})
                points += [Metric(k, float(v), at, step) for k, v in values.items() if step > sent.get(k, -1)]
        for start in range(0, len(points), 900):  # the server takes 1,000 a batch
            batch = points[start : start + 900]
            self.client.log_batch(self.state["runs"][run], metrics=batch)
            sent.update({m.key: max(m.step, sent.get(m.key, -1)) for m in batch})
            self._save()


def sync(store: Path, uri: str) -> int:
    """Deliver every journal that waits, the oldest first; what a dead run left open ends as killed. How many."""
    done, problems = 0, []
    for folder in sorted(p.parent for p in (store / "tracking").glob("*/events.jsonl")):
        courier = Courier(folder, uri)
        if courier.state["done"] or is_locked(folder / "lock"):
            continue
        with locked(folder / "lock"):
            end_the_dead(folder / "events.jsonl")
            try:
                done += courier.deliver()
            except Exception as error:
                problems.append(f"{folder.name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
    if problems:
        raise UserError(
            f"{len(problems)} runs wait on, {done} were delivered; {problems[0]}; is {uri} up (`gptloom status`)?"
        )
    return done


def end_the_dead(events: Path) -> None:
    """Close the journal of a process that was killed: drop its torn last line, end what it left open."""
    whole = events.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    seen = [json.loads(line) for line in whole.splitlines()]
    ended = {event["id"] for event in seen if event["do"] == "end"}
    left = [event["id"] for event in seen if event["do"] == "run" and event["id"] not in ended]
    with events.open("r+b") as file:
        file.truncate(len(whole))
        file.seek(len(whole))
        for run in reversed(left):
            file.write(json.dumps({"do": "end", "at": now_ms(), "id": run, "status": "KILLED"}).encode() + b"\n")
