"""What a plan says of many GPUs: hours, memory of each, and what will not work."""

import re
import sys

import pytest

from flows import cli
from flows.plan import MEMORY_GB, shares
from gpt.config import PEAK_TFLOPS, ModelConfig, PretrainConfig


@pytest.fixture
def plan(monkeypatch, capsys):
    """What `gptloom plan ...` says."""

    def plan(*arguments):
        monkeypatch.setattr(sys, "argv", ["gptloom", "plan", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert not stop.value.code, captured.err
        return captured.out

    return plan


def fitted(model, **settings):
    return PretrainConfig(**settings).fitted(model, 50_257)


def seconds(said, stage):
    value, unit = re.search(rf"^{stage} +([\d,.]+) (s|min|h|days)", said, re.M).groups()
    return float(value.replace(",", "")) * {"s": 1, "min": 60, "h": 3600, "days": 86_400}[unit]


def test_eight_gpus_train_eight_times_as_fast_and_practise_as_one(plan):
    one, eight = (plan("fineweb-gpt2-124m", "--gpus", f"{n}xH100") for n in (1, 8))
    assert seconds(one, "pretrain") == pytest.approx(8 * seconds(eight, "pretrain"), rel=0.01)
    assert seconds(eight, "pretrain") == pytest.approx(600_000 * 480 * 1024 * 855e6 / (8 * 989e12 * 0.4), rel=0.01)
    assert "on each of 8 GPUs, all of weights and optimiser each (DDP), 60 rows of 1,024 at once" in eight
    assert "on each of" not in one
    one, eight = (plan("demo", "--gpus", f"{n}xH100", "--set", "rl.steps=1000000") for n in (1, 8))
    assert seconds(one, "rl") == seconds(eight, "rl")


def test_what_takes_more_than_half_of_a_gpu_is_sharded():
    model = ModelConfig(depth=40, context=4096)
    small, large = (shares(fitted(model, optimizer="adamw"), model, 50_257, 8, kind) for kind in ("H200", "L40S"))
    assert "each of 8 GPUs, all of weights and optimiser each (DDP)" in small
    assert "each of 8 GPUs, 1/8 of weights and optimiser each (FSDP2)" in large
    assert "muon" not in large
    said = shares(fitted(model), model, 50_257, 8, "L40S")
    assert said.endswith("; muon needs whole matrices: set pretrain.optimizer=adamw and a rate for it")


def test_what_does_not_fit_or_does_not_divide_is_told():
    large = ModelConfig(depth=80, width=8192, heads=64, kv_heads=8, hidden=28672, context=8192)
    config = fitted(large, optimizer="adamw")
    said = shares(config, large, 128_000, 8, "H100")
    assert "that does not fit: take a shorter pretrain.model.context, or larger GPUs" in said
    middle = ModelConfig(depth=52, context=512)
    said = shares(fitted(middle, optimizer="adamw"), middle, 128_000, 2, "RTX4090")
    assert "that does not fit: take more GPUs, or larger GPUs" in said
    small = ModelConfig(depth=4)
    said = shares(fitted(small, batch=10), small, 300, 4, "H100")
    assert said.endswith("; pretrain.batch=10 is no multiple of 4: try 12")


def test_every_known_gpu_has_its_memory():
    assert MEMORY_GB.keys() == PEAK_TFLOPS.keys()
