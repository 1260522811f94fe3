"""The prompts stage and the demo's arithmetic: hands share no operands, answers hold numbers, GSM8K works as it is."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from gpt.errors import UserError
from gpt.rewards import number
from tasks.arithmetic import HANDS, PHRASINGS, question, solved, sums
from tasks.artifacts import Tokenizer
from tasks.prompts import Problems, prompts


def build(out: Path, vocabulary: Tokenizer, **options) -> tuple[list[dict], dict[str, float]]:
    out.mkdir(exist_ok=True)
    metrics = prompts.fn(out, Problems(**options), vocabulary)
    return [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()], metrics


def test_no_operands_are_in_two_hands_in_either_order():
    dealt = {hand: {frozenset(sum_.split(" + ")) for sum_, _ in sums(hand)} for hand in HANDS}
    assert all(not dealt[one] & dealt[two] for one, two in combinations(HANDS, 2))
    assert sum(len(list(sums(hand))) for hand in HANDS) == 1980
    assert len(list(sums("heldout"))) >= 500


def test_sums_are_right_and_asked_in_all_phrasings():
    for sum_, result in sums("rl"):
        a, b = map(int, sum_.split(" + "))
        assert (a + b, number(solved(sum_, result))) == (int(result), a + b)
    assert {question("12 + 34", draw) for draw in range(4)} == {phrase.format("12 + 34") for phrase in PHRASINGS}


def test_the_demo_holds_out_what_its_hand_says(vocabulary, tmp_path):
    rows, metrics = build(tmp_path / "out", vocabulary)
    assert metrics["data/heldout_prompts"] == len(list(sums("heldout")))
    asked = {side: {r["messages"][0]["content"] for r in rows if r["split"] == side} for side in ("train", "heldout")}
    assert not asked["train"] & asked["heldout"]


def test_prompts_without_a_number_to_check_are_dropped_with_their_reason(vocabulary, tmp_path, caplog):
    rows = [{"question": f"What is {n}?", "answer": str(n)} for n in range(30)]
    rows += [{"question": "Why?", "answer": "because"}, {"question": "long " * 99, "answer": "1"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level("INFO", "gptloom"):
        _, metrics = build(tmp_path / "out", vocabulary, sources=(str(tmp_path / "rows.jsonl"),))
    assert metrics["data/dropped"] == 2
    assert "1 dropped: the answer holds no number" in caplog.text
    assert "1 dropped: more than prompts.max_tokens=256" in caplog.text


def test_wrong_columns_are_named(vocabulary, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match=r"prompts\.sources: .* has columns text; needed are messages and answer"):
        build(tmp_path / "out", vocabulary, sources=(str(tmp_path / "rows.jsonl"),))


def test_gsm8k_works_as_it_is(vocabulary, tmp_path, shared_data):
    source = str(shared_data / "gsm8k_train.jsonl")
    rows, metrics = build(tmp_path / "out", vocabulary, sources=(source,), max_tokens=2000)
    assert metrics["data/dropped"] == 0
    assert all(number(row["answer"]) == number(row["answer"].split("####")[1]) for row in rows)
