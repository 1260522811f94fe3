"""What all tests share: an isolated store and memory, and the optional real data beside the project."""

import json
import logging
import os
import random
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.request import Request, urlopen

import pytest

from flows.settings import authorization


@pytest.fixture(autouse=True)
def isolated(tmp_path):
    """Every test has its own store, its own servers' home and no tracking server; what it sets ends with it."""
    logging.getLogger("gptloom").handlers = []
    with patch.dict(os.environ, GPTLOOM_STORE=str(tmp_path / "store"), GPTLOOM_HOME=str(tmp_path / "home")):
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
            os.environ.pop(name, None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real texts that the project does not ship: `../shared/data` or $GPTLOOM_SHARED_DATA."""
    folder = Path(os.environ.get("GPTLOOM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the optional real data is not at {folder}; set GPTLOOM_SHARED_DATA to run this test")
    return folder


TINY = """# every stage in a quarter of a minute: 200 documents, a model of 30 thousand parameters
ingest: {sources: [SOURCE]}
filter: null
tokenizer: {vocab_size: 400}
shard: {val_fraction: 0.2}
pretrain: {model: {depth: 1, width: 32, context: 64, dropout: 0.1}, batch: 4, steps: 240, checkpoint_every: 40,
  eval_every: 120, eval_windows: 4, sample_every: 0}
chats: {demo_functions: 60, demo_sums: 10, max_tokens: 200}
sft: {steps: 60, batch: 4, checkpoint_every: 20, eval_every: 60, eval_windows: 4, sample_every: 0}
pairs: {demo_functions: 20, demo_sums: 10, max_tokens: 200}
prefer: {steps: 20, batch: 4, checkpoint_every: 8, eval_every: 20, eval_windows: 4, sample_every: 0}
prompts: {max_tokens: 50}
rl: {steps: 6, batch: 2, group: 4, max_new_tokens: 4, resample: 1, checkpoint_every: 2, eval_every: 6,
  eval_windows: 4, sample_every: 0, numeric: 0, form: 1, exact: 1}
evaluate: {tokens: 2000, questions: 8, reply_tokens: 8, pairs: 8, problems: 8, answer_tokens: 4}
runtime: {threads: 1, workers: 1, device: cpu}
"""


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory) -> Path:
    """A recipe file over documents of this project's own words."""
    folder, rng = tmp_path_factory.mktemp("recipe"), random.Random(1)
    words = [word for word in (Path(__file__).parents[1] / "README.md").read_text().split() if len(word) < 20]
    rows = [json.dumps({"text": " ".join(rng.choices(words, k=60))}) for _ in range(200)]
    (folder / "docs.jsonl").write_text("\n".join(rows))
    (folder / "tiny.yaml").write_text(TINY.replace("SOURCE", str(folder / "docs.jsonl")))
    return folder / "tiny.yaml"


class Prefect:
    """A real server's API, asked as its UI asks, with the password that `up --auth` made for the home at work."""

    ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    def __init__(self, url: str) -> None:
        self.url, self.headers = url, {"Content-Type": "application/json", **authorization()}
        if "Authorization" in self.headers:
            self.headers |= {"Prefect-Csrf-Client": "tests"}
            self.headers |= {"Prefect-Csrf-Token": self.ask("/csrf-token?client=tests")["token"]}

    def ask(self, path: str, **body: Any) -> Any:
        """The answer of one route; a body makes it a POST."""
        request = Request(f"{self.url}/api{path}", json.dumps(body).encode() if body else None, self.headers)
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def start(self, name: str, **parameters: Any) -> str:
        """A run of a deployment."""
        (found,) = self.ask("/deployments/filter", deployments={"name": {"any_": [name]}})
        return self.ask(f"/deployments/{found['id']}/create_flow_run", parameters=parameters, state=scheduled())["id"]

    def state(self, run: str) -> dict[str, Any]:
        return self.ask(f"/flow_runs/{run}")["state"]

    def finished(self, run: str, limit_s: int = 300) -> str:
        """The name of the run's last state."""
        for _ in range(limit_s):
            if (state := self.state(run))["type"] in self.ENDS:
                return state["name"]
            time.sleep(1)
        return pytest.fail(f"{run} is still {state['name']} after {limit_s} s")

    def retry(self, run: str) -> None:
        """What the Retry button does."""
        self.ask(f"/flow_runs/{run}/set_state", state=scheduled("AwaitingRetry"), force=False)


def scheduled(name: str = "Scheduled") -> dict[str, str]:
    return {"type": "SCHEDULED", "name": name}


@pytest.fixture(scope="session")
def prefect_api() -> type[Prefect]:
    return Prefect
