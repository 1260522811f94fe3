"""The probe of a machine does real work of the shape it is asked about; whether it is right is told in docs/results."""

import json
import subprocess
import sys

from gpt.perf import measure


def test_every_rate_is_told_and_a_larger_model_needs_more_memory(tmp_path):
    small, large = (
        {"model": {"depth": depth, "width": width, "context": 64}, "vocab_size": 300, "rows": 8} | MEANS
        for depth, width in ((1, 32), (4, 512))
    )
    rates = [in_its_own_process(run, tmp_path) for run in (small, large)]
    assert all(rate[name] > 0 for rate in rates for name in ("train_s", "read_s", "sample_s"))
    assert rates[1]["peak_bytes"] - rates[0]["peak_bytes"] > 12 * 4 * 4 * 512**2, "weights, gradients, two moments"


def test_memory_is_extrapolated_to_the_rows_that_were_not_tried(monkeypatch):
    monkeypatch.setattr("gpt.perf.ENOUGH_S", 0.0)  # one row is enough
    run = {"model": {"depth": 2, "width": 128, "context": 128}, "vocab_size": 4000, "rows": 1} | MEANS
    assert measure(run)["peak_bytes"] <= measure(run | {"rows": 64})["peak_bytes"]


MEANS = {"device": "cpu", "threads": 1, "optimizer": "muon", "precision": "auto"}


def in_its_own_process(run, folder):
    (folder / "run.json").write_text(json.dumps(run))
    done = subprocess.run([sys.executable, "-m", "gpt.perf", str(folder / "run.json")], capture_output=True, check=True)
    return json.loads(done.stdout)
