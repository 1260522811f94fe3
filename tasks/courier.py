"""Tracking, the delivering half: from a run's journal to MLflow, each point once, whatever dies in between.

In: `<store>/tracking/<run>/events.jsonl` (tasks/tracking.py), the trainers' `logs/metrics.jsonl`. Out: a parent run,
a child run per stage, dataset entities, external models, a model version; `delivered.json` remembers how far.
Method: at-least-once delivery of idempotent events is once. The only module that imports mlflow.
"""

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.errors import UserError
from tasks.files import is_locked, locked
from tasks.notes import NAME, experiment_tags, of_pipeline, of_stage, of_version, run_link
from tasks.runtime import say

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODELS = ("Checkpoint", "Release")
"""Artifact types that MLflow shows as models; the others are datasets."""
Event = dict[str, Any]


def now_ms() -> int:
    """Unix time in milliseconds, as MLflow counts."""
    return int(time.time() * 1000)


class Courier(threading.Thread):
    """Delivers one journal in order, as far as the server takes it.

    `fresh`: nothing of it was ever sent. Only then may it create without asking first what a dead one has created.
    """

    def __init__(self, folder: Path, uri: str, fresh: bool = False):
        super().__init__(name="courier", daemon=True)
        self.folder, self.uri, self.certain = folder, uri, fresh
        self.memory = folder / "delivered.json"
        self.state: dict[str, Any] = {"uri": uri, "at": 0, "runs": {}, "last": {}, "follow": {}, "done": False}
        with suppress(OSError, ValueError):  # there is none, or a power cut emptied it
            if (saved := json.loads(self.memory.read_text()))["uri"] == uri:
                self.state = saved
        self._closing = threading.Event()
        self._client: MlflowClient | None = None
        self._models: dict[tuple[str, str], str] = {}

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
            closing, at = self._closing.is_set(), self.state["at"]
            try:
                self.deliver()
                if closing and self.state["at"] == at:
                    return  # a full disk cut the journal short: no more will come
                pause_s = 0.0 if closing else 0.2
            except Exception:
                self.certain, pause_s = False, min(30.0, max(1.0, pause_s * 2))
            if self._closing.wait(pause_s) and pause_s >= 1.0:
                time.sleep(1.0)

    def close(self, wait_s: float) -> str:
        """Wait for the last delivery, at most `wait_s`; returns the parent run's URL, or "" where something waits."""
        self._closing.set()
        self.join(wait_s)
        if not self.state["done"]:
            say(f"MLflow at {self.uri} did not take everything; {self.folder} keeps it, `gptloom sync` delivers it")
            return ""
        return self.page(next(iter(self.state["runs"])))

    def page(self, event_id: str) -> str:
        """The address of a delivered run's page, else ""; asks nobody, because a delivered run has its experiment."""
        run = self.state["runs"].get(event_id)
        return f"{self.uri}/{self._link(run)}" if run else ""

    def _link(self, run: str) -> str:
        """A run's page."""
        return run_link(self._experiment(), run)

    def deliver(self) -> bool:
        """One pass over what is new: the journals that trainers are writing, then the events. True when all is done."""
        for run, journal in self.state["follow"].items():
            self._guarded({"do": "follow", "id": run, "journal": journal})
        with (self.folder / "events.jsonl").open("rb") as events:
            events.seek(self.state["at"])
            for line in events:
                if not line.endswith(b"\n"):
                    break
                self._guarded(json.loads(line))
                self.state["at"] += len(line)
                self._save()
        return self.state["done"]

    def _guarded(self, event: Event) -> None:
        """A refusal (4xx) is said and passed over, so that one bad event never holds up the rest."""
        from mlflow.exceptions import MlflowException

        if event["do"] != "run" and event["id"] not in self.state["runs"]:
            return  # its run was refused, and that was said
        try:
            getattr(self, f"_do_{event['do']}")(event, self.state["runs"].get(event["id"], ""))
        except MlflowException as error:
            status = error.get_http_status_code()
            if not 400 <= status < 500 or status in (401, 403, 429) or event.get("parent", "") is None:
                raise  # it is away, or refuses the parent run, without which there is nothing to deliver to
            say(f"MLflow refused {event['do']}: {str(error).splitlines()[0][:200]}")
        except (TypeError, ValueError) as error:  # no request could be made of it
            say(f"MLflow's client refused {event['do']}: {error!r:.200}")
        self.state["done"] = event["do"] == "end" and event["id"] == next(iter(self.state["runs"]))

    def _save(self) -> None:
        fresh = self.memory.with_suffix(".tmp")
        fresh.write_text(json.dumps(self.state))
        fresh.replace(self.memory)

    # -- one method an event; `run` is MLflow's id of the run that it is about --------------------------------------

    def _do_run(self, event: Event, run: str) -> None:
        run = "" if self.certain else self._find(event["id"])
        if not run:
            tags = {"gptloom.id": event["id"], **event["tags"]}
            if event["parent"]:
                tags["mlflow.parentRunId"] = self.state["runs"][event["parent"]]
                tags["mlflow.note.content"] = self._note(event["note"])
            run = self.client.create_run(self._experiment(), event["at"], tags, event["name"]).info.run_id
        self.state["runs"][event["id"]] = run
        self._do_log(event | {"tags": {}}, run)

    def _do_log(self, event: Event, run: str) -> None:
        """Whatever of inputs, outputs, parameters, metrics and tags the event has, in two calls."""
        from mlflow.entities import LoggedModelInput, Metric, Param, RunTag

        things, tags = event.get("things", []), event.get("tags", {})
        used = [self._model(t) for t in things if t["kind"] in MODELS and t["context"] == "input"]
        chips = [dataset(t) for t in things if t["kind"] not in MODELS]
        for start in range(0, len(chips) or bool(used), 500):  # a request with thousands of source files would time out
            models = [LoggedModelInput(model) for model in used if model and start == 0]
            self.client.log_inputs(run, chips[start : start + 500], models)
        maker = self._find(event["maker"]) if event.get("maker") else ""
        if "maker" in event:
            tags = tags | self._served(maker, event["note"])
        last = self.state["last"].setdefault(event["id"], {})  # a name that has a curve keeps its curve's last value
        points = {name: float(v) for name, v in event.get("metrics", {}).items() if name not in last}
        self.client.log_batch(
            run,
            [Metric(name, value, event["at"], 0) for name, value in points.items()],
            [Param(name, value) for name, value in event.get("params", {}).items()],
            [RunTag(name, value) for name, value in tags.items()],
        )
        last.update({name: [0, value, event["at"]] for name, value in points.items()})
        if not maker and (report := Path(event.get("report", os.devnull))).is_dir():
            self.client.log_artifacts(run, str(report), "report")
            if tables := [{"path": f"report/{p.name}", "type": "table"} for p in sorted(report.glob("*.table.json"))]:
                self.client.set_tag(run, "mlflow.loggedArtifacts", json.dumps(tables))  # the UI shows them as tables
        for path in filter(os.path.isfile, event.get("files", [])):
            self.client.log_artifact(run, path)
        for thing in things:
            if thing["kind"] in MODELS and thing["context"] == "output":
                self._output(run, self._model(thing) or self._create_model(thing, run))

    def _do_follow(self, event: Event, run: str) -> None:
        """Send each name's points above its last step sent: a trainer that goes back repeats itself, we do not."""
        from mlflow.entities import Metric

        self.state["follow"][event["id"]] = event["journal"]
        last = self.state["last"].setdefault(event["id"], {})
        points: list[Metric] = []
        for line in read(Path(event["journal"])).splitlines(keepends=True):
            with suppress(ValueError, TypeError):
                at, step, values = json.loads(line) if line.endswith(b"\n") else (0, 0, {})
                points += [Metric(k, float(v), at, step) for k, v in values.items() if step > last.get(k, [-1])[0]]
        for start in range(0, len(points), 900):  # the server takes 1,000 a batch
            batch = points[start : start + 900]
            self.client.log_batch(run, metrics=batch)
            for m in batch:
                last[m.key] = max(last.get(m.key, [-1]), [m.step, m.value, m.timestamp])
            self._save()

    def _do_end(self, event: Event, run: str) -> None:
        self._do_follow(event | {"journal": self.state["follow"].get(event["id"], "")}, run)
        del self.state["follow"][event["id"]]
        self.client.set_terminated(run, event["status"], event["at"])

    def _do_score(self, event: Event, run: str) -> None:
        """A model's final metrics with the data they were taken on, for its page; every step would be a row there."""
        from mlflow.entities import Metric

        if (event["unless"] and self._find(event["unless"])) or not (model := self._model(event["model"])):
            return  # the run that made it said so
        last, points = self.state["last"].get(event["id"], {}), []
        for name, (stage, digest) in event["on"].items():
            step, value, at = last.get(name, [0, float("nan"), 0])
            points += [Metric(name, value, at, step, model, stage, digest[:36], run)] if at else []
        self.client.log_batch(run, points)

    def _do_note(self, event: Event, run: str) -> None:
        """The parent's note, and how much of it came from the cache."""
        rows, tags = [r for r in event["stages"] if r["id"] in self.state["runs"]], self.client.get_run(run).data.tags
        link, version = lambda row: self._link(self.state["runs"][row]), self.state.get("version", "")
        text = of_pipeline(rows, self._link(run), link, tags, version)
        self.client.set_tag(run, "mlflow.note.content", text)
        hits = sum(row["cache"] == "hit" for row in event["stages"])
        self.client.set_tag(run, "cache", f"{hits} of {len(event['stages'])} hit")

    def _do_register(self, event: Event, run: str) -> None:
        """One version of the registered model per release content; the latest run's is `challenger`."""
        from mlflow.exceptions import MlflowException

        model = self._model({"stage": event["name"], **event})
        with suppress(MlflowException):  # it exists
            about = (
                "Every release is a version. `challenger`: the newest one; `champion`: the one that the gate let pass."
            )
            self.client.create_registered_model(NAME, description=about)
        versions = {v.source: v for v in self.client.search_model_versions(f"name = '{NAME}'")}
        if not (version := versions.get(f"models:/{model}")):
            logged = self.client.get_logged_model(model)
            made, tags = logged.source_run_id, {"artifact.digest": event["digest"]}
            about = of_version(f"export:{logged.tags['artifact.key']}", self._link(run))
            version = self.client.create_model_version(
                NAME, f"models:/{model}", made, tags, description=about, model_id=model, await_creation_for=0
            )
        self.state["version"] = version.version
        if all(int(v.tags.get("registered_ms", 0)) <= event["at"] for v in versions.values()):  # else it was held back
            self.client.set_model_version_tag(NAME, version.version, "registered_ms", str(event["at"]))
            self.client.set_registered_model_alias(NAME, "challenger", version.version)
        self._output(run, model)

    # -- what is on the server --------------------------------------------------------------------------------------

    def _experiment(self) -> str:
        if "experiment" not in self.state:
            found = self.client.get_experiment_by_name(NAME)
            made = found.experiment_id if found else self.client.create_experiment(NAME)
            for name, value in experiment_tags(made).items():
                if not found or found.tags.get(name) != value:
                    self.client.set_experiment_tag(made, name, value)
            self.state["experiment"] = made
        return self.state["experiment"]

    def _find(self, gptloom_id: str) -> str:
        found = self.client.search_runs([self._experiment()], f"tags.`gptloom.id` = '{gptloom_id}'", max_results=1)
        return found[0].info.run_id if found else ""

    def _note(self, note: Event) -> str:
        """A child's note."""
        found = [self.state["runs"].get(of["id"]) or self._putter(of["artifact"], of["digest"]) for of in note["from"]]
        inputs = [(of["name"], run and self._link(run)) for of, run in zip(note["from"], found, strict=True)]
        return of_stage(inputs, note["task"], self._link(next(iter(self.state["runs"].values()))))

    def _putter(self, artifact: str, digest: str) -> str:
        """A run that put out this artifact, or ""."""
        found = makers(self.client, self._experiment(), artifact, digest)
        return found[0].info.run_id if found else ""

    def _served(self, maker: str, note: Event) -> dict[str, str]:
        """The tags of a stage that another run has built."""
        if not maker:
            return {"mlflow.note.content": f"{self._note(note)}\n\nServed from cache; its maker is not on this server."}
        text = f"{self._note(note)}\n\nServed from cache. Produced by [run {maker[:8]}]({self._link(maker)})"
        return {"cache.source_run_id": maker, "mlflow.note.content": text}

    def _model(self, thing: Event) -> str:
        """The external model of a stage's content, or ""; two stages may put out equal bytes."""
        which = thing["stage"], thing["digest"]
        if which not in self._models:
            query = "tags.stage = '{}' AND tags.`artifact.digest` = '{}'".format(*which)
            found = self.client.search_logged_models([self._experiment()], query, max_results=1)
            self._models |= {which: found[0].model_id} if found else {}
        return self._models.get(which, "")

    def _create_model(self, thing: Event, run: str) -> str:
        tags = {"artifact.digest": thing["digest"], "artifact.key": thing["key"], "artifact.uri": thing["path"]}
        tags["mlflow.note.content"] = f"`{thing['stage']}:{thing['key']}`, made by [this run]({self._link(run)})."
        tags["stage"], name = thing["stage"], f"{thing['stage']}-{thing['key'][:8]}"
        model = self.client.create_logged_model(self._experiment(), name, run, tags, thing["config"], thing["kind"])
        self.client.finalize_logged_model(model.model_id, "READY")
        return model.model_id

    def _output(self, run: str, model: str) -> None:
        """A model out of a run."""
        from mlflow.entities import LoggedModelOutput

        outputs = None if self.certain else self.client.get_run(run).outputs
        if model not in {m.model_id for m in (outputs.model_outputs if outputs else [])}:  # twice is a 400
            self.client.log_outputs(run, [LoggedModelOutput(model, 0)])


def dataset(thing: Event) -> Any:
    """A thing as MLflow's dataset entity, which carries metadata only."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source, profile = json.dumps({"uri": thing["path"]}), json.dumps(thing["facts"])
    tags = {"mlflow.data.context": thing["context"], **thing["tags"]}
    entity = Dataset(thing["stage"], thing["digest"][:36], "local", source, profile=profile)
    return DatasetInput(entity, [InputTag(name, value) for name, value in tags.items()])


def makers(client: Any, experiment: str, artifact: str, digest: str) -> list[Any]:
    """The runs that put out this artifact with this content; one that built it before those that found it."""
    stage, _, key = artifact.partition(":")
    query = f"tags.`artifact.out.{stage}` = '{digest}' AND tags.`artifact.key` = '{key}'"
    found = client.search_runs([experiment], query, max_results=50)
    return sorted(found, key=lambda run: (run.data.tags.get("cache") != "miss", run.info.start_time))


def read(path: Path) -> bytes:
    """A file's bytes, none where it is gone."""
    with suppress(OSError):
        return path.read_bytes()
    return b""


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
        what = f"{len(problems)} runs wait on, {done} were delivered; {problems[0]}"
        raise UserError(f"{what}; is {uri} up (`gptloom status`)?")
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
