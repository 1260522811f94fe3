"""What browser tests share: real services with everything deployed, and a page of a headless Chromium."""

import shutil

import pytest

from flows import servers


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """Prefect's server with all deployments, MLflow's, and a worker."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("browser")
        patch.setenv("GPTLOOM_HOME", str(home))
        patch.setenv("GPTLOOM_STORE", str(home / "store"))
        yield servers.up({"prefect": servers.free_port(0), "mlflow": servers.free_port(0)})
        patch.setenv("GPTLOOM_HOME", str(home))
        servers.down()


@pytest.fixture(scope="module")
def page():
    """A page of a browser that the machine brings (`apt install chromium`); skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]' brings it")
    if not (path := shutil.which("chromium")):
        pytest.skip("no chromium on this machine: apt install chromium")
    with playwright.sync_playwright() as drivers:
        browser = drivers.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 1000})
        browser.close()
