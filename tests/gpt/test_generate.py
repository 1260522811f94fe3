"""Generation with a cache equals a reference that has none, and sampling does what its knobs say."""

import subprocess
import sys
from collections import Counter
from threading import Event

import pytest
import torch

from gpt.config import ModelConfig
from gpt.generate import generate, window_start
from gpt.loop import train
from gpt.model import GPT

SMALL = {"depth": 2, "width": 32, "heads": 4, "context": 16}
VOCAB = 40


@pytest.fixture(params=["gpt2", "modern"])
def model(request):
    """Random weights large enough that likelihoods differ clearly."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(family=request.param, kv_heads=2 * (request.param == "modern"), **SMALL), VOCAB).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model


def reference(model, prompt, count, temperature, top_k, top_p, seed):
    """One row, the whole window read anew for each token, sampling spelled out by sorting: slow and plain."""
    ids, context, generator = list(prompt), model.config.context, torch.Generator().manual_seed(seed)
    draws = torch.rand(count, generator=generator, dtype=torch.float64)
    window = ids[-context:] if len(ids) <= context else ids[window_start(len(ids), context) :]
    for draw in draws:
        with torch.inference_mode():
            logits = model(torch.tensor([window]))[0, -1].double()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            ranked = sorted(range(VOCAB), key=lambda token: -logits[token])[: top_k or VOCAB]
            weights = {token: float(torch.exp((logits[token] - logits.max()) / temperature)) for token in ranked}
            if top_p < 1:
                total, held, kept = sum(weights.values()), 0.0, {}
                for token in ranked:
                    if held >= top_p:
                        break
                    kept[token], held = weights[token], held + weights[token] / total
                weights = kept
            left = (1 - float(draw)) * sum(weights.values())
            for token in sorted(weights):
                left -= weights[token]
                if left <= 0:
                    break
        ids.append(token)
        window.append(token)
        if len(window) > context:  # full: keep the last half
            window = window[-(context // 2) :]
    return ids[len(prompt) :]


PROMPTS = [[1], [2, 3, 4, 5, 6], [7] * 15, list(range(16)), list(range(30))]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0, 0, 1.0), (1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8)],
)
def test_cached_batches_write_what_an_uncached_reference_writes(model, temperature, top_k, top_p):
    knobs = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    rows = generate(model, PROMPTS, 24, seeds=range(5), **knobs)
    for seed, (prompt, row) in enumerate(zip(PROMPTS, rows, strict=True)):
        assert row == reference(model, prompt, 24, seed=seed, **knobs), f"prompt of {len(prompt)} tokens"


def test_the_window_moves_by_half_a_context_when_it_is_full():
    kept = [length - window_start(length, 8) for length in range(1, 20)]
    assert kept == [1, 2, 3, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8, 4]


def test_a_row_does_not_depend_on_its_neighbours(model):
    together = generate(model, PROMPTS, 20, seeds=range(5))
    alone = [generate(model, [prompt], 20, seeds=[seed])[0] for seed, prompt in enumerate(PROMPTS)]
    assert together == alone


def test_a_row_ends_with_its_stop_token_while_others_go_on(model):
    free = generate(model, PROMPTS, 30, seeds=range(5))
    stop = free[0][10]
    ended = generate(model, PROMPTS, 30, seeds=range(5), stop=(stop,))
    for full, cut in zip(free, ended, strict=True):
        assert cut == (full[: full.index(stop) + 1] if stop in full else full)
    assert len({len(row) for row in ended}) > 1, "rows should end at different lengths"


def test_samples_have_the_models_frequencies(model):
    with torch.inference_mode():
        p_V = model(torch.tensor([[3]]))[0, -1].softmax(-1)
    count = 4000
    found = Counter(row[0] for row in generate(model, [[3]] * count, 1, seeds=range(count)))
    likeliest = int(p_V.argmax())
    expected, seen = float(p_V[likeliest]), found[likeliest] / count
    assert abs(seen - expected) < 4 * (expected * (1 - expected) / count) ** 0.5, f"{seen} seen, {expected} expected"


def test_top_k_of_one_is_greedy(model):
    assert generate(model, PROMPTS, 9, top_k=1) == generate(model, PROMPTS, 9, temperature=0)


def test_training_random_numbers_are_not_touched(model):
    before = torch.get_rng_state()
    generate(model, PROMPTS, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_the_program_prints_the_form_of_nanogpt_sample_py(make_run, tmp_path):
    assert train(make_run(steps=2), Event())
    command = [sys.executable, "-m", "gpt.generate", str(tmp_path / "out"), "--start", "It is", "--num-samples", "3"]
    ran = subprocess.run([*command, "--max-new-tokens", "5"], capture_output=True, check=True)
    samples = ran.stdout.decode().split("\n---------------\n")
    assert len(samples) == 4
    assert samples[3] == ""
    assert all(sample.startswith("It is") for sample in samples[:3])
