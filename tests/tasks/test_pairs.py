"""The pairs stage: every known shape, HH turn by turn, masks on the answers alone, nothing shared between the sides."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.errors import UserError
from gpt.tokenizer import LETTERS, reserve
from gpt.tokenizer import Tokenizer as Loaded
from tasks.arithmetic import sums
from tasks.artifacts import Tokenizer
from tasks.demo_chats import ASK, ASK_HELD_OUT
from tasks.demo_pairs import KIND, RUDE, demo_pairs, slip
from tasks.pairs import Preferences, answered, paired, pairs

TALK = [{"role": "user", "content": "Hi"}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Hello.", "Go away."))

pytestmark = pytest.mark.usefixtures("python_read_once")


def build(out: Path, vocabulary: Tokenizer, rows: list[Any], **options: Any) -> tuple[list[dict], dict[str, float]]:
    out.mkdir()
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = pairs.fn(out, Preferences(sources=(str(out / "rows.jsonl"),), **options), vocabulary)
    return pq.read_table(out / "pairs.parquet").to_pylist(), metrics


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."},
        {"prompt": TALK, "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."},
        {"prompt": "\n\nHuman: Hi", "chosen": "\n\nAssistant: Hello.", "rejected": "\n\nAssistant: Go away."},
    ],
)
def test_every_shape_of_row_becomes_the_same_pair(row):
    pair, why = paired({**row, "_source": "s"})
    assert not why
    assert pair is not None
    assert (pair.prompt, pair.chosen, pair.rejected) == (TALK, "Hello.", "Go away.")


def test_answers_that_begin_alike_keep_their_beginnings():
    said = ("\n\nHuman: Why?\n\nAssistant: Because of rain.", "\n\nHuman: Why?\n\nAssistant: Because I say so.")
    pair, _ = paired({"chosen": said[0], "rejected": said[1], "_source": "s"})
    assert pair is not None
    assert (pair.chosen, pair.rejected) == ("Because of rain.", "Because I say so.")
    assert pair.prompt == [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"chosen": [*TALK, GOOD], "rejected": [{"role": "user", "content": "Ho"}, BAD]}, "differ before their last"),
        ({"prompt": "Hi", "chosen": "Same.", "rejected": "Same."}, "both answers are the same"),
        ({"prompt": "Hi", "chosen": "", "rejected": "x"}, "empty"),
        ({"prompt": "Hi", "chosen": None, "rejected": "x"}, "messages are no list of roles and texts"),
        ({}, "messages are no list"),
        ({"prompt": "Hi", "chosen": "x"}, "messages are no list"),
        ({"prompt": 5, "chosen": "x", "rejected": "y"}, "messages are no list"),
        ({"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi"}, "turns do not alternate"),
    ],
)
def test_what_is_no_pair_is_told_why(row, why):
    assert why in paired({**row, "_source": "s"})[1]


def test_rows_are_written_twice_a_pair_and_learned_on_the_answer_alone(vocabulary, tmp_path):
    rows = [{"prompt": f"Question {n}?", "chosen": f"Yes {n}.", "rejected": "No."} for n in range(40)]
    table, metrics = build(tmp_path / "out", vocabulary, [*rows, {"prompt": "x", "chosen": "y", "rejected": "y"}])
    made, ids, mask, offsets, split = (
        vocabulary.load(),
        *(np.load(tmp_path / "out" / f"{name}.npy") for name in ("ids", "mask", "offsets", "split")),
    )
    assert (metrics["data/pairs"], metrics["data/dropped"]) == (40, 1)
    for n, row in enumerate(table):
        for place, said in ((2 * n, row["chosen"]), (2 * n + 1, row["rejected"])):
            here = slice(offsets[place], offsets[place + 1])
            assert made.decode(ids[here][mask[here] == 1]) == said[0]["content"] + "<|end|>"
            assert bool(split[place]) == (row["split"] == "heldout")
    assert 0 < split.mean() < 0.4


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"])))
def test_the_mask_is_the_answer_and_its_end_whatever_they_say(asked, said):
    ranks = {bytes([byte]): rank for rank, byte in enumerate(LETTERS)}
    made = Loaded(ranks, "gpt2", reserve(ranks))
    ids, mask = answered(made, [{"role": "user", "content": asked}], said)
    assert [token for token, bit in zip(ids, mask, strict=True) if bit] == [*made.encode(said), made.end]
    assert sum(token in made.specials.values() for token in ids) == 5, "start, two roles, two ends"


def test_wrong_columns_and_mostly_bad_rows_stop_the_stage(vocabulary, tmp_path):
    with pytest.raises(UserError, match=r"pairs\.sources: .* has columns text; needed are prompt and chosen"):
        build(tmp_path / "a", vocabulary, [{"text": "x"}])
    rows = [{"chosen": [*TALK, GOOD], "rejected": [*TALK, last]} for last in (BAD, GOOD, GOOD)]
    with pytest.raises(UserError, match="pairs keeps 1 of 3 pairs, most dropped as: both answers are the same"):
        build(tmp_path / "b", vocabulary, rows)


def test_demo_sides_share_no_function_operands_request_or_rudeness():
    found = list(demo_pairs(400, 100, Preferences(heldout=0.2).is_held_out))
    sides = {side: [pair for pair in found if bool(pair.held_out) is side] for side in (False, True)}
    asked = {side: {pair.prompt[0]["content"] for pair in sides[side]} for side in sides}
    assert not asked[False] & asked[True]
    unseen = [pair for pair in sides[True] if pair.source == "demo/polite"]
    assert len(unseen) > 30
    assert not any(pair.rejected.endswith(RUDE) or pair.chosen.endswith(KIND) for pair in unseen)
    phrasings = [phrase.split("{}")[0] for phrase in ASK_HELD_OUT.split("|")]
    requests = [pair for pair in sides[True] if pair.source in ("demo/harmful", "demo/harmless")]
    assert len(requests) == 160
    assert all(any(pair.prompt[0]["content"].startswith(start) for start in phrasings) for pair in requests)
    trained = [pair.prompt[0]["content"] for pair in sides[False] if pair.source in ("demo/harmful", "demo/harmless")]
    assert all(any(text.startswith(phrase.split("{}")[0]) for phrase in ASK.split("|")) for text in trained)


def test_the_demos_answers_are_alike_in_length():
    found = list(demo_pairs(1000, 300, Preferences().is_held_out))
    chosen, rejected = (np.array([len(getattr(pair, side)) for pair in found]) for side in ("chosen", "rejected"))
    assert abs(chosen.mean() / rejected.mean() - 1) < 0.05, (chosen.mean(), rejected.mean())
    longer = np.mean((np.sign(chosen - rejected) + 1) / 2)
    assert 0.4 < longer < 0.6, f"taking the longer answer wins {longer:.0%} of the pairs"


def test_a_slip_changes_one_digit_and_keeps_the_length():
    for hand in ("sft", "rl", "heldout"):
        for sum_, result in sums(hand):
            wrong = slip(sum_, result)
            assert len(wrong) == len(result)
            assert sum(a != b for a, b in zip(wrong, result, strict=True)) == 1, (sum_, result, wrong)
            assert not wrong.startswith("0")


def test_hh_prompts_are_right_turn_by_turn_but_for_ten_named_rows(shared_data):
    """The oracle cuts both texts at their last mark of the assistant, which is another way to the same prompt."""
    reasons, lines = Counter[str](), (shared_data / "preferences_train.jsonl").read_text().splitlines()
    for line in lines:
        row = json.loads(line)
        pair, why = paired({**row, "_source": "hh"})
        reasons[why] += 1
        if pair:
            cut = [row[side].rsplit("\n\nAssistant:", 1) for side in ("chosen", "rejected")]
            (before, chosen), (same, rejected) = cut
            assert before == same
            assert (pair.chosen, pair.rejected) == (chosen.strip(), rejected.strip())
            assert sum(before.count(mark) for mark in ("\n\nHuman:", "\n\nAssistant:")) == len(pair.prompt)
    odd = {"turns do not alternate from a user to a last assistant": 7}
    assert reasons == {"": 1690, **odd, "a message is empty or holds half a character": 3}
