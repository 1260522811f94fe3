"""The probe of a machine does real work of the shape it is asked about; whether it is right is told in docs/results."""

import json
import subprocess
import sys

from gpt.perf import measure


def test_a_larger_model_costs_more_of_everything_but_never_more_than_one_short_step_to_know_it(tmp_path):
    small, large = (
        {"model": {"depth": depth, "width": width, "context": 64}, "vocab_size": 300, "rows": 8} | MEANS
        for depth, width in ((1, 32), (4, 256))
    )
    rates = [in_its_own_process(run, tmp_path) for run in (small, large)]
    assert all(0 < rates[0][name] < rates[1][name] for name in ("train_s", "read_s", "sample_s", "peak_bytes"))
    assert rates[1]["read_s"] < rates[1]["train_s"]


def test_memory_is_extrapolated_to_the_rows_that_were_not_tried(monkeypatch):
    monkeypatch.setattr("gpt.perf.ENOUGH_S", 0.0)  # one row is enough
    run = {"model": {"depth": 2, "width": 128, "context": 128}, "vocab_size": 4000, "rows": 1} | MEANS
    assert measure(run)["peak_bytes"] <= measure(run | {"rows": 64})["peak_bytes"]


MEANS = {"device": "cpu", "threads": 1}


def in_its_own_process(run, folder):
    (folder / "run.json").write_text(json.dumps(run))
    done = subprocess.run([sys.executable, "-m", "gpt.perf", str(folder / "run.json")], capture_output=True, check=True)
    return json.loads(done.stdout)
