"""Shards, orders and conversations as pure functions of (seed, step)."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.data import IGNORED, Conversations, Stream, order, permute, read_shard, write_shard
from gpt.errors import UserError


def stream_of(tmp_path, *lengths, split="train"):
    numbers, files = np.arange(sum(lengths), dtype=np.uint16), []
    for n, part in enumerate(np.split(numbers, np.cumsum(lengths)[:-1])):
        files.append(tmp_path / f"{split}-{n:05d}.bin")
        write_shard(files[-1], part)
    return Stream(files)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_shard_has_llm_c_header_and_exact_size(tmp_path, dtype):
    tokens = np.array([1, 2, 65535], dtype)
    write_shard(tmp_path / "a.bin", tokens)
    raw = (tmp_path / "a.bin").read_bytes()
    magic = {np.uint16: (20240520, 1, 3), np.uint32: (20240801, 7, 3)}[dtype]
    assert tuple(np.frombuffer(raw, "<i4", 3)) == magic
    assert raw[1024:] == tokens.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    assert read_shard(tmp_path / "a.bin").tolist() == [1, 2, 65535]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"\1" + b[1:], lambda b: b[:100]])
def test_a_damaged_shard_is_refused(tmp_path, damage):
    write_shard(tmp_path / "a.bin", np.arange(9, dtype=np.uint16))
    (tmp_path / "a.bin").write_bytes(damage((tmp_path / "a.bin").read_bytes()))
    with pytest.raises(UserError, match=r"a\.bin"):
        read_shard(tmp_path / "a.bin")


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.data())
@settings(max_examples=50)
def test_a_stream_reads_across_files_like_one_array(tmp_path_factory, lengths, data):
    stream = stream_of(tmp_path_factory.mktemp("s"), *lengths)
    start = data.draw(st.integers(0, len(stream)))
    stop = data.draw(st.integers(start, len(stream)))
    assert stream.read(start, stop).tolist() == list(range(start, stop))
    assert stream.read(start, stop).dtype == np.int64


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size, key):
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_another_seed_or_epoch_is_another_order():
    orders = [order(seed, epoch, 100, 100)[1].tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(places) for places in orders}) == 4
    assert all(sorted(places) == list(range(100)) for places in orders)


def test_a_conversation_has_loss_on_the_answer_and_its_end_only(make_run, tokenizer):
    chats = Conversations(Path(make_run("sft")["data"]), 32)
    x, y = chats.padded(np.array([3]))
    said = [token for token in y[0] if token != IGNORED]
    assert said == [*tokenizer.encode("eyb"), tokenizer.end]
    answer = tokenizer.specials["<|assistant|>"]
    assert (y[0] != IGNORED).argmax() == x[0].tolist().index(answer), "the first target follows the role token"


def test_an_epoch_has_each_training_conversation_once_and_none_without_an_answer(make_run, tokenizer, capsys):
    chats = Conversations(Path(make_run("sft")["data"]), 32)
    assert "1 conversations have no answer within 32 tokens" in capsys.readouterr().out
    assert chats.train.tolist() == [0, 1, 2, 4, 6]
    seen = [tokenizer.decode(row) for step in range(5) for row in chats.batch(1, step, 1)[0]]
    asked = sorted(text.split("<|user|>")[1].split("<|end|>")[0] for text in seen)
    assert asked == sorted(["hi", "who?", "2+2", "sum", "why"])


def test_rows_are_padded_to_the_longest_and_cut_to_the_context(make_run):
    x, y = Conversations(Path(make_run("sft")["data"]), 10).batch(1, 0, 3)
    assert x.shape[1] <= 10
    assert x.shape == y.shape
    assert (y[x == 0] == IGNORED).all()
