"""MLflow's UI alone, in a real browser: from the newest release to its data, to every run behind it, and to Prefect.

The run is real, of a tiny recipe: what is asked is whether each page tells and leads on.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.lineage import from_mlflow
from tasks.lineage import nodes
from tasks.notes import SHOWN

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]
PARTS = ("one.jsonl", "two.jsonl", "three.jsonl")


@pytest.fixture(scope="module")
def mlflow(services, tiny_recipe, tmp_path_factory):
    """MLflow's address, after a run over three files."""
    folder, lines = tmp_path_factory.mktemp("sources"), (tiny_recipe.parent / "docs.jsonl").read_text().splitlines()
    for n, name in enumerate(PARTS):
        (folder / name).write_text("\n".join(lines[n :: len(PARTS)]))
    command = [sys.executable, "-c", "from flows.cli import main; main()", "run", str(tiny_recipe)]
    subprocess.run([*command, "--set", f"ingest.sources=[{folder}]"], check=True)
    return services["mlflow"].url


def shows(page, *texts, exact=False):
    """Wait until the page shows each of these texts."""
    for text in texts:
        page.get_by_text(text, exact=exact).locator("visible=true").first.wait_for()


def follow(page, name):
    """Press a note's link, which opens a page of its own; that page."""
    with page.context.expect_page() as opened:
        page.get_by_role("link", name=name, exact=True).first.click()
    return opened.value


def test_clicks_lead_from_the_alias_to_the_data_the_runs_behind_it_and_the_run_in_prefect(mlflow, page):
    page.goto(mlflow)
    shows(page, "Model training")
    page.get_by_text("Model training", exact=True).first.click()
    page.get_by_role("link", name="Model registry").click()
    page.get_by_role("button", name="Try it now").click()  # MLflow greets newcomers
    page.get_by_role("link", name="gptloom", exact=True).click()
    shows(page, "@ challenger", "artifact.digest")
    page.get_by_role("link", name="Version 1").click()
    shows(page, "@ challenger", "artifact.digest", "this run", "where it comes from")
    page.get_by_role("link", name="13 export").click()
    shows(page, "11 rl", "12 evaluate", "3 tokenizer", "eval/max_logit_difference", "evaluate (")
    page.get_by_role("link", name="tiny", exact=True).click()
    shows(page, "where it comes from", "eval/bpb", "13 export")
    page.get_by_text(re.compile(r"\.jsonl \(")).first.click()
    shows(page, "4 datasets used", "documents:", *(f"{name} (" for name in PARTS))
    page.keyboard.press("Escape")
    trained = follow(page, "pretrain")
    shows(trained, "5 pretrain", "3 tokenizer", "shard (")
    trained.get_by_text("Model metrics", exact=True).click()
    shows(trained, "perf", "tokens_per_s", "train", exact=True)
    trained.get_by_text("val", exact=True).scroll_into_view_if_needed()  # charts are drawn when they are in sight
    shows(trained, "loss", exact=True)
    trained.get_by_text("Overview", exact=True).click()
    read = follow(follow(follow(trained, "4 shard"), "2 dedup"), "1 ingest")
    shows(read, "1 ingest", "From its sources", "data/documents")
    prefect = follow(page, "its run in Prefect")
    shows(prefect, "tiny", "Completed")
    assert "/runs/flow-run/" in prefect.url


def test_the_board_has_scores_as_columns(mlflow, page):
    page.goto(f"{mlflow}/#/experiments/1?workflowType=machine_learning")
    board = follow(page, "show their scores")
    shows(board, *SHOWN[:2], "cache", "tiny", "0 of 13 hit")


def test_the_walk_by_api_finds_every_source_file(mlflow):
    tree = from_mlflow("models:/gptloom@challenger", mlflow)
    found = {node["artifact"].partition(":")[0]: node["sources"] for node in nodes(tree).values()}
    assert len(found) == 13, "filter is left out"
    assert {Path(source["path"]).name for source in found["ingest"]} == set(PARTS)
    assert {source["path"] for name in ("chats", "pairs", "prompts") for source in found[name]} == {"demo"}
