"""Examinations against hand-worked cases: who wins a pair, what counts as right, what trivial answers score."""

import json

import numpy as np
import pytest
import torch

from gpt import exams
from gpt.config import ModelConfig
from gpt.data import IGNORED, Pairs, both
from gpt.exams import PairExam, ProblemExam, problems
from gpt.losses import log_probs
from gpt.model import GPT


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return GPT(ModelConfig(depth=1, width=16, heads=2, context=32), tokenizer.vocab_size).eval()


def test_pairs_that_do_not_fit_are_left_out_and_rows_stay_together(make_run, tmp_path):
    data = Pairs(tmp_path / "pairs", 32)
    assert data.train.tolist() == [0, 1, 2, 3, 6, 7, 12, 13, 14, 15, 18, 19, 20, 21]
    assert sorted(data.val) == [4, 5, 10, 11, 16, 17, 22, 23]
    assert (data.val[1::2] == data.val[::2] + 1).all(), "mixed by pairs"
    seen = np.concatenate([data.rows(1, step, 1)[:1] for step in range(7)])
    assert sorted(seen) == [0, 2, 6, 12, 14, 18, 20], "an epoch has each pair once, by its chosen row"
    assert both(np.array([4, 10])).tolist() == [4, 10, 5, 11]


def test_a_pair_is_won_by_the_higher_mean_log_probability(make_run, tmp_path, model):
    exam = PairExam(tmp_path / "pairs", 32, count=10)
    x_BT, y_BT = exam.data.padded(both(exam.chosen))
    with torch.no_grad():
        logp = log_probs(model, torch.from_numpy(x_BT), torch.from_numpy(y_BT)).sum(1).numpy()
    mean = (logp / (y_BT != IGNORED).sum(1)).reshape(2, -1)
    (row,) = exam.scores("base", model)
    assert (row["value"], row["n"]) == ((mean[0] > mean[1]).mean(), 4)
    longer, shorter = exam.baselines()
    assert (longer["value"], shorter["value"]) == (1.0, 0.0), "`yes!` is longer than `no.`"


def test_a_problem_is_solved_by_its_last_number(make_run, tmp_path, model, tokenizer, monkeypatch):
    found = problems(tmp_path / "prompts", tokenizer, 26)
    assert [len(found[split]) for split in ("train", "heldout")] == [5, 2]
    said = ["it is 7.", "7 or 8"]
    monkeypatch.setattr(exams, "generate", lambda *_, **__: [tokenizer.encode(text) for text in said])
    exam = ProblemExam(tmp_path / "prompts", tokenizer, 32, 6, count=10)
    (row,) = exam.scores("base", model)
    assert (row["measure"], row["value"], row["n"]) == ("arithmetic", 0.5, 2)
    (constant,) = exam.baselines()
    assert constant["value"] == 1.0, "the answer is always 7"
    rows = [json.loads(line) for line in (tmp_path / "prompts" / "prompts.jsonl").read_text().splitlines()]
    assert {row["answer"] for row in rows} == {"7"}
