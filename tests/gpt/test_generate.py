"""Generation with a cache equals a reference that has none, and sampling does what its knobs say."""

import math
import subprocess
import sys
from collections import Counter
from threading import Event

import pytest
import torch

from gpt import decode
from gpt.config import ModelConfig
from gpt.decode import Decoder
from gpt.errors import UserError
from gpt.generate import Knobs, Speech, choose, generate, sample, window_start
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


def reference(model, prompt, count, seed, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0):
    """One row, the whole window read anew for each token, sampling spelled out by sorting: slow and plain."""
    ids, context, generator = list(prompt), model.config.context, torch.Generator().manual_seed(seed)
    draws = torch.rand(count, generator=generator, dtype=torch.float64)
    window = ids[-context:] if len(ids) <= context else ids[window_start(len(ids), context) :]
    for draw in draws:
        with torch.inference_mode():
            logits = model(torch.tensor([window]))[0, -1].double().tolist()
        for token in set(ids):
            logits[token] *= repetition_penalty if logits[token] < 0 else 1 / repetition_penalty
        ranked = sorted(range(VOCAB), key=lambda token: -logits[token])
        if temperature == 0:
            token = ranked[0]
        else:
            weights = {
                token: math.exp((logits[token] - max(logits)) / temperature) for token in ranked[: top_k or VOCAB]
            }
            if top_p < 1:
                total, held, kept = sum(weights.values()), 0.0, {}
                for token in weights:
                    if held >= top_p:
                        break
                    kept[token], held = weights[token], held + weights[token] / total
                weights = kept
            weights = {token: weight for token, weight in weights.items() if weight >= min_p * weights[ranked[0]]}
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
    "knobs",
    [
        {"temperature": 0},
        {},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.2, "min_p": 0.1, "top_k": 30},
        {"temperature": 0, "repetition_penalty": 1.5},
        {"temperature": 0.9, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_cached_batches_write_what_an_uncached_reference_writes(model, knobs):
    rows = generate(model, PROMPTS, 24, seeds=range(5), **knobs)
    for seed, (prompt, row) in enumerate(zip(PROMPTS, rows, strict=True)):
        assert row == reference(model, prompt, 24, seed, **knobs), f"prompt of {len(prompt)} tokens"


@pytest.mark.parametrize("form", [{"act": "relu2", "tied": False}, {"heads": 2, "head_dim": 24}])
def test_other_shapes_write_what_the_reference_writes(form):
    torch.manual_seed(1)
    odd = GPT(ModelConfig(**SMALL | form), VOCAB).eval()
    for parameter in odd.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    assert generate(odd, PROMPTS, 20, temperature=0) == [reference(odd, p, 20, 0, temperature=0) for p in PROMPTS]


@pytest.mark.parametrize(("weights", "near"), [("float32", 1e-5), ("bfloat16", 0.04), ("int8", 0.08)])
def test_logits_of_each_kind_of_weights_are_near_the_models(model, monkeypatch, weights, near):
    monkeypatch.setattr(decode, "SMALL", 0)
    decoder, ids_BT = Decoder(model, weights), torch.randint(VOCAB, (3, 12))
    with torch.inference_mode():
        cache = decoder.cache(3, 12)
        decoder.read([ids_B[:5].tolist() for ids_B in ids_BT], cache)
        logits_BTV = torch.stack([decoder.step(ids_B, cache) for ids_B in ids_BT.T[5:]], 1)
        right_BTV = model(ids_BT)[:, 5:]
    assert (logits_BTV - right_BTV).abs().max() < near * right_BTV.abs().max()


def test_unknown_weights_are_refused(model):
    with pytest.raises(UserError, match="weights is 'int4', must be float32, bfloat16 or, on a CPU, int8"):
        Decoder(model, "int4")


def test_rows_that_ended_are_computed_no_more_and_equal_prompts_are_read_once(model, monkeypatch):
    stepped, read = [], []
    step, _read = Decoder.step, Decoder._read
    monkeypatch.setattr(Decoder, "step", lambda self, ids_B, *a: stepped.append(len(ids_B)) or step(self, ids_B, *a))
    monkeypatch.setattr(Decoder, "_read", lambda self, rows, *a: read.append(len(rows)) or _read(self, rows, *a))
    rows = generate(model, [[1, 2, 3]] * 6 + [[4, 5]] * 2, 9, stop=range(0, VOCAB, 4))
    assert stepped == [sum(len(row) > step for row in rows) for step in range(max(map(len, rows)))]
    assert stepped[-1] < 8, "some row should end early"
    assert read == [2]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (300, 1.0), (0, 0.3), (0, 0.999)])
def test_a_large_vocabulary_is_drawn_from_in_the_order_of_ids_like_a_small_one(top_k, top_p):
    torch.manual_seed(0)
    logits_BV, draw_B = 3 * torch.randn(200, 5000), 1 - torch.rand(200, dtype=torch.float64)
    draw_B[0], draw_B[1] = 1.0, 1e-16
    for logits_V, draw, token in zip(
        logits_BV, draw_B, choose(logits_BV, draw_B, Knobs(1.0, top_k, top_p)), strict=True
    ):
        p_V, order_V = logits_V.double().softmax(-1).sort(descending=True)
        kept_V = torch.arange(5000) < (top_k or 5000)
        kept_V &= (p_V.cumsum(0) - p_V) / p_V[kept_V].sum() < top_p
        p_V = torch.zeros(5000, dtype=torch.float64).scatter(0, order_V, p_V * kept_V)
        sums_V = p_V.cumsum(0) / p_V.sum()
        assert p_V[token] > 0
        assert sums_V[token] - p_V[token] / p_V.sum() - 1e-6 <= draw <= sums_V[token] + 1e-6


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


def test_text_comes_in_whole_characters_and_without_what_may_be_a_stop_string(tokenizer):
    pieces: list[str] = []
    speech = Speech(tokenizer, ["STOP", "日本。"], pieces.append)
    said = iter(tokenizer.encode("a STO señor 日本 and STOP here"))
    assert any(speech.hear(token) for token in said)
    assert list(said), "the stop string should be noticed at once"
    assert "".join(pieces) == speech.told == "a STO señor 日本 and "
    assert all("\ufffd" not in piece and "STO" not in piece.replace("STO ", "") for piece in pieces)


def test_what_was_held_back_is_told_at_the_end(tokenizer):
    speech = Speech(tokenizer, ["STOP"])
    assert not any(speech.hear(token) for token in tokenizer.encode("so STO"))
    assert speech.told == "so "
    assert speech.end() == "so STO"


def test_samples_end_before_a_stop_string(make_run, tmp_path):
    assert train(make_run(steps=2), Event())
    free = list(sample(tmp_path / "out", "It is", 4, 40))
    cut = list(sample(tmp_path / "out", "It is", 4, 40, stop=["e", "th"]))
    for whole, text in zip(free, cut, strict=True):
        found = [at for at in (whole.find(stop, 5) for stop in ("e", "th")) if at >= 0]
        assert text == (whole[: min(found)] if found else whole)


def test_the_program_prints_the_form_of_nanogpt_sample_py(make_run, tmp_path):
    assert train(make_run(steps=2), Event())
    command = [sys.executable, "-m", "gpt.generate", str(tmp_path / "out"), "--start", "It is", "--num-samples", "3"]
    ran = subprocess.run([*command, "--max-new-tokens", "5"], capture_output=True, check=True)
    samples = ran.stdout.decode().split("\n---------------\n")
    assert len(samples) == 4
    assert samples[3] == ""
    assert all(sample.startswith("It is") for sample in samples[:3])
