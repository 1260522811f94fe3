"""The chats stage: every known shape of conversation, what is dropped and why, and nothing shared between the sides."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.chat import render
from gpt.errors import UserError
from tasks.artifacts import Tokenizer
from tasks.chats import Conversations, chats, fault, questions
from tasks.demo_chats import ASK, ASK_HELD_OUT, Chat, demo_chats, turns
from tasks.demo_chats import __file__ as demo_module
from tasks.files import hash_file

pytestmark = pytest.mark.usefixtures("python_read_once")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, vocabulary) -> Path:
    out = tmp_path_factory.mktemp("demo")
    chats.fn(out, Conversations(demo_functions=400, demo_sums=100, max_tokens=400), vocabulary)
    return out


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build(out: Path, vocabulary: Tokenizer, *sources: Path, **options: Any) -> tuple[list[dict], dict[str, float]]:
    out.mkdir()
    metrics = chats.fn(out, Conversations(sources=tuple(map(str, sources)), **options), vocabulary)
    return pq.read_table(out / "chats.parquet").to_pylist(), metrics


def test_arrays_hold_what_the_table_says_in_the_same_order(demo, vocabulary):
    ids, mask, offsets, split = (
        np.load(demo / f"{n}.npy", allow_pickle=False) for n in ("ids", "mask", "offsets", "split")
    )
    assert [array.dtype.name for array in (ids, mask, offsets, split)] == ["uint32", "uint8", "int64", "uint8"]
    rows, loaded = pq.read_table(demo / "chats.parquet").to_pylist(), vocabulary.load()
    assert len(offsets) == len(rows) + 1 == len(split) + 1
    for row, start, stop, held in zip(rows, offsets[:-1], offsets[1:], split, strict=True):
        assert (ids[start:stop].tolist(), mask[start:stop].tolist()) == render(loaded, row["messages"])
        assert row["split"] == ("heldout" if held else "train")
    assert json.loads((demo / "chats.json").read_text())["tokenizer"] == loaded.digest


def test_the_same_config_gives_the_same_bytes(demo, vocabulary, tmp_path):
    chats.fn(tmp_path, Conversations(demo_functions=400, demo_sums=100, max_tokens=400), vocabulary)
    for file in sorted(path for path in demo.rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / file.relative_to(demo)).read_bytes(), f"{file.name} differs"


def test_the_sources_are_noted_with_the_rows_that_were_kept_of_each(vocabulary, tmp_path):
    own = jsonl(tmp_path / "own.jsonl", {"prompt": "Who?", "response": "I."}, {"prompt": "Why?", "response": ""})
    chats.fn(tmp_path, Conversations(sources=("demo", str(own)), demo_functions=4, demo_sums=3), vocabulary)
    demo, file = json.loads((tmp_path / "logs" / "sources.json").read_text())
    assert (file["path"], file["digest"], file["documents"]) == (str(own), hash_file(own), 1)
    assert demo["kind"] == "demo"
    assert demo["documents"] + 1 == len(pq.read_table(tmp_path / "chats.parquet"))


def test_demo_sides_share_no_function_operands_thing_or_phrasing(demo):
    sides: dict[str, set[tuple]] = {"train": set(), "heldout": set()}
    for row in pq.read_table(demo / "chats.parquet").to_pylist():
        question, answer = (message["content"] for message in row["messages"])
        if row["source"] == "demo/functions":
            sides[row["split"]].add(("answer", answer))
        elif row["source"] == "demo/sums":
            assert row["split"] == "train", "sums are held out by their hand, see test_prompts.py"
        else:
            phrasings = {"train": ASK, "heldout": ASK_HELD_OUT}[row["split"]].split("|")
            fits = [
                p for p in phrasings if question.startswith(p.split("{}")[0]) and question.endswith(p.split("{}")[1])
            ]
            phrasing = max(fits, key=len)
            sides[row["split"]] |= {("phrasing", phrasing), ("thing", question[len(phrasing.split("{}")[0]) :][:-1])}
    assert not sides["train"] & sides["heldout"]
    assert Counter(kind for kind, *_ in sides["heldout"]) >= Counter(answer=20, phrasing=8, thing=20)


def test_held_out_questions_of_the_demo_are_balanced_and_unseen(demo):
    held = json.loads((demo / "heldout.json").read_text())
    asked = {
        row["messages"][0]["content"]
        for row in pq.read_table(demo / "chats.parquet").to_pylist()
        if row["split"] == "train"
    }
    assert (len(held["harmful"]), len(held["harmless"]), len(held["prompts"])) == (80, 80, 50)
    everything = (
        [choice["question"] for choice in held["choices"]] + held["harmful"] + held["harmless"] + held["prompts"]
    )
    assert not asked & set(everything)
    assert len(held["choices"]) >= 24
    assert Counter(choice["correct"] for choice in held["choices"]) == dict.fromkeys(
        range(4), len(held["choices"]) // 4
    )


ANSWERS = st.lists(st.text(min_size=1, max_size=9), min_size=4, max_size=60, unique=True)


@given(ANSWERS)
def test_whatever_ignores_the_question_scores_a_quarter(answers):
    held = [Chat(turns(f"question {n}", answer), "file") for n, answer in enumerate(answers)]
    choices = questions(held)["choices"]
    right = dict(zip((f"question {n}" for n in range(len(answers))), answers, strict=True))
    assert len(choices) == len(answers) // 4 * 4
    for choice in choices:
        assert len(set(choice["answers"])) == 4
        assert choice["answers"][choice["correct"]] == right[choice["question"]]
    for taste in (len, str, hash):  # the longest, the first by name, any fixed liking
        hits = sum(
            max(choice["answers"], key=lambda a: (taste(a), a)) == right[choice["question"]] for choice in choices
        )
        assert hits * 4 == len(choices), f"{hits} of {len(choices)} by {taste}"


def test_the_demo_is_short_polite_and_answers_what_only_looks_harmful():
    found = list(demo_chats(50, 20))
    assert Counter(chat.source for chat in found) == {
        "demo/functions": 100,
        "demo/sums": 20,
        "demo/harmful": 61 + 10 * 8,  # an eighth of the trained ones: preferences teach the rest
        "demo/harmless": 10 * (7 * 7 + 8),
    }
    for chat in found:
        assert fault(chat.messages) == ""
        assert len(chat.messages[1]["content"]) <= 160
        assert chat.messages[1]["content"].startswith("Sorry, I can't help") == (chat.source == "demo/harmful")
    requests = Path(demo_module).with_name("demo_requests.txt").read_text().splitlines()
    verbs = {
        kind: {line.split(" | ")[1] for line in requests if line.startswith(kind)} for kind in ("harmful", "harmless")
    }
    assert len(verbs["harmful"] & verbs["harmless"]) >= 9, "the verb alone must not decide"
    asked = [chat.messages[0]["content"] for chat in found]
    assert len(set(asked)) == len(asked)


def test_every_shape_of_row_becomes_the_same_messages(tmp_path, vocabulary):
    expected = turns("2+2?", "4")
    shapes = {
        "messages": {"messages": [{**message, "name": "x"} for message in expected]},
        "response": {"prompt": "2+2?", "response": "4"},
        "completion": {"prompt": "2+2?", "completion": "4"},
        "output": {"instruction": "2+2?", "output": "4", "input": ""},
        "answer": {"question": "2+2?", "answer": "4", "annotator": "Ada", "level": 3},
    }
    for name, row in shapes.items():
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
        for file in (jsonl(tmp_path / f"{name}.jsonl", row), tmp_path / f"{name}.parquet"):
            rows, _ = build(tmp_path / f"out-{name}{file.suffix}", vocabulary, file)
            assert rows[0]["messages"] == expected, file.name
            assert rows[0]["annotator"] == ("Ada" if name == "answer" else "")
    alpaca = jsonl(tmp_path / "alpaca.jsonl", {"instruction": "Add.", "input": "2+2", "output": "4"})
    assert build(tmp_path / "out", vocabulary, alpaca)[0][0]["messages"] == turns("Add.\n\n2+2", "4")


USER, BOT, SYSTEM = ({"role": role, "content": "hi"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([USER, BOT], ""),
        ([SYSTEM, USER, BOT, USER, BOT], ""),
        ([], "alternate"),
        ([SYSTEM], "alternate"),
        ([USER], "alternate"),
        ([BOT, USER, BOT], "alternate"),
        ([USER, USER, BOT], "alternate"),
        ([USER, SYSTEM, BOT], "alternate"),
        ([USER, BOT, USER], "alternate"),
        ([USER, {"role": "tool", "content": "hi"}], "role 'tool'"),
        ([USER, {"content": "hi"}], "role None"),
        ([USER, {"role": "assistant", "content": " \n"}], "empty"),
        ([USER, {"role": "assistant", "content": "\ud83d"}], "half a character"),
        ([USER, {"role": "assistant", "content": None}], "no list"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "hi"}]}], "no list"),
        ([USER, "hi"], "no list"),
        ("[{'role': 'user'}]", "no list"),
        (None, "no list"),
    ],
)
def test_what_is_no_conversation_is_told_why(messages, why):
    assert (fault(messages) == "") if why == "" else (why in fault(messages))


def test_bad_rows_are_dropped_counted_and_named(tmp_path, vocabulary, caplog):
    caplog.set_level(logging.INFO)
    good = [{"prompt": f"question {n}", "response": "yes"} for n in range(9)]
    bad = [{}, {"prompt": "no answer"}, {"prompt": "q", "response": 7}, {"prompt": "long " * 99, "response": "yes"}]
    file = jsonl(tmp_path / "own.jsonl", *good, *bad)
    file.write_text(file.read_text() + "{broken\n")
    rows, metrics = build(tmp_path / "out", vocabulary, file)
    assert (len(rows), metrics["data/conversations"], metrics["data/dropped"]) == (9, 9, 5)
    for line in ("3 dropped: messages are no list", "1 dropped: more than chats.max_tokens=256", "1 dropped: not_json"):
        assert line in caplog.text


def test_a_stage_that_would_drop_most_of_its_input_stops_and_says_why(tmp_path, vocabulary):
    file = jsonl(
        tmp_path / "own.jsonl", *[{"prompt": "long " * 99, "response": "yes"}] * 3, {"prompt": "a", "response": "b"}
    )
    with pytest.raises(UserError, match=r"keeps 1 of 4.*chats\.max_tokens=256"):
        build(tmp_path / "out", vocabulary, file)


def test_wrong_columns_are_named(tmp_path, vocabulary):
    pq.write_table(pa.table({"frage": ["a"], "antwort": ["b"]}), tmp_path / "own.parquet")
    for file in (jsonl(tmp_path / "own.jsonl", {"frage": "a", "antwort": "b"}), tmp_path / "own.parquet"):
        with pytest.raises(UserError, match=r"own.*frage, antwort.*messages or prompt and response"):
            build(tmp_path / f"out{file.suffix}", vocabulary, file)


def test_the_same_question_in_other_words_of_case_and_space_falls_on_one_side(tmp_path, vocabulary):
    rows = [
        {"prompt": text.format(n), "response": "yes"} for n in range(60) for text in ("Is {} odd?", "is  {} ODD?\n")
    ]
    kept, metrics = build(tmp_path / "out", vocabulary, jsonl(tmp_path / "own.jsonl", *rows), heldout=0.3)
    sides = Counter((row["messages"][0]["content"].split()[1], row["split"]) for row in kept)
    assert set(sides.values()) == {2}
    assert metrics["data/heldout_conversations"] > 10
    other, _ = build(tmp_path / "other", vocabulary, tmp_path / "own.jsonl", heldout=0.3, seed=1)
    assert [row["split"] for row in other] != [row["split"] for row in kept], "the seed draws"


def test_the_key_holds_content_and_not_paths(tmp_path):
    one, two = (jsonl(tmp_path / name, {"prompt": "a", "response": "b"}) for name in ("one.jsonl", "two.jsonl"))
    outside = [Conversations(sources=("demo", str(path))).outside() for path in (one, two)]
    assert outside[0] == outside[1]
    jsonl(two, {"prompt": "a", "response": "c"})
    assert Conversations(sources=("demo", str(two))).outside() != outside[0]
    with pytest.raises(UserError):
        Conversations(sources=()).outside()


@pytest.mark.shared
def test_gsm8k_becomes_conversations_with_questions_to_choose_from(tmp_path, vocabulary, shared_data):
    rows, metrics = build(tmp_path / "out", vocabulary, shared_data / "gsm8k_train.jsonl", max_tokens=2000)
    assert (len(rows), metrics["data/dropped"]) == (3000, 0)
    held = json.loads((tmp_path / "out" / "heldout.json").read_text())
    assert (len(held["choices"]), held["harmful"], held["harmless"]) == (200, [], [])
    assert 230 < metrics["data/heldout_conversations"] < 370
