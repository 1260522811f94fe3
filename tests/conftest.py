"""What all tests share: an isolated store and memory, and the optional real data beside the project."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Every test has its own store, its own servers' home and no tracking server."""
    monkeypatch.setenv("GPTLOOM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("GPTLOOM_HOME", str(tmp_path / "home"))
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real texts that the project does not ship: `../shared/data` or $GPTLOOM_SHARED_DATA."""
    folder = Path(os.environ.get("GPTLOOM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the optional real data is not at {folder}; set GPTLOOM_SHARED_DATA to run this test")
    return folder
