"""Tracking against a real MLflow server: every point arrives once, whatever dies; lineage needs no store."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from flows import servers
from flows.lineage import as_text, from_mlflow, from_store
from flows.settings import Settings
from tasks.artifacts import Checkpoint, Config, Corpus, Metrics, Release
from tasks.courier import Courier, sync
from tasks.lineage import becoming, page
from tasks.stage import Session, load, opened, stage
from tasks.store import Store
from tasks.tracking import flat

pytestmark = pytest.mark.server


SIZES = {"bytes": 5, "documents": 1}


class Source(Config):
    """Names its source."""

    text: str = "hello"
    """Content."""
    files: int = 1
    """Source files that it notes."""


class Steps(Config):
    """How long the fake trainer writes."""

    steps: int = 20
    """Points."""
    pause_s: float = 0.0
    """Between points."""
    init: str | None = None
    """The model that it goes on from."""

    def refs(self) -> dict[str, str]:
        return {"init": self.init} if self.init else {}


@stage(Corpus, version="1")
def ingest(out: Path, config: Source) -> Metrics:
    """One document and the note of its source file."""
    (out / "part-00000.parquet").write_text(config.text)
    (out / "logs").mkdir()
    (out / "report").mkdir()
    (out / "report" / "examples.md").write_text("# removed")
    (out / "report" / "said.table.json").write_text(json.dumps({"columns": ["step"], "data": [[1]]}))
    names = ["x.txt", *(f"{n}/x.txt" for n in range(1, config.files))]
    sources = [
        {"path": f"/data/{x}", "digest": f"{n:02}{'d' * 62}", **SIZES, "kind": "file"} for n, x in enumerate(names)
    ]
    (out / "logs" / "sources.json").write_text(json.dumps(sources))
    return {"data/documents": 1}


@stage(Checkpoint, version="1", trains=True)
def pretrain(out: Path, config: Steps, corpus: Corpus) -> Metrics:
    """Stand-in for the trainer: appends the same journal lines, which is all that tracking sees of one."""
    (out / "logs").mkdir(exist_ok=True)
    with (out / "logs" / "metrics.jsonl").open("a") as journal:
        for step in range(config.steps):
            journal.write(json.dumps([int(time.time() * 1000), step, {"train/loss": 5 - step / 10}]) + "\n")
            journal.flush()
            time.sleep(config.pause_s)
    (out / "model").write_text(corpus.digest)
    return {"train/loss": 5 - (config.steps - 1) / 10, "val/bpb": 2.5}


@stage(Release, version="1")
def export(out: Path, config: Config, model: Checkpoint) -> Metrics:
    """Copy."""
    (out / "model").write_bytes((model.path / "model").read_bytes())
    (out / "report").mkdir()
    (out / "report" / "lineage.html").write_text(page(becoming(out, [model])))
    return {"eval/bpb": 2.5}


def weave(uri, store, steps=20, pause_s=0.0, init=None, **source):
    session = Session(Store(store))
    with opened("toy", {"a": {"b": 1}}, session, uri):
        export(Config(), pretrain(Steps(steps=steps, pause_s=pause_s, init=init), ingest(Source(**source))))
    return session


class Mlflow:
    """A real server that can be killed and come back at the same address."""

    def __init__(self, home):
        self.home = str(home)
        self.settings = Settings(ports={"mlflow": servers.free_port(0)})
        self.start()

    def start(self):
        os.environ["GPTLOOM_HOME"] = self.home
        self.settings.save()
        servers.start("mlflow", self.settings)
        self.server = servers.known()["mlflow"]
        deadline = time.monotonic() + 90
        while not self.server.healthy:
            assert time.monotonic() < deadline, "MLflow does not start from the pinned versions"
            time.sleep(0.2)

    def kill(self):
        os.killpg(self.server.pid, signal.SIGKILL)
        os.waitpid(self.server.pid, 0)


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLOOM_HOME", "")
        patch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        server = Mlflow(tmp_path_factory.mktemp("home"))
        yield server
        server.kill()


@pytest.fixture
def client(mlflow):
    from mlflow import MlflowClient

    return MlflowClient(mlflow.server.url, mlflow.server.url)


def children(client, parent):
    found = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent}'", order_by=["attributes.start_time"])
    return {run.data.tags["stage"]: client.get_run(run.info.run_id) for run in found}  # a search omits model inputs


def digests(run):
    return {chip.dataset.digest for chip in run.inputs.dataset_inputs}


def run_id(session):
    return session.url.split("/runs/")[1].split("?")[0]


def test_a_run_has_a_parent_children_chips_a_model_and_a_note(mlflow, client, tmp_path):
    session = weave(mlflow.server.url, tmp_path / "store")
    assert session.url.endswith("?workflowType=machine_learning")
    parent, stages = client.get_run(run_id(session)), children(client, run_id(session))
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"a.b": "1"}
    assert list(stages) == ["ingest", "pretrain", "export"]
    for run in stages.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags["cache"] == "miss"
        assert f"#/experiments/1/runs/{run.info.run_id}?workflowType" in parent.data.tags["mlflow.note.content"]
    assert {c.dataset.name for c in stages["ingest"].inputs.dataset_inputs} == {"x.txt", "ingest"}
    assert {c.dataset.name for c in parent.inputs.dataset_inputs} == {"x.txt"}, "the parent's row shows the sources"
    assert len(stages["export"].inputs.model_inputs) == len(stages["export"].outputs.model_outputs) == 1
    curve = client.get_metric_history(stages["pretrain"].info.run_id, "train/loss")
    assert [m.step for m in curve] == list(range(20)), "the final value must not double the curve"
    assert stages["pretrain"].data.metrics["val/bpb"] == 2.5
    files = [a.path for a in client.list_artifacts(stages["ingest"].info.run_id, "report")]
    assert files == ["report/examples.md", "report/said.table.json"]
    logged = json.loads(stages["ingest"].data.tags["mlflow.loggedArtifacts"])
    assert logged == [{"path": "report/said.table.json", "type": "table"}], "else the UI does not show it as a table"
    version = client.get_model_version_by_alias("gptloom", "challenger")
    assert version.tags["artifact.digest"] == session.results["export"].digest


def test_a_cached_run_has_the_same_lineage_and_points_to_its_maker(mlflow, client, tmp_path):
    made = children(client, run_id(weave(mlflow.server.url, tmp_path / "store")))
    cached = children(client, run_id(weave(mlflow.server.url, tmp_path / "store")))
    versions = client.search_model_versions("name = 'gptloom'")
    assert len({v.tags["artifact.digest"] for v in versions}) == len(versions), "registered once per digest"
    for name, run in cached.items():
        assert run.data.tags["cache"] == "hit"
        assert run.data.tags["cache.source_run_id"] == made[name].info.run_id
        assert {c.dataset.digest for c in run.inputs.dataset_inputs} == {
            c.dataset.digest for c in made[name].inputs.dataset_inputs
        }
    assert len(client.get_metric_history(cached["pretrain"].info.run_id, "train/loss")) == 1, "curves are not doubled"


def test_notes_lead_upstream_to_the_command_to_prefect_and_to_the_release(mlflow, client, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.stage.prefect_tags", lambda: {"prefect.url": "http://prefect/runs/flow-run/1"})
    session = weave(mlflow.server.url, tmp_path / "store")
    parent, stages = client.get_run(run_id(session)), children(client, run_id(session))
    link = {name: f"(#/experiments/1/runs/{run.info.run_id}?workflowType" for name, run in stages.items()}
    note = stages["pretrain"].data.tags["mlflow.note.content"]
    assert f"From [1 ingest]{link['ingest']}" in note
    assert f"(#/experiments/1/runs/{parent.info.run_id}?workflowType" in note
    assert "[its run in Prefect](http://prefect/runs/flow-run/1)" in note
    assert "From its sources" in stages["ingest"].data.tags["mlflow.note.content"]
    about = parent.data.tags["mlflow.note.content"]
    assert f"`{parent.data.tags['mlflow.source.name']}`" in about
    assert "[its run in Prefect](http://prefect/runs/flow-run/1)" in about
    version = client.get_model_version_by_alias("gptloom", "challenger").version
    assert f"[gptloom, version {version}](#/models/gptloom/versions/{version}?workflowType" in about
    assert f"(#/experiments/1/runs/{parent.info.run_id}/artifacts/lineage.html?workflowType" in about
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["lineage.html"]
    every = [target for text in (note, about) for target in re.findall(r"\((#/.*?)\)", text)]
    assert all("?workflowType=machine_learning" in target for target in every)


def test_a_stage_run_alone_leads_to_the_runs_that_made_its_inputs(mlflow, client, tmp_path):
    whole, session = weave(mlflow.server.url, tmp_path / "store"), Session(Store(tmp_path / "store"))
    path, manifest = session.store.find("ingest")
    corpus = load(Corpus, path, manifest)
    with opened("alone", {}, session, mlflow.server.url):
        pretrain(Steps(steps=3), corpus)
    note = children(client, run_id(session))["pretrain"].data.tags["mlflow.note.content"]
    made = children(client, run_id(whole))["ingest"].info.run_id
    assert re.search(rf"\[{corpus}\]\(#/experiments/1/runs/(\w+)\?", note), note
    assert made or note


def test_a_models_page_has_its_final_metrics_with_the_data_and_never_every_step(mlflow, client, tmp_path):
    session = weave(mlflow.server.url, tmp_path / "store", steps=31, text="own")
    again = weave(mlflow.server.url, tmp_path / "store", steps=31, text="own")
    run, corpus = children(client, run_id(session))["pretrain"], session.results["ingest"].digest
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    shown = {(m.key, m.value, m.dataset_name, m.dataset_digest, m.run_id) for m in model.metrics}
    final = {"train/loss": 5 - 30 / 10, "val/bpb": 2.5}
    assert shown == {(k, v, "ingest", corpus[:36], run.info.run_id) for k, v in final.items()}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(31))
    assert "made by [this run]" in model.tags["mlflow.note.content"]
    assert again.url


def test_the_experiment_has_a_board_and_a_note_and_gets_them_back(mlflow, client, tmp_path):
    weave(mlflow.server.url, tmp_path / "store")
    tags = client.get_experiment("1").tags
    assert json.loads(tags["mlflow.sharedViewState.board"])["selectedColumns"][1] == "metrics.`eval/bpb`"
    assert "(#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=board)" in tags["mlflow.note.content"]
    client.set_experiment_tag("1", "mlflow.sharedViewState.board", "{}")
    weave(mlflow.server.url, tmp_path / "store")
    assert client.get_experiment("1").tags == tags


def test_the_walk_is_the_stores_tree_with_every_source_file_although_the_store_moved_away(
    mlflow, tmp_path, monkeypatch
):
    weave(mlflow.server.url, tmp_path / "store", files=20, text="many")
    tree = from_store(Store(tmp_path / "store"), "export")
    (tmp_path / "store").rename(tmp_path / "gone")
    asked = []
    plain = requests.Session.request
    monkeypatch.setattr(requests.Session, "request", lambda *a, **k: asked.append(a) or plain(*a, **k))
    walked = from_mlflow("models:/gptloom@challenger", mlflow.server.url)
    assert len(asked) <= 5, f"{len(asked)} requests"
    stages = [walked, walked["inputs"][0], walked["inputs"][0]["inputs"][0]]
    assert [node["artifact"].split(":")[0] for node in stages] == ["export", "pretrain", "ingest"]
    assert {source["path"] for source in stages[2]["sources"]} == {
        "/data/x.txt",
        *(f"/data/{n}/x.txt" for n in range(1, 20)),
    }
    assert without_runs(walked) == without_runs(tree)
    assert "source /data/19/x.txt" in as_text(walked)


def test_a_model_that_went_on_from_an_earlier_one_leads_to_what_that_one_learned_from(mlflow, client, tmp_path):
    first = weave(mlflow.server.url, tmp_path / "store", text="first", files=2)
    made = first.results["pretrain"]
    session = weave(mlflow.server.url, tmp_path / "store", text="second", init=f"pretrain:{made.key}")
    tree = from_store(Store(tmp_path / "store"), f"export:{session.results['export'].key}")
    walked = from_mlflow("models:/gptloom@challenger", mlflow.server.url)
    assert without_runs(walked) == without_runs(tree)
    corpus, earlier = walked["inputs"][0]["inputs"]
    assert (earlier["artifact"], earlier["digest"]) == (f"pretrain:{made.key}", made.digest)
    assert [len(node["sources"]) for node in (corpus, earlier["inputs"][0])] == [1, 2]
    run = children(client, run_id(session))["pretrain"]
    assert len(run.inputs.model_inputs) == 1, "the earlier model stands among its inputs"
    link = rf"\[pretrain:{made.key}\]\(#/experiments/1/runs/{children(client, run_id(first))['pretrain'].info.run_id}"
    assert re.search(link, run.data.tags["mlflow.note.content"])


def without_runs(tree):
    """MLflow and the journal call a run differently; the chips of a run have no order."""
    sources = sorted(tree["sources"], key=lambda source: source["path"])
    return {**tree, "run": "", "sources": sources, "inputs": [without_runs(above) for above in tree["inputs"]]}


def test_a_server_that_dies_in_mid_training_costs_no_point_and_no_time(mlflow, client, tmp_path):
    session = Session(Store(tmp_path / "store"))
    began = time.monotonic()
    with opened("outage", {}, session, mlflow.server.url):
        corpus = ingest(Source())
        time.sleep(1.0)
        mlflow.kill()
        model = pretrain(Steps(steps=200, pause_s=0.005), corpus)
        trained_s = time.monotonic() - began
        mlflow.start()
        export(Config(), model)
    assert trained_s < 5, f"training waited for the tracking server: {trained_s:.1f} s"
    run = children(client, run_id(session))["pretrain"]
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == list(range(200)), f"{len(steps)} of 200 points"


def test_without_a_server_everything_waits_for_sync_and_arrives_once(mlflow, client, tmp_path):
    session = weave(None, tmp_path / "store", steps=50)
    assert session.url == ""
    assert sync(tmp_path / "store", mlflow.server.url) == 1
    assert sync(tmp_path / "store", mlflow.server.url) == 0
    found = client.search_runs(["1"], f"tags.`gptloom.id` = '{session.tracker.id}'")
    assert len(found) == 1
    run = children(client, found[0].info.run_id)["pretrain"]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(50))
    assert run.info.status == "FINISHED"


def test_a_courier_killed_between_any_two_events_repeats_nothing(mlflow, client, tmp_path):
    session = weave(None, tmp_path / "store", steps=30)
    while not (courier := Courier(session.tracker.folder, mlflow.server.url)).state["done"]:
        events = (session.tracker.folder / "events.jsonl").read_bytes()
        line = events[courier.state["at"] :].split(b"\n")[0]
        courier._guarded(json.loads(line))  # done, but killed before it could note so
        fresh = Courier(session.tracker.folder, mlflow.server.url)
        fresh._guarded(json.loads(line))
        fresh.state["at"] += len(line) + 1
        fresh._save()
    parent = client.search_runs(["1"], f"tags.`gptloom.id` = '{session.tracker.id}'")
    assert len(parent) == 1
    stages = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent[0].info.run_id}'")
    assert len(stages) == 3
    run = children(client, parent[0].info.run_id)["pretrain"]
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 30


DIES = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import importlib.util
spec = importlib.util.spec_from_file_location("toy", sys.argv[3])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
from tasks.stage import Session, opened
from tasks.store import Store
with opened("dies", {}, Session(Store(Path(sys.argv[1]))), None):
    toy.ingest(toy.Source())
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_delivered_as_killed(mlflow, client, tmp_path):
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", DIES, str(tmp_path / "store"), root, __file__], check=False)
    assert sync(tmp_path / "store", mlflow.server.url) == 1
    dead = client.search_runs(["1"], "attributes.run_name = 'dies'")
    assert [run.info.status for run in dead] == ["KILLED"]
    assert children(client, dead[0].info.run_id)["ingest"].info.status == "FINISHED"


def test_a_file_name_that_is_no_text_holds_nothing_up(mlflow, client, tmp_path):
    session = Session(Store(tmp_path / "store"))
    with opened("odd", {"name": "n\udcff.txt"}, session, mlflow.server.url):
        ingest(Source())
    assert client.get_run(run_id(session)).data.params == {"name": "n?.txt"}


def test_nested_settings_become_dotted_parameters():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, 2], "e": None}) == {
        "a.b": "1",
        "a.c": "{}",
        "d": "[1, 2]",
        "e": "None",
    }
    assert flat({}) == {}
