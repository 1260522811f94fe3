"""A conversation remembers, streams what it says whole, and forgets its oldest turns when it grows too long."""

import pytest
import torch

from gpt import converse
from gpt.config import ModelConfig
from gpt.converse import Conversation
from gpt.decode import Decoder
from gpt.generate import Knobs
from gpt.model import GPT


@pytest.fixture
def talk(tokenizer, monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = GPT(ModelConfig(depth=1, width=32, heads=2, context=200), tokenizer.vocab_size).eval()
    monkeypatch.setattr(converse, "laid_out", lambda folder, device, weights: (Decoder(model), tokenizer))
    return Conversation(tmp_path, "cpu", "be kind", Knobs(), seed=1)


def test_the_pieces_are_the_reply_and_the_history_holds_both_sides(talk):
    pieces: list[str] = []
    reply = talk.say("hello", pieces.append)
    assert "".join(pieces) == reply
    assert talk.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": reply}]


def test_a_character_of_several_bytes_comes_whole(talk, tokenizer, monkeypatch):
    ids = [*tokenizer.encode("señor 日本"), tokenizer.end]

    def said(model, prompts, room, heard, **_):
        for token in ids:
            heard(0, token)

    monkeypatch.setattr(converse, "generate", said)
    pieces: list[str] = []
    assert talk.say("?", pieces.append) == "señor 日本"
    assert "".join(pieces) == "señor 日本"
    assert all("\ufffd" not in piece for piece in pieces)


def test_the_oldest_turns_are_forgotten_but_never_the_system_or_the_question(talk):
    seen = []
    for n in range(6):
        talk.say(f"question {n}", lambda piece: None)
        seen.append(talk.tokenizer.decode(talk._prompt()))
    assert all("be kind" in text and f"question {n}" in text for n, text in enumerate(seen))
    assert "question 0" not in seen[-1]
    assert len(talk.messages) < 12


def test_a_question_longer_than_the_context_still_gets_an_answer(talk):
    assert isinstance(talk.say("long " * 100, lambda piece: None), str)
