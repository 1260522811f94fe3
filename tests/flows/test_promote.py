"""The champion's gate on a real MLflow server: which release becomes champion, which is held back, and why."""

import json
import os
import signal
import sys
import time

import pytest

from flows import cli, servers
from flows.lineage import logged_model
from flows.promote import BETTER, WORSE, beats, clearly, promote
from flows.settings import Settings
from gpt.errors import UserError
from tasks.artifacts import Checkpoint, Config, Metrics, Release, Scores, Shards
from tasks.stage import Session, opened, stage
from tasks.store import Store

CHALLENGER = "models:/gptloom@challenger"


class Text(Config):
    """Held-out text."""

    text: str = "one"
    """Content."""


class Quality(Config):
    """How good the model is."""

    bpb: float = 2.0
    """Bits per byte."""
    right: float = 0.9
    """Pairs judged rightly."""


class Asked(Config):
    """How much is asked."""

    tokens: int = 100
    """A setting that decides scores."""
    seed: int = 1
    """One that does not."""


@stage(Shards, version="1")
def shard(out, config: Text) -> Metrics:
    """Write the text."""
    (out / "val.bin").write_text(config.text)
    return {"data/tokens": 3}


@stage(Checkpoint, version="1")
def pretrain(out, config: Quality) -> Metrics:
    """Write what it will score."""
    (out / "model.json").write_text(config.model_dump_json())
    return {"val/bpb": config.bpb}


def row(measure, who, value, half=None):
    low, high = (None, None) if half is None else (value - half, value + half)
    return {"measure": measure, "who": who, "value": value, "low": low, "high": high, "n": 9}


@stage(Scores, version="1")
def evaluate(out, config: Asked, base: Checkpoint, shards: Shards) -> Metrics:
    """A stand-in with scores.json's rows and metrics' names, which is all that the gate sees of an evaluation."""
    quality = json.loads((base.path / "model.json").read_text())
    rows = [row("bpb", "base", quality["bpb"]), row("loss", "base", 3 * quality["bpb"])]
    rows += [row("bpb", "unigram", 3.1), row("bpb", "xz -9", 1.5), row("pair_accuracy", "longer answer", 0.5, 0.05)]
    rows.append(row("pair_accuracy", "base", quality["right"], 0.05))
    (out / "report").mkdir()
    (out / "report" / "scores.json").write_text(json.dumps(rows))
    (out / "content").write_text(str(config.tokens) + base.digest + shards.digest)
    return {"eval/bpb": quality["bpb"], "eval/pair_accuracy": quality["right"]}


@stage(Release, version="1")
def export(out, config: Config, model: Checkpoint, scores: Scores) -> Metrics:
    """Copy."""
    (out / "model").write_bytes((model.path / "model.json").read_bytes())
    return {"data/bytes": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        patch.setenv("GPTLOOM_HOME", str(tmp_path_factory.mktemp("home")))
        settings = Settings(ports={"mlflow": servers.free_port(0)})
        settings.save()
        servers.start("mlflow", settings)
        running, deadline = servers.known()["mlflow"], time.monotonic() + 90
        while not running.healthy:
            assert time.monotonic() < deadline, "MLflow does not start from the pinned versions"
            time.sleep(0.2)
        yield running.url
        os.killpg(running.pid, signal.SIGKILL)


@pytest.fixture
def registry(server):
    """A client of a registry without versions."""
    from mlflow import MlflowClient, MlflowException

    client = MlflowClient(server, server)
    try:
        client.delete_registered_model("gptloom")
    except MlflowException:
        assert not client.search_registered_models()
    return client


@pytest.fixture
def weave(server, tmp_path):
    """Train, evaluate, export and register a model of that quality."""

    def go(text="one", tokens=100, seed=1, **quality):
        with opened("toy", {}, Session(Store(tmp_path / "store")), server):
            model = pretrain(Quality(**quality))
            export(Config(), model, evaluate(Asked(tokens=tokens, seed=seed), model, shard(Text(text=text))))

    return go


def champion(client):
    return client.get_registered_model("gptloom").aliases.get("champion")


@pytest.mark.server
def test_the_first_champion_must_beat_the_trivial_baselines(server, registry, weave):
    weave(bpb=3.2)
    held = promote(CHALLENGER, server)
    assert (held.promoted, held.gate) == (False, "held")
    assert held.reason == "it does not beat bpb 3.200 against unigram 3.100"
    assert champion(registry) is None
    weave(bpb=2.0)
    passed = promote(CHALLENGER, server)
    assert (passed.promoted, passed.gate, passed.version) == (True, "first", "2")
    assert passed.reason == "there was no champion; bpb 2.000 beats unigram 3.100", "xz -9 at 1.5 is no condition"
    version = registry.get_model_version_by_alias("gptloom", "champion")
    assert (version.version, version.tags["gate"], version.tags["gate.reason"]) == ("2", "first", passed.reason)
    assert version.description.startswith("Release `export:")
    assert passed.reason in version.description


@pytest.mark.server
def test_a_second_promotion_says_the_same_and_changes_nothing(server, registry, weave):
    weave(bpb=2.0)
    first = promote(CHALLENGER, server)
    before = registry.get_model_version("gptloom", "1")
    again = promote(CHALLENGER, server, force=True)
    assert (again.promoted, again.gate, again.reason) == (True, "champion", first.reason)
    after = registry.get_model_version("gptloom", "1")
    assert (after.tags, after.description) == (before.tags, before.description)
    assert after.last_updated_timestamp == before.last_updated_timestamp


@pytest.mark.server
def test_a_later_one_must_be_worse_on_nothing_and_better_on_something(server, registry, weave, capsys, monkeypatch):
    weave(bpb=2.0, right=0.8)
    assert promote(CHALLENGER, server).promoted
    weave(bpb=2.01, right=0.85)
    same = promote(CHALLENGER, server)
    assert (same.gate, same.reason) == (
        "held",
        "nothing clearly better than version 1: no clear difference on 2 measures",
    )
    weave(bpb=1.5, right=0.6)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setattr(sys, "argv", ["gptloom", "promote"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    reason = "clearly worse than version 1: pair_accuracy 0.600 (0.550-0.650), was 0.800 (0.750-0.850)"
    assert capsys.readouterr().out == f"gptloom, version 3, is held back: {reason}\n"
    assert champion(registry) == "1"
    weave(bpb=1.9, right=0.8)
    better = promote(CHALLENGER, server)
    said = "clearly better than version 1: bpb 1.900, was 2.000; nothing clearly worse, no clear difference on 1 other"
    assert (better.promoted, better.reason) == (True, said)
    assert champion(registry) == "4"
    forced = promote("models:/gptloom/3", server, force=True)
    assert (forced.promoted, forced.gate) == (True, "forced")
    assert forced.reason.startswith("by hand (--force), although clearly worse than version 4: pair_accuracy 0.600")
    assert champion(registry) == "3"
    texts = registry.get_model_version("gptloom", "3").description
    assert texts.count("**Gate:**") == 1, "the outcome replaces the earlier one"


@pytest.mark.server
def test_only_what_was_asked_the_same_is_compared_and_it_says_what_to_run(server, registry, weave, tmp_path):
    weave(bpb=2.0, text="old")
    assert promote(CHALLENGER, server).promoted
    weave(bpb=1.0, text="new", tokens=50)
    apart = promote(CHALLENGER, server)
    assert apart.gate == "held"
    assert apart.reason.startswith("it cannot be compared with the champion, version 1, which was asked other things")
    assert "evaluate.tokens: 100 there, 50 here" in apart.reason
    assert "evaluate` in Prefect with recipe models:/gptloom/1, inputs shards=shard:" in apart.reason
    assert "changes tokens=50" in apart.reason
    with opened("again", {}, Session(Store(tmp_path / "store")), server):  # what the reason says to run
        evaluate(Asked(tokens=50, seed=9), pretrain(Quality(bpb=2.0)), shard(Text(text="new")))
    now = promote(CHALLENGER, server)
    assert (now.promoted, now.gate) == (True, "better"), now.reason


@pytest.mark.server
def test_no_such_model_is_one_clear_line(server, registry):
    with pytest.raises(UserError, match="models:/gptloom@nobody: no such registered model, alias or version"):
        promote("models:/gptloom@nobody", server)


@pytest.mark.server
@pytest.mark.parametrize("logged", [False, True])
def test_a_model_registered_by_other_means_is_one_clear_line(server, registry, logged):
    registry.create_registered_model("gptloom")
    model = registry.create_logged_model("0").model_id if logged else None
    registry.create_model_version("gptloom", f"models:/{model}" if logged else "s3://bucket/model", model_id=model)
    for ask in (promote, logged_model):
        with pytest.raises(UserError, match="models:/gptloom/1 was not registered by gptloom"):
            ask("models:/gptloom/1", server)


@pytest.mark.parametrize(
    ("measure", "new", "old", "verdict"),
    [
        ("arithmetic", (0.9, 0.05), (0.7, 0.05), 1),
        ("arithmetic", (0.7, 0.05), (0.9, 0.05), -1),
        ("arithmetic", (0.8, 0.05), (0.75, 0.05), 0),
        ("refusal_harmless", (0.1, 0.05), (0.3, 0.05), 1),
        ("refusal_harmless", (0.3, 0.05), (0.1, 0.05), -1),
        ("bpb", (2 * WORSE + 0.001, None), (2.0, None), -1),
        ("bpb", (2 * WORSE - 0.001, None), (2.0, None), 0),
        ("bpb", (2 * BETTER - 0.001, None), (2.0, None), 1),
        ("bpb", (2.0, None), (2.0, None), 0),
        ("bpb", (float("nan"), None), (2.0, None), -1),
    ],
)
def test_clearly_means_apart_in_the_measures_own_direction(measure, new, old, verdict):
    assert clearly(row(measure, "rl", *new), row(measure, "rl", *old)) == verdict


def test_a_baseline_is_beaten_with_the_whole_interval():
    assert beats(row("arithmetic", "rl", 0.1, 0.02), row("arithmetic", "constant answer", 0.05, 0.02))
    assert not beats(row("arithmetic", "rl", 0.1, 0.06), row("arithmetic", "constant answer", 0.05, 0.02))
    assert not beats(row("bpb", "rl", 3.0), row("bpb", "unigram", 3.0))
