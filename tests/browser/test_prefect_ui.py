"""Prefect's UI alone, in a real browser: start, change, retry, cancel, and see the schedule.

The services are real; the recipe is tiny because a browser test is about what people press, not about training.
"""

import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pages import fill, submit

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = {
    "Name": "small", "Ingest > Max Mb": 0.5, "Tokenizer > Vocab Size": 500,
    "Pretrain > Steps": 60, "Pretrain > Batch": 4, "Pretrain > Model > Depth": 1, "Pretrain > Model > Width": 32,
    "Pretrain > Model > Context": 64, "Chats > Max Tokens": 200, "Sft > Steps": 30, "Sft > Batch": 4,
    "Pairs > Max Tokens": 200, "Prefer > Steps": 10, "Prefer > Batch": 4, "Rl > Steps": 2, "Rl > Batch": 2,
    "Rl > Group": 4, "Evaluate > Tokens": 2000, "Evaluate > Questions": 8, "Evaluate > Pairs": 8,
    "Evaluate > Problems": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def prefect(services, prefect_api):
    return prefect_api(services["prefect"].url)


def form(page, prefect, name):
    """Open a deployment's form the way a person does: the list, its row, Run, Custom run."""
    page.goto(f"{prefect.url}/deployments?deployments.flowOrDeploymentNameLike={name}")
    page.locator("a[href*='/deployments/deployment/']").get_by_text(name, exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.wait_for_selector(".schema-form-property__label")


def artifact(page, key):
    """What a Markdown artifact of the run on this page says."""
    page.reload()
    page.get_by_text("Artifacts", exact=True).first.click()
    page.get_by_text(key, exact=True).first.click()
    page.get_by_text("MLflow").first.wait_for()
    return page.locator("body").inner_text()


def test_the_pipeline_starts_from_its_form_and_one_stage_again_with_a_changed_field(prefect, page):
    form(page, prefect, "pipeline")
    for label, value in SMALL.items():
        fill(page, f"recipe > {label}", value)
    run = submit(page)
    assert prefect.finished(run) == "Completed"
    told = artifact(page, "summary")
    assert "small" in told
    assert "export" in told
    assert "Metrics, figures and lineage in MLflow" in told
    made = next(line.split()[3] for line in told.splitlines() if line.startswith("export"))
    form(page, prefect, "dedup")
    fill(page, "recipe", made)
    fill(page, "changes > Threshold", 0.8)
    run = submit(page)
    assert prefect.finished(run) == "Completed"
    told = artifact(page, "summary")
    assert "dedup.threshold=0.8" in told
    keys = {word.strip("`.,") for word in told.split() if word.strip("`").startswith("dedup:")}
    assert len(keys) == 2, f"the key before and the changed one: {told}"


def test_a_failed_run_is_retried_from_its_page(prefect, page, tmp_path):
    recipe, source = tmp_path / "late.yaml", tmp_path / "late.txt"
    recipe.write_text(f"ingest: {{sources: [{source}]}}\nfilter: null\n")
    form(page, prefect, "ingest")
    fill(page, "recipe", recipe)
    run = submit(page)
    assert prefect.finished(run) == "Failed"
    page.reload()
    page.get_by_text("names no file that can be read").first.wait_for()
    source.write_text("It came late, and it is text. " * 50)
    page.get_by_role("button", name="Retry").click()
    page.get_by_role("button", name="Retry").last.click()
    time.sleep(3)
    assert prefect.finished(run) == "Completed"


def test_a_training_run_is_cancelled_from_its_page_and_leaves_no_process(services, prefect, page):
    form(page, prefect, "pipeline")
    fill(page, "recipe > Name", "long")
    fill(page, "recipe > Ingest > Max Mb", 0.6)
    fill(page, "recipe > Tokenizer > Vocab Size", 400)
    fill(page, "recipe > Pretrain > Steps", 1_000_000)
    run = submit(page)
    while not trainers(services):
        assert prefect.state(run)["type"] not in prefect.ENDS
        time.sleep(1)
    page.reload()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Confirm").click()
    _, left = psutil.wait_procs(psutil.Process(services["worker"].pid).children(recursive=True), 15)
    assert not left, "the flow, its trainer and their helpers"
    assert prefect.finished(run, 60) == "Cancelled"


def trainers(services):
    """Trainers below the worker of these services."""
    found = []
    for process in psutil.Process(services["worker"].pid).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found += [process] if "gpt.train" in process.cmdline() else []
    return found


def test_the_schedule_of_the_refresh_is_shown(prefect, page):
    page.goto(f"{prefect.url}/deployments?deployments.flowOrDeploymentNameLike=refresh")
    page.locator("a[href*='/deployments/deployment/']").get_by_text("refresh", exact=True).first.click()
    page.get_by_text("nightly-at-03-00-utc").first.wait_for()
