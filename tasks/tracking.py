"""Tracking, the writing half: what a run does becomes events in a journal on disk; tasks/courier.py delivers them.

In: calls of the session at work. Out: `<store>/tracking/<run>/events.jsonl`, one JSON object a line.
Nothing here asks a server, so nothing here blocks or fails a run: `gptloom sync` delivers what an outage held back.
"""

import errno
import getpass
import json
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact, Checkpoint, Config, Release, Scores
from tasks.courier import Courier, now_ms
from tasks.files import locked
from tasks.manifest import key_of
from tasks.measures import Named, examined, headline, own
from tasks.runtime import say

HEADLINE = ("evaluate", "export")
"""Stages whose metrics the parent run shows too, so that its row on the experiment page has columns."""


class Tracker:
    """The journal of one pipeline run, with a courier where there is a server; without a folder it is mute."""

    def __init__(self, store: Path | None = None):
        self.id, self.stages, self.tags = uuid.uuid4().hex, list[dict[str, Any]](), dict[str, str]()
        self.exams: dict[str, tuple[str, dict[Named, dict[str, Named]]]] = {}
        self.courier: Courier | None = None
        self._open, self._events = ExitStack(), None
        if store:
            self.folder = store / "tracking" / f"{time.strftime('%Y%m%d-%H%M%S')}-{self.id[:8]}"
            self._open.enter_context(locked(self.folder / "lock"))
            self._events = self._open.enter_context((self.folder / "events.jsonl").open("ab", buffering=0))

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], uri: str | None) -> None:
        """Begin the parent run; its children inherit who, what and which commit."""
        command = " ".join(["gptloom", *sys.argv[1:]])
        source = {"mlflow.source.name": command, "mlflow.source.type": "LOCAL", "mlflow.user": user()}
        self.tags = {**source, **tags}
        known = {"stage": "pipeline", "config.digest": key_of(params), **self.tags}
        self.event("run", id=self.id, parent=None, name=name, tags=known, params=flat(params))
        if uri:
            self.courier = Courier(self.folder, uri, fresh=True)
            self.courier.start()

    def event(self, do: str, **what: Any) -> None:
        """Append one event; what is not in this file never happened. A full disk ends the journal, not the run."""
        whole = json.dumps({"do": do, "at": now_ms(), **what}, ensure_ascii=False)
        line = whole.encode(errors="replace") + b"\n"  # a file's name may hold half a character
        try:
            if self._events and self._events.write(line) < len(line):
                raise OSError(errno.ENOSPC, "the disk is full")
        except OSError as error:
            self._events = None
            say(f"tracking ends here: {error.strerror}")

    def page(self, run: str) -> str:
        """The page of a run of this journal in MLflow, "" as long as it is not delivered."""
        return self.courier.page(run) if self.courier else ""

    def close(self, status: str, release: str, wait_s: float = 30.0) -> str:
        """End the parent with its lineage note, register the release, wait for the courier; returns the run's URL."""
        if release:
            self.event("register", id=self.id, name="export", digest=release)
        self.event("note", id=self.id, stages=self.stages)
        self.event("end", id=self.id, status=status)
        url = self.courier.close(wait_s if self._events else 1.0) if self.courier else ""
        if not (self.courier and self.courier.is_alive()):  # one that still tries keeps the lock: never two of them
            self._open.close()
        return url


class Child:
    """The tracked run of one stage."""

    def __init__(self, tracker: Tracker, stage: str):
        self.tracker, self.stage, self.id = tracker, stage, uuid.uuid4().hex
        self.ids = {"run": self.id, "pipeline": tracker.id}
        self.row: dict[str, Any] = {}
        self.inputs: Mapping[str, Artifact] = {}
        self.note: dict[str, Any] = {}

    def start(self, key: str, config: Config, inputs: Mapping[str, Artifact], tags: Mapping[str, str]) -> None:
        """Create the run: its parameters, and its inputs as dataset entities or models."""
        number, settings = str(len(self.tracker.stages) + 1), config.model_dump(mode="json")
        self.note = {"from": [self._maker(artifact) for artifact in inputs.values()], "task": tags.get("prefect.url")}
        self.row = {"id": self.id, "name": f"{number} {self.stage}", "stage": self.stage, "key": key, "cache": "failed"}
        self.tracker.stages.append(self.row)
        self.inputs = inputs
        known = {"stage": self.stage, "stage.index": number, "artifact.key": key, "config.digest": key_of(settings)}
        known |= {f"artifact.in.{port}": f"{artifact}@{artifact.digest}" for port, artifact in inputs.items()}
        things = [describe(artifact, "input", port=port) for port, artifact in inputs.items()]
        about = {"tags": {**self.tracker.tags, **known, **tags}, "params": flat(settings), "things": things}
        self.tracker.event("run", id=self.id, parent=self.tracker.id, name=self.row["name"], **about, note=self.note)

    def _maker(self, artifact: Artifact) -> dict[str, str]:
        """The run of this pipeline that gave an input, if it was one of this pipeline."""
        named = {"artifact": str(artifact), "digest": artifact.digest, "name": str(artifact)}
        made = {(row["stage"], row.get("digest")): row for row in self.tracker.stages}
        row = made.get((artifact.stage, artifact.digest), {"id": ""})
        return named | {name: row[name] for name in ("id", "name") if name in row}

    def building(self, work: Path) -> None:
        """Follow the metrics that a trainer will write in this work folder."""
        self.tracker.event("follow", id=self.id, journal=str(work / "logs" / "metrics.jsonl"))

    def finish(self, artifact: Artifact, manifest: Mapping[str, Any], hit: bool) -> None:
        """Record the output, its source files and its metrics; a hit points to the run that made it."""
        cache, log, made = "hit" if hit else "miss", artifact.path / "logs", manifest["tracking"].get("run", "")
        self.row |= {"cache": cache, "digest": artifact.digest, "headline": headline(artifact.metrics)}
        noted = json.loads((log / "sources.json").read_text()) if (log / "sources.json").exists() else []
        sources = [describe_source(source) for source in noted]
        if not hit:
            self.tracker.event("follow", id=self.id, journal=str(log / "metrics.jsonl"))  # it moved with its folder
        page = artifact.path / "report" / "lineage.html"
        if sources or self.stage in HEADLINE:
            more = {"metrics": artifact.metrics if self.stage in HEADLINE else {}, "files": [str(page)]}
            self.tracker.event("log", id=self.tracker.id, things=sources, **more)
        tags = {
            "cache": cache,
            f"artifact.out.{self.stage}": artifact.digest,
            "artifact.headline": self.row["headline"],
        }
        tags |= {f"artifact.{name}": str(manifest[name]) for name in ("created", "seconds")}
        more = {"report": str(artifact.path / "report")} | ({"maker": made, "note": self.note} if hit else {})
        things = [*sources, {**describe(artifact, "output"), "config": flat(manifest["config"])}]
        self.tracker.event("log", id=self.id, things=things, metrics=artifact.metrics, tags=tags, **more)
        self._scores(artifact, made if hit else "")
        self.tracker.event("end", id=self.id, status="FINISHED")

    def _scores(self, artifact: Artifact, made: str) -> None:
        """Final metrics for the pages of the models they are about: a trainer's own, evaluate's, the release's."""
        at, about, model = self.id, {}, (artifact.stage, artifact.digest)
        if isinstance(artifact, Checkpoint):
            about = {model: own(artifact.metrics, self.inputs)}
        elif isinstance(artifact, Scores):
            about = examined(artifact.metrics, self.inputs)
            self.tracker.exams[artifact.digest] = self.id, about
        elif isinstance(artifact, Release):
            exams = [self.tracker.exams[a.digest] for a in self.inputs.values() if a.digest in self.tracker.exams]
            at, scored = exams[0] if exams else ("", {})
            about = {model: next((scored[n] for a in self.inputs.values() if (n := (a.stage, a.digest)) in scored), {})}
        for (stage, digest), on in about.items() if at else ():
            self.tracker.event("score", id=at, model={"stage": stage, "digest": digest}, on=on, unless=made)

    def fail(self, error: BaseException) -> None:
        """End the run as failed (or killed, when it was told to stop) with the error's first line."""
        if self.row:  # else it failed before it began
            tags = {"error": f"{type(error).__name__}: {error}"[:1000], "cache": "failed"}
            self.tracker.event("log", id=self.id, tags=tags)
            self.tracker.event("end", id=self.id, status="FAILED" if isinstance(error, Exception) else "KILLED")


def describe(artifact: Artifact, context: str, **tags: str) -> dict[str, Any]:
    """An artifact as MLflow will show it: metadata only, the bytes stay in the store."""
    facts = artifact.model_dump(mode="json", exclude={"metrics"}) | {"facts": artifact.metrics}
    return {"kind": type(artifact).__name__, **facts, "context": context, "tags": tags}


def describe_source(noted: Mapping[str, Any]) -> dict[str, Any]:
    """A source file likewise; its tags are this run's, an entity of known name and content keeps its first path."""
    facts = {name: noted[name] for name in ("documents", "bytes")}
    about = {"stage": Path(noted["path"]).name or noted["kind"], "digest": noted["digest"], "path": noted["path"]}
    tags = {name: str(noted[name])[:500] for name in ("path", "kind", "digest", "documents", "bytes")}
    return {"kind": "Source", **about, "facts": facts, "context": "source", "tags": tags}


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names, the way MLflow shows parameters."""
    if isinstance(value, Mapping) and (value or not prefix):
        return {k: v for name, part in value.items() for k, v in flat(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): str(value)[:6000]}


def user() -> str:
    """Who runs this, for MLflow's user column."""
    with suppress(OSError, KeyError):
        return getpass.getuser()
    return "unknown"
