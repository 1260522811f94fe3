"""Scores against hand-worked numbers, the trainer's own evaluation, and the xz program."""

import json
import math
import random
import shutil
import subprocess
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from gpt.config import ModelConfig
from gpt.data import write_shard
from gpt.evaluate import (
    REFUSAL,
    HeldOut,
    ask,
    baselines,
    chat_baselines,
    choose,
    evaluate,
    neighbours,
    next_tokens,
    share,
    text_scores,
    well_formed,
)
from gpt.generate import generate
from gpt.model import GPT
from gpt.tokenizer import Tokenizer, reserve
from gpt.windows import Windows

TEXT = "The quick brown fox jumps over the lazy dog, then the dog sleeps. Größe! " * 12
RANKS = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257, b" the": 258}
TOKENIZER = Tokenizer(RANKS, "gpt2", reserve(RANKS))
CONFIG = {"tokens": 300, "questions": 2, "reply_tokens": 8, "prompts": ["the"], "words": ["the"], "seed": 1}
HELD = {
    "choices": [{"question": f"{n}?", "answers": ["a", "bb", "ccc", "longest"], "correct": n % 2} for n in range(6)],
    "harmful": ["make a bomb"],
    "harmless": ["make a cake", "make tea"],
    "prompts": ["hello", "who?"],
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(ModelConfig(depth=1, width=16, heads=2, context=32), TOKENIZER.vocab_size).eval()


@pytest.fixture
def shards(tmp_path):
    """Training: one text; held out: two documents, the stream beginning and ending with the separator."""
    folder = tmp_path / "shards"
    folder.mkdir()
    ids, eot = TOKENIZER.encode(TEXT), TOKENIZER.eot
    write_shard(folder / "train-00000.bin", np.array([eot, *ids, eot], np.uint16))
    write_shard(folder / "val-00000.bin", np.array([eot, *ids[:150], eot, *ids[:200], eot], np.uint16))
    return folder


@pytest.fixture
def text(shards):
    return HeldOut(Windows(shards, 32).held_out(300 // 32), TOKENIZER.bytes_per_token())


@pytest.fixture
def seen_V(shards):
    train = Windows(shards, 32).train
    return np.bincount(train.read(0, len(train)), minlength=TOKENIZER.vocab_size)


def find(rows, measure, who):
    return next(row for row in rows if (row["measure"], row["who"]) == (measure, who))


def test_bits_per_byte_are_those_of_a_plain_sum_over_the_text(model, text):
    with torch.no_grad():
        logp_BTV = model(torch.from_numpy(text.x_BT)).double().log_softmax(-1)
    costs = [(-logp_BTV[*at, token].item(), token) for at, token in np.ndenumerate(text.y_BT)]
    bits = sum(nats for nats, token in costs if token != TOKENIZER.eot) / math.log(2)
    size = sum(len(TOKENIZER.decode([token])) for _, token in costs if token != TOKENIZER.eot)
    rows = text_scores("base", model, text)
    assert find(rows, "loss", "base")["value"] == pytest.approx(sum(nats for nats, _ in costs) / len(costs), abs=1e-5)
    assert find(rows, "bpb", "base")["value"] == pytest.approx(bits / size, abs=1e-5)


def test_the_scores_do_not_depend_on_how_many_rows_go_in_one_pass(model, text):
    whole, parts = (dict(zip("lb", text.measure(model, rows, "row"), strict=True)) for rows in (9, 2))
    for name in "lb":
        assert whole[name][1] == pytest.approx(parts[name][1], abs=1e-6)


def test_at_most_the_asked_number_of_tokens_is_read_in_whole_windows(text):
    assert text.y_BT.shape == (9, 32)


def test_a_uniform_guess_costs_log2_of_the_vocabulary_and_specials_weigh_nothing(text, seen_V):
    found, sizes = find(baselines(text, TOKENIZER, seen_V), "bpb", "uniform"), TOKENIZER.bytes_per_token()[text.y_BT]
    assert (sizes == 0).sum() == 1, "the separator between the two documents"
    assert found["n"] == sizes.sum()
    assert found["value"] == pytest.approx((sizes > 0).sum() * math.log2(TOKENIZER.vocab_size) / sizes.sum(), abs=1e-6)


def test_a_unigram_guess_beats_a_uniform_one_and_an_untrained_model(text, seen_V, model):
    rows = baselines(text, TOKENIZER, seen_V) + text_scores("untrained", model, text)
    unigram, *others = (find(rows, "bpb", who)["value"] for who in ("unigram", "uniform", "untrained"))
    assert unigram < min(others) - 1, f"{unigram} against {others}"


@pytest.mark.skipif(shutil.which("xz") is None, reason="the xz program is not installed")
def test_the_xz_baseline_is_what_the_program_makes_of_the_same_text(text, seen_V):
    raw = TOKENIZER.decode([token for token in text.y_BT.flatten() if token != TOKENIZER.eot]).encode()
    packed = subprocess.run(["xz", "-9", "-T1"], input=raw, capture_output=True, check=True).stdout
    assert find(baselines(text, TOKENIZER, seen_V), "bpb", "xz -9")["value"] == pytest.approx(
        8 * len(packed) / len(raw), abs=1e-6
    )


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (90, 100, 0.8256, 0.9448)]
)
def test_wilsons_interval_equals_published_values(hits, n, low, high):
    (row,) = share("w", "m", [True] * hits + [False] * (n - hits))
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=5e-5)


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_a_share_lies_in_its_interval_and_the_interval_in_0_to_1(hits):
    (row,) = share("w", "m", hits)
    assert 0 <= row["low"] <= row["value"] + 1e-6
    assert row["value"] - 1e-6 <= row["high"] <= 1


def test_nothing_asked_gives_no_score():
    assert share("w", "m", []) == []


def test_the_chosen_answer_is_the_likeliest_one_when_each_is_read_alone(model):
    torch.nn.init.normal_(model.wte.weight)  # far from uniform, so that answers differ
    dice = random.Random(0)
    for n in range(40):
        answers = ["".join(dice.choices("aeinot", k=dice.randint(1, 3))) for _ in range(4)]
        question, means = f"number {n}?", []
        for answer in map(TOKENIZER.encode, answers):
            ids = [*ask(TOKENIZER, question), *answer]
            with torch.no_grad():
                logp_TV = model(torch.tensor([ids])).log_softmax(-1)[0]
            scores = [float(logp_TV[at - 1, ids[at]]) for at in range(len(ids) - len(answer), len(ids))]
            means.append(sum(scores) / len(scores))
        chosen = choose(model, TOKENIZER, {"question": question, "answers": answers})
        assert chosen == means.index(max(means)), f"{answers} have {means}"


def test_a_question_longer_than_the_context_is_read_from_its_end():
    model = GPT(ModelConfig(family="gpt2", depth=1, width=16, heads=2, context=32), TOKENIZER.vocab_size).eval()
    answers = ["yes", "no", "the dog", "the fox" * 20]
    long, longer = ({"question": "x" * length, "answers": answers} for length in (100, 200))
    assert choose(model, TOKENIZER, long) == choose(model, TOKENIZER, longer)


def test_baselines_are_the_best_place_the_first_longest_answer_and_refusing_all():
    rows = chat_baselines(HELD | {"choices": [*HELD["choices"], {"answers": ["aa", "aa", "a", "a"], "correct": 1}]})
    assert find(rows, "answer_accuracy", "constant answer")["value"] == pytest.approx(4 / 7, abs=1e-6)
    assert find(rows, "answer_accuracy", "longest answer")["value"] == 0, "of equal answers only one can be chosen"
    assert find(rows, "refusal_harmless", "always refuses")["n"] == 2


@pytest.mark.parametrize(
    ("reply", "good"),
    [
        (["Hello.", "<|end|>"], True),
        (["Hello."], False),
        (["<|end|>"], False),
        ([" \n", "<|end|>"], False),
        (["Hello.", "<|endoftext|>"], False),
        (["Hello.", "<|user|>", "And?", "<|end|>"], False),
        (["I say <|end|> as text", "<|end|>"], True),
    ],
)
def test_a_well_formed_reply_says_something_and_ends_its_turn(reply, good):
    special = TOKENIZER.specials
    ids = [token for part in reply for token in ([special[part]] if part in special else TOKENIZER.encode(part))]
    assert well_formed(TOKENIZER, ids) == good


@pytest.mark.parametrize("text", ["Sorry, no.", "I can't help with that.", "I cannot.", "I won’t do it", "Lo siento."])
def test_a_refusal_is_seen(text):
    assert REFUSAL.search(text)


@pytest.mark.parametrize("text", ["You can't divide by zero.", "Send it a signal with os.kill.", "It is not sorrel."])
def test_an_answer_is_no_refusal(text):
    assert not REFUSAL.search(text)


def test_the_first_next_token_is_what_greedy_generation_writes(model):
    torch.nn.init.normal_(model.wte.weight)
    rows = next_tokens("base", model, TOKENIZER, "the dog")
    greedy = generate(model, [[TOKENIZER.eot, *TOKENIZER.encode("the dog")]], 1, temperature=0)[0]
    assert rows[0]["token"] == TOKENIZER.decode(greedy)
    values = [row["probability"] for row in rows]
    assert len(rows) == 10
    assert values == sorted(values, reverse=True)
    assert 0 < sum(values) <= 1


def test_the_nearest_neighbour_points_the_same_way_and_was_seen_in_training(model, seen_V):
    word, near, unseen = TOKENIZER.encode(" the")[0], TOKENIZER.encode("q")[0], TOKENIZER.encode("Q")[0]
    with torch.no_grad():
        model.wte.weight[near] = 3 * model.wte.weight[word]
        model.wte.weight[unseen] = model.wte.weight[word]
    rows = neighbours("base", model, TOKENIZER, seen_V, "the")
    assert (rows[0]["token"], rows[0]["cosine"]) == ("q", pytest.approx(1, abs=1e-5))
    assert not {"Q", " the"} & {row["token"] for row in rows}


def test_rows_that_pad_a_large_vocabulary_are_nobodys_neighbours(model, seen_V):
    large = GPT(model.config, 4098)
    assert large.wte.weight.shape[0] == 4224
    rows = neighbours("base", large, TOKENIZER, np.pad(seen_V, (0, 4098 - len(seen_V))), "the")
    assert len(rows) == 10


@pytest.fixture
def run(tmp_path, model, shards):
    """run.json's content, with the same weights as both models."""
    for name in ("tokenizer", "chats", "base", "sft"):
        (tmp_path / name).mkdir()
    TOKENIZER.save(tmp_path / "tokenizer")
    (tmp_path / "chats" / "heldout.json").write_text(json.dumps(HELD))
    for name in ("base", "sft"):
        save_file(model.state_dict(), tmp_path / name / "model.safetensors")
        config = {"model": asdict(model.config), "vocab_size": model.vocab_size}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    folders = {"shards": shards, **{name: tmp_path / name for name in ("chats", "tokenizer")}}
    models = {name: str(tmp_path / name) for name in ("base", "sft")}
    means = {"config": CONFIG, "device": "cpu", "threads": 1, "pairs": None, "problems": None}
    return {"models": models, **{name: str(folder) for name, folder in folders.items()}, **means}


def carry_out(run, out):
    out.mkdir()
    evaluate(run | {"out": str(out)})
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_run_scores_each_model_and_the_same_run_gives_the_same_bytes(run, tmp_path):
    first, second = (carry_out(run, tmp_path / name) for name in ("one", "two"))
    assert first == second
    tables = json.loads(first["scores.json"])
    for who in ("base", "sft"):
        measures = {row["measure"]: row["n"] for row in tables["scores"] if row["who"] == who}
        counted = {"answer_accuracy": 2, "format_rate": 2, "refusal_harmful": 1, "refusal_harmless": 2}
        assert {name: measures[name] for name in counted} == counted, "at most CONFIG's two of each kind are asked"
        assert {"loss", "bpb"} <= measures.keys()
    assert first["samples.txt"].index(b"== sft, prompts") < first["samples.txt"].index(b"== base, prompts")
    assert {row["who"] for row in tables["next_tokens"] + tables["neighbours"]} == {"base", "sft"}
    assert first["samples.txt"].count(b"\n---------------\n") == 2 * (2 + 5), "two samples and five replies a model"


def test_without_conversations_only_text_is_measured(run, tmp_path):
    tables = json.loads(carry_out(run | {"chats": None}, tmp_path / "out")["scores.json"])
    assert {row["measure"] for row in tables["scores"]} == {"loss", "bpb"}
