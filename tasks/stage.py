"""The stage: makes a function that fills a folder a cached, tracked step of the DAG, and a task where Prefect runs.

In: `@stage(Corpus, version="1") def dedup(out: Path, config: Dedup, corpus: Corpus) -> Metrics`.
Out: `dedup(config, corpus) -> Corpus`; the type checker sees exactly that, so wrong wiring is a type error.
A call asks the session at work: build or hit (tasks/store.py), record (tasks/tracking.py), report.
"""

import dataclasses
import errno
import functools
import importlib.metadata
import inspect
import os
import platform
import subprocess
import time
import typing
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from gpt.errors import UserError
from tasks import artifacts
from tasks.artifacts import Artifact, Config, Metrics
from tasks.flowrun import gpu_slot, in_flow_run, prefect_tags, show_stage, show_summary, transient
from tasks.manifest import key_of, read_manifest
from tasks.measures import headline
from tasks.runtime import Runtime, running, say
from tasks.store import Store, building, default_store, folder_of, part_figures
from tasks.tracking import Child, Tracker

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)
S = TypeVar("S", bound="Session")
Given = Mapping[str, Mapping[str, Artifact | None]]


class Stage(Generic[P, A]):
    """A stage of the DAG: call it with its config and input artifacts to get its artifact."""

    def __init__(self, body: Callable[Concatenate[Path, P], Metrics], kind: type[A], version: str, trains: bool):
        self.fn = body
        self.name: str = body.__name__  # ty: ignore[missing-attribute]
        self.kind, self.version, self.trains = kind, version, trains
        self.doc = inspect.getdoc(body) or ""
        self.parameters = list(inspect.signature(body).parameters)[1:]
        self.config_type: type[Config] = typing.get_type_hints(body)[self.parameters[0]]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> A:
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        config = typing.cast(Config, given.pop(self.parameters[0]))
        inputs = {name: value for name, value in given.items() if isinstance(value, Artifact)}
        return typing.cast(A, session().run(self, config, inputs))

    def identify(self, config: Config, inputs: Mapping[str, Artifact]) -> tuple[str, dict[str, Any]]:
        """The key of the artifact that this call would give, and what its outside references are right now."""
        outside = config.outside()
        digests = {name: artifact.digest for name, artifact in inputs.items()}
        return key_of(self.name, self.version, config.model_dump(mode="json") | outside, digests), outside


def stage(
    kind: type[A], *, version: str, trains: bool = False
) -> Callable[[Callable[Concatenate[Path, P], Metrics]], Stage[P, A]]:
    """Make a stage. `kind` is the artifact type it yields; `version` changes when its bytes would; `trains`: a rerun
    goes on in the work folder that a killed one left, and where Prefect runs one such stage at a time is at work."""
    return lambda body: Stage(body, kind, version, trains)


@dataclasses.dataclass
class Result:
    """What one stage did in this run: a row of the demo's table, an entry of `--json`."""

    stage: str
    cache: str = "absent"
    key: str = ""
    digest: str = ""
    path: str = ""
    seconds: float = 0.0
    metrics: Metrics = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Session:
    """One run of the DAG: where artifacts go, which stages are wanted, what became of each."""

    store: Store
    runtime: Runtime = dataclasses.field(default_factory=Runtime)
    tracker: Tracker = dataclasses.field(default_factory=Tracker)
    force: frozenset[str] = frozenset()
    wanted: frozenset[str] | None = None
    """Stages to visit; None means all."""
    must_hit: frozenset[str] = frozenset()
    """Stages that may not be built in this run, because it starts below them."""
    given: Given = dataclasses.field(default_factory=dict)
    """Artifacts that a stage takes instead of those that the DAG gives it, by the name of its input."""
    note: str = ""
    """A line for the run's page."""
    results: dict[str, Result] = dataclasses.field(default_factory=dict)
    edges: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Each stage called so far, and the stages that feed it: the DAG."""
    url: str = ""
    """The parent run's page in MLflow, once it is delivered."""

    def run(self, stage: Stage, config: Config, inputs: Mapping[str, Artifact]) -> Artifact:
        """The stage's artifact; a stage that is not wanted yields a blank that no wanted stage reads."""
        self.results[stage.name] = Result(stage.name)
        given = self.given.get(stage.name, {})
        above = (artifact.stage for port, artifact in inputs.items() if port not in given)
        self.edges[stage.name] = list(dict.fromkeys(above))
        inputs = {port: artifact for port, artifact in {**inputs, **given}.items() if artifact}
        if self.wanted is not None and stage.name not in self.wanted:
            return blank(stage)
        if in_flow_run():
            return prefect_task(stage)(config, inputs)
        return self.execute(stage, config, inputs)[0]

    def above(self, name: str) -> frozenset[str]:
        """Every stage that feeds this one, directly or not."""
        return frozenset(self.edges[name]).union(*(self.above(parent) for parent in self.edges[name]))

    def below(self, name: str) -> frozenset[str]:
        """Every stage that this one feeds, directly or not."""
        return frozenset(other for other in self.edges if name in self.above(other))

    def execute(self, stage: Stage, config: Config, inputs: Mapping[str, Artifact]) -> tuple[Artifact, bool]:
        """Hit or build, tracked and timed; returns (artifact, hit)."""
        result, start, child = self.results[stage.name], time.monotonic(), Child(self.tracker, stage.name)
        result.cache = "failed"
        try:
            at = building(self.store, stage.name, stage.version)
            with running(stage.name, self.runtime), at, disk_full(stage.name):
                result.key, outside = stage.identify(config, inputs)
                child.start(result.key, config, {**inputs, **origins(config)}, prefect_tags())
                fill = functools.partial(self._fill, stage, config, inputs, outside, child)
                force = stage.name in self.force
                found = self.store.build(stage.name, result.key, fill, force=force, resumes=stage.trains)
                artifact, hit = load(stage.kind, *found[:2]), found[2]
                result.cache, result.seconds = "hit" if hit else "miss", round(time.monotonic() - start, 3)
                say(f"{result.cache} {artifact} in {result.seconds:.1f} s, {headline(artifact.metrics)}")
                child.finish(artifact, found[1], hit)
        except BaseException as error:
            result.seconds = round(time.monotonic() - start, 3)
            child.fail(error)
            raise
        result.digest, result.path, result.metrics = artifact.digest, str(artifact.path), artifact.metrics
        return artifact, hit

    def _fill(
        self, stage: Stage, config: Config, inputs: Mapping[str, Artifact], outside: Mapping, child: Child, work: Path
    ) -> dict[str, Any]:
        """Run the stage's body in its work folder; what the manifest is to say besides its files."""
        ref = f"{stage.name}:{work.parent.name}"
        if stage.name in self.must_hit:
            raise UserError(f"{ref} is not in the store, and this run starts below it; run without --from/--only")
        say(f"building {ref}")
        child.building(work)
        with gpu_slot() if stage.trains else nullcontext():
            start = time.monotonic()  # waiting for a turn is no work
            metrics = stage.fn(work, config, **{**dict.fromkeys(stage.parameters[1:]), **inputs})  # left out is None
        metrics |= part_figures()
        if config.outside() != outside:
            raise UserError(f"{stage.name}: its sources changed while they were read; nothing was published; rerun")
        return {
            "schema": 1,
            "version": stage.version,
            "type": stage.kind.__name__,
            "config": config.model_dump(mode="json"),
            "outside": outside,
            "inputs": noted(inputs),
            "origins": noted(origins(config)),
            "metrics": [[name, round(float(value), 6)] for name, value in metrics.items()],  # in their order
            "tracking": child.ids,
            "seconds": round(time.monotonic() - start, 3),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **surroundings(),
        }


def load(kind: type[A], path: Path, manifest: Mapping[str, Any]) -> A:
    """The typed record of a published folder; loading it as another type is an error."""
    if manifest["type"] != kind.__name__:
        raise UserError(f"{path} is a {manifest['type']}, not a {kind.__name__}; name an artifact of the right stage")
    named = {name: manifest[name] for name in ("stage", "key", "digest")}
    return kind(path=path, metrics=dict(manifest["metrics"]), **named)


def origins(config: Config) -> dict[str, Artifact]:
    """The artifacts of this store that settings name, by the setting: lineage goes on in them."""
    root, named = (
        default_store().root.resolve(),
        {name: folder_of(ref).resolve() for name, ref in config.refs().items()},
    )
    found = {name: (folder, read_manifest(folder)) for name, folder in named.items() if folder.is_relative_to(root)}
    return {name: load(getattr(artifacts, made["type"]), folder, made) for name, (folder, made) in found.items()}


def noted(given: Mapping[str, Artifact]) -> dict[str, dict[str, str]]:
    """Artifacts as a manifest names them."""
    return {name: {"stage": a.stage, "key": a.key, "digest": a.digest} for name, a in given.items()}


def blank(stage: Stage) -> Artifact:
    """A stand-in for the artifact of a stage that this run leaves out."""
    return stage.kind(stage=stage.name, key="", digest="", path=Path())


@contextmanager
def disk_full(name: str) -> Generator[None]:
    """Turn 'no space' and 'file too large' into a line for the user: nothing was published."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise UserError(f"{name}: {error.strerror}; nothing was published; free space and rerun") from error
        raise


@functools.cache
def surroundings() -> dict[str, Any]:
    """What the making may have depended on but the key does not hold: commit, libraries, numerics."""
    commit, here = "", Path(__file__).parent
    with suppress(OSError, subprocess.CalledProcessError):  # no git on this machine, or no checkout
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=here, text=True, stderr=subprocess.DEVNULL)
    names = ("torch", "numpy", "pyarrow", "tokenizers", "tiktoken", "numba", "transformers")
    libraries = {name: importlib.metadata.version(name) for name in names}
    about = {"libraries": libraries, "python": platform.python_version(), "machine": platform.machine()}
    return {"commit": commit.strip(), **about}


# -- the session at work ----------------------------------------------------------------------------------------------

_session: ContextVar[Session | None] = ContextVar("session", default=None)


def session() -> Session:
    """The run at work; outside of one, a plain run in the default store."""
    return _session.get() or Session(default_store())


@contextmanager
def using(new: S) -> Generator[S]:
    """Make a session the run at work."""
    token = _session.set(new)
    try:
        yield new
    finally:
        _session.reset(token)


@contextmanager
def opened(name: str, params: Mapping[str, Any], new: Session, uri: str | None) -> Generator[Session]:
    """A session with its parent run in the journal (and on the MLflow server at `uri`, where one is given)."""
    new.tracker, status = Tracker(new.store.root), "FAILED"
    new.tracker.start(name, params, {"mlflow.source.git.commit": surroundings()["commit"], **prefect_tags()}, uri)
    try:
        with using(new):
            yield new
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        release = new.results.get("export")
        new.url = new.tracker.close(status, release.digest if release else "")
        show_summary(name, new.results.values(), new.url, new.note)


@contextmanager
def at_work(name: str, params: Mapping[str, Any], means: Runtime) -> Generator[None]:
    """The session at work if there is one; else, as in a run that Prefect's UI started, a tracked one of its own."""
    if now := _session.get():
        now.tracker.event("log", id=now.tracker.id, tags=prefect_tags())  # the parent began before the flow run did
        try:
            yield
        finally:
            show_summary(name, now.results.values(), now.tracker.page(now.tracker.id), now.note)
    else:
        with opened(name, params, Session(default_store(), means), os.environ.get("MLFLOW_TRACKING_URI")):
            yield


# -- Prefect ----------------------------------------------------------------------------------------------------------


@functools.cache
def prefect_task(stage: Stage) -> Callable[[Config, Mapping[str, Artifact]], Artifact]:
    """The stage as a Prefect task: our store is the one cache, and a hit shows as Cached in the UI."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Completed

    @task(name=stage.name, task_run_name=stage.name, description=stage.doc, cache_policy=NO_CACHE, persist_result=False,
          retry_delay_seconds=10, retry_condition_fn=transient, tags=["gpu"] if stage.trains else [])  # fmt: skip
    def body(config: Config, **inputs: Artifact) -> Any:
        now = session()
        artifact, hit = now.execute(stage, config, inputs)
        show_stage(stage.name, artifact, hit, config, now.tracker.page(now.tracker.stages[-1]["id"]))
        return Completed(name="Cached", message=f"{artifact} served from the store", data=artifact) if hit else artifact

    def call(config: Config, inputs: Mapping[str, Artifact]) -> Artifact:
        means = session().runtime
        limit_s = means.timeout_min * 60 if means.timeout_min else None
        task_ = body.with_options(retries=means.retries, timeout_seconds=limit_s)
        try:
            return task_(config, return_state=True, **inputs).result()
        except TimeoutError as error:
            rule = f"took longer than runtime.timeout_min={means.timeout_min}, the wait for its turn included"
            raise UserError(f"{stage.name}: {rule}; raise it, and it goes on where it was") from error

    return call
