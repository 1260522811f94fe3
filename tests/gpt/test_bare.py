"""`gpt/` needs torch, numpy, tiktoken, tokenizers, safetensors and what these need themselves, nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

BARE = """
import importlib.metadata as metadata, re, runpy, sys
from packaging.requirements import Requirement

wanted, todo = set(), ["torch", "numpy", "tiktoken", "tokenizers", "safetensors", "setuptools", "mpmath"]
while todo:
    name = re.sub("[-_.]+", "-", todo.pop()).lower()
    if name in wanted:
        continue
    wanted.add(name)
    try:
        needs = [Requirement(line) for line in metadata.distribution(name).requires or []]
    except metadata.PackageNotFoundError:
        continue
    todo += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
allowed = {re.sub("[-_.]+", "-", n).lower() for n in wanted}
for module, owners in metadata.packages_distributions().items():
    if not allowed & {re.sub("[-_.]+", "-", owner).lower() for owner in owners} and module not in ("gpt", "packaging"):
        sys.modules[module] = None  # importing it fails as if it were not installed
for module in ("pydantic", "prefect", "mlflow", "pyarrow", "transformers"):
    assert sys.modules[module] is None
import gpt.evaluate, gpt.generate, gpt.hf
sys.argv = ["gpt.train", sys.argv[1]]
runpy.run_module("gpt.train", run_name="__main__")
"""


def test_gpt_imports_and_trains_with_its_five_packages_alone(make_run, tmp_path):
    run = make_run()
    (tmp_path / "run.json").write_text(json.dumps(run))
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path / "run.json")],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (Path(run["out"]) / "model.safetensors").exists()
