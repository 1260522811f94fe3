"""Practice: dull prompts are replaced, equal seeds give equal completions, what can be earned is earned."""

import json
from pathlib import Path
from threading import Event

import pytest
import torch

from gpt.checkpoint import load_model
from gpt.config import RlConfig
from gpt.errors import UserError
from gpt.loop import train
from gpt.rl import Practice, Rollout
from gpt.tokenizer import Tokenizer

SETTINGS = {"batch": 3, "group": 4, "max_new_tokens": 6, "eval_windows": 2}


@pytest.fixture
def base(make_run):
    run = make_run(steps=3)
    assert train(run, Event())
    return run["out"]


def practice(make_run, base, **settings) -> Practice:
    run = make_run("rl", out="rl", init=base, **(SETTINGS | settings))
    (Path(run["out"]) / "logs").mkdir(exist_ok=True)
    return Practice(run, RlConfig(**run["train"]), load_model(Path(base)), Tokenizer.load(Path(run["tokenizer"])))


def test_prompts_that_do_not_fit_are_left_out_and_none_is_an_error(make_run, base):
    made = practice(make_run, base)
    assert (len(made.train), len(made.val)) == (5, 2)
    with pytest.raises(UserError, match=r"no train prompt of .* leaves 31 tokens"):
        practice(make_run, base, max_new_tokens=31)


def test_dull_groups_are_replaced_and_counted(make_run, base, monkeypatch):
    made, drawn = practice(make_run, base, resample=2), []

    def sample(rows, first):
        drawn.append(len(rows))
        dull = len(drawn) == 1
        return [Rollout(ids, [[1, 2]] * 4, [1.0] * 4 if dull else [1.0, 0.0, 0.0, 0.0]) for ids, _ in rows]

    monkeypatch.setattr(made, "_sample", sample)
    _, targets, numbers = made.backward(0)
    assert drawn == [3, 3], "one round replaced all three"
    assert targets == 3 * 4 * 2
    assert numbers["zero_variance"].item() == 0.5
    assert numbers["reward"].item() == pytest.approx((1.0 + 0.25) / 2)


def test_when_nothing_teaches_nothing_is_learned(make_run, base, monkeypatch):
    made = practice(make_run, base, resample=1)
    monkeypatch.setattr(made, "reward", lambda reply, answer: 0.0)
    loss, targets, numbers = made.backward(0)
    assert (loss.item(), targets, numbers["zero_variance"].item()) == (0.0, 0, 1.0)
    assert all(parameter.grad is None for parameter in made.model.parameters())


def test_a_step_is_a_pure_function_of_weights_and_number(make_run, base):
    first, again = practice(make_run, base), practice(make_run, base)
    torch.manual_seed(5)  # training's random numbers have no part in sampling
    one, two = first._rollouts(4), again._rollouts(4)
    assert one == two
    assert first._rollouts(5) != one


def test_what_earns_becomes_more_frequent(make_run, base, monkeypatch):
    monkeypatch.setattr(Practice, "reward", lambda self, reply, answer: sum(t >= 128 for t in reply) / len(reply))
    run = make_run("rl", out="rl", init=base, steps=40, lr=1e-2, **SETTINGS)
    assert train(run, Event())
    rows = [json.loads(line)[2] for line in (Path(run["out"]) / "logs" / "metrics.jsonl").read_text().splitlines()]
    greedy = [row["val/reward"] for row in rows if "val/reward" in row]
    sampled = [row["train/reward"] for row in rows if "train/reward" in row]
    assert greedy[-1] > greedy[0] + 0.5, greedy
    assert sum(sampled[-10:]) > sum(sampled[:10]) + 0.5, sampled
    said = [json.loads(line) for line in (Path(run["out"]) / "logs" / "completions.jsonl").read_text().splitlines()]
    assert [step for _, step, _ in said] == list(range(1, 41))
    assert all(len(told["said"]) == 4 and told["prompt"].startswith("say ") for _, _, told in said)
