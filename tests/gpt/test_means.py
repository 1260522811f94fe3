"""What a machine offers: sizes that fit and divide, names that are known, speeds that are measured."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import means
from gpt.config import ModelConfig, PreferConfig, RlConfig, TrainConfig
from gpt.errors import UserError
from gpt.loop import train
from gpt.model import GPT

MODEL = GPT(ModelConfig(depth=2, width=32, heads=2, context=64), 300)


@settings(max_examples=200, deadline=None)
@given(batch=st.integers(1, 600), free=st.integers(0, 10**9), precise=st.sampled_from(["bfloat16", "float32"]))
def test_a_micro_batch_divides_the_batch_and_is_never_0_and_less_memory_never_makes_it_larger(batch, free, precise):
    found, config = [], TrainConfig(batch=batch)
    for there in (0, free // 2, free, 10**15):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(means, "available_bytes", lambda there=there: there)
            found.append(means.micro_batch(MODEL, config, precise))
    assert all(1 <= rows <= batch and batch % rows == 0 for rows in found)
    assert found == sorted(found)
    assert found[0] == 1
    assert found[-1] == max(rows for rows in range(1, 65) if batch % rows == 0), "64 x 64 tokens are a CPU's most"


def test_what_was_settled_when_a_run_began_is_kept_whatever_memory_is_free_later(make_run, monkeypatch, capsys):
    run, stop = make_run(), Event()
    assert not train(run, stop, begun=stop.set)
    settled = Path(run["out"]) / "logs" / "numerics.json"
    before = json.loads(settled.read_text())
    assert before["micro_batch"] == 4, "the whole batch fits"
    monkeypatch.setattr(means, "available_bytes", lambda: 0)
    assert train(run, Event())
    assert json.loads(settled.read_text()) == before
    assert "not bit-exact" not in capsys.readouterr().out
    fresh = make_run(out="fresh")
    assert train(fresh, Event())
    assert json.loads((Path(fresh["out"]) / "logs" / "numerics.json").read_text())["micro_batch"] == 1


@pytest.mark.parametrize(("avx512", "amx", "expected"), [(1, 0, "bfloat16"), (0, 1, "bfloat16"), (0, 0, "float32")])
def test_bfloat16_is_for_cpus_that_multiply_in_it(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert means.precision("cpu") == expected


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-80GB", 312),
     ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA B200", 2250), ("Tesla T4", 0)],
)  # fmt: skip
def test_known_gpus_have_their_data_sheets_peak_and_others_none(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert means.peak_flops("cuda") == tflops * 1e12
    assert means.peak_flops("cpu") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_measured_ceiling_is_one_and_no_random_number_of_the_training_is_drawn(dtype):
    before = torch.get_rng_state()
    assert 1e7 < means.gemm_flops("cpu", dtype, repeats=3) < 1e15
    assert torch.equal(torch.get_rng_state(), before)


def test_compiling_is_for_much_work_and_needs_a_compiler(monkeypatch):
    long, short = (TrainConfig(batch=16, steps=steps) for steps in (10**9, 10))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    assert (means.compiles(MODEL, long), means.compiles(MODEL, short)) == (True, False)
    assert means.compiles(MODEL, replace(short, compile="on"))
    assert not means.compiles(MODEL, replace(long, compile="off"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not means.compiles(MODEL, long)
    with pytest.raises(UserError, match=r"compile=on needs a C\+\+ compiler"):
        means.compiles(MODEL, replace(short, compile="on"))


def test_pairs_and_groups_count_all_of_their_rows_and_whole_logits(monkeypatch):
    monkeypatch.setattr(means, "available_bytes", lambda: 60_000_000)
    plain, pairs, groups = (kind(batch=64) for kind in (TrainConfig, PreferConfig, RlConfig))
    found = [means.micro_batch(MODEL, config, "float32") for config in (plain, pairs, groups)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[1] > found[2], found


def test_on_a_gpu_the_same_bits_come_where_that_is_wanted(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    for device, wanted in (("cuda", True), ("cuda:1", False), ("cpu", True)):
        means.repeatable(device, wanted)
    assert asked == [True, False]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "what the user has set stays"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    means.repeatable("cuda", True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_memory_is_what_this_process_had_and_what_the_machine_has_left():
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 10**7 < means.memory_bytes("cpu") < size
    assert 0 < means.available_bytes() < size
    before = means.memory_bytes("cpu")
    torch.ones(60_000_000)  # 240 MB, at least some of it more than ever before
    assert means.memory_bytes("cpu") >= before


def test_a_ranks_share_of_memory_counts_where_several_share_a_machine(monkeypatch):
    monkeypatch.setattr(means, "available_bytes", lambda: 40_000_000)
    one = means.micro_batch(MODEL, TrainConfig(batch=64), "float32")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert means.micro_batch(MODEL, TrainConfig(batch=64), "float32") < one


def test_a_gpus_memory_counts_where_there_is_one(monkeypatch):
    asked = SimpleNamespace(is_cuda=True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80 * 2**30, 80 * 2**30))
    config = ModelConfig(family="gpt2", depth=12, context=1024)
    with torch.device("meta"):
        model = GPT(config, 50_257)
    stand_in = SimpleNamespace(
        config=config, vocab_size=50_257, wte=SimpleNamespace(weight=asked), parameters=model.parameters
    )
    assert 32 <= means.micro_batch(stand_in, TrainConfig(batch=512), "bfloat16") <= 128
