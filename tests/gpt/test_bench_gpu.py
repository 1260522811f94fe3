"""The GPU benchmark runs, tiny and on the CPU, where torch and numpy are all there is; blocks compile once for all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from gpt.config import ModelConfig
from gpt.model import GPT

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "bench" / "bench_gpu.py"
BARE = """
import importlib.metadata as metadata, runpy, sys

for module, owners in metadata.packages_distributions().items():
    if module not in ("torch", "numpy") and {"prefect", "mlflow", "tiktoken", "tokenizers", "safetensors"} & {*owners}:
        sys.modules[module] = None  # importing it fails as if it were not installed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def bench(*options, tmp_path):
    """One side of it, as its own process runs it; what it printed."""
    command = [sys.executable, "-c", BARE, SCRIPT, "--device", "cpu", "--steps", "2", "--warmup", "2", *options]
    where = {"PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | where)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize(("name", "optimizer"), [("tiny", "muon"), ("tiny-gpt2", "adamw")])
def test_it_prints_what_is_promised_with_torch_and_numpy_alone(tmp_path, name, optimizer):
    found = bench("--only", name, "--side", "gptloom", "--no-compile", "--rows", "4", tmp_path=tmp_path)
    assert found["tokens_per_s"] > 0
    assert 0 < found["mfu_gemm"] < 1
    assert 0.05 < found["memory_gb"] < 20
    assert (found["optimizer"], found["rows"], found["batch"], found["skipped"]) == (optimizer, 4, 8, 0)
    assert all(10.5 < loss < 11 for loss in found["loss"]), "log(50257) is 10.8"
    assert found["step_ms"] / 1e3 == pytest.approx(
        found["batch"] * found["shape"]["context"] / found["tokens_per_s"], rel=0.05
    )


@pytest.mark.slow
def test_compiled_it_makes_one_graph(tmp_path):
    found = bench("--only", "tiny", "--side", "gptloom", tmp_path=tmp_path)
    assert (found["graphs"], found["graph_breaks"]) == (1, 0)


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
@pytest.mark.parametrize("family", ["modern", "gpt2"])
def test_all_blocks_share_one_graph_without_a_break_and_evaluation_adds_none(family, compute):
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    grouped = {"kv_heads": 2} if family == "modern" else {}
    model = GPT(ModelConfig(family=family, depth=4, width=32, heads=4, context=16, dropout=0.1, **grouped), 300)
    model.compute, ids = compute, torch.randint(300, (4, 16))
    for block in model.h:
        block.compile(backend=backend, fullgraph=True)
    for _ in range(2):
        model.train()(ids, target_BT=ids).backward()
        model.eval().costs(ids, ids)
    assert backend.frame_count == 1
