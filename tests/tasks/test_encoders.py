"""Engines: the same ids as the tokenizer's own `encode`, whatever the text spells, and tiktoken when one is not."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.tokenizer import LETTERS, SPECIALS, reserve
from gpt.tokenizer import Tokenizer as Loaded
from tasks import encoders
from tasks.encoders import Differs, Tiktoken, Watched, adversarial, engines, self_test

RANKS = {bytes([byte]): rank for rank, byte in enumerate(LETTERS)}
for _pair in (b"th", b"in", b"er", b" t", b" a", b"<|", b"|>", b"en", b"do", b"\r\n", b"  "):
    RANKS[_pair] = len(RANKS)
SPELLED = st.lists(st.one_of(st.sampled_from([*SPECIALS, "<|", "|>", "endoftext", " ", "\n"]), st.text(max_size=8)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    Loaded(RANKS, "gpt2", reserve(RANKS)).save(folder)
    return folder


@pytest.fixture(params=["tiktoken", "gigatoken"])
def engine(request, folder):
    if request.param == "tiktoken":
        return engines(folder, False)[0]
    pytest.importorskip("gigatoken")
    return engines(folder, True)[1]


def test_every_engine_gives_the_ids_of_encode(engine, folder):
    made, texts = Loaded.load(folder), ["", *adversarial(), "word " * 5000]
    flat, lengths = engine.encode_batch([text.encode() for text in texts])
    assert (flat.dtype, lengths.tolist()) == (np.uint16, [len(made.encode(text)) for text in texts])
    assert flat.tolist() == [token for text in texts for token in made.encode(text)]
    assert engine.encode_batch([])[0].tolist() == engine.encode_batch([])[1].tolist() == []


def test_threads_that_share_an_engine_do_not_write_into_each_others_ids(folder):
    texts, engine = [text.encode() for text in adversarial()], Tiktoken(Loaded.load(folder))
    mine = engine.encode_batch(texts)[0]
    right = mine.copy()
    with ThreadPoolExecutor(1) as other:
        other.submit(engine.encode_batch, texts[::-1]).result()
    assert np.array_equal(mine, right)


def test_gigatoken_begins_anew_now_and_then_with_the_same_ids(folder, monkeypatch):
    pytest.importorskip("gigatoken")
    monkeypatch.setattr(encoders, "RENEW_BYTES", 3000)
    reference, engine, texts = Loaded.load(folder), encoders.Gigatoken(folder, Loaded.load(folder)), adversarial()
    made, new = [], engine._new
    monkeypatch.setattr(engine, "_new", lambda: made.append(new()) or made[-1])
    for text in texts:
        assert engine.encode_batch([text.encode()])[0].tolist() == reference.encode(text)
    assert len(made) == pytest.approx(sum(len(text.encode()) for text in texts) / 3000, rel=0.5)


def injected_nowhere(folder, cases):
    made, all_engines = Loaded.load(folder), [e for e in engines(folder, True)[:2] if e]

    @settings(max_examples=cases, deadline=None, database=None, derandomize=True)
    @given(SPELLED)
    def check(pieces):
        text = "".join(pieces)
        for one in all_engines:
            ids = one.encode_batch([text.encode()])[0]
            assert not np.isin(ids, list(made.specials.values())).any(), text
            assert made.decode(ids) == text

    check()


def test_special_tokens_in_a_text_stay_text(folder):
    injected_nowhere(folder, 300)


@pytest.mark.slow
def test_special_tokens_in_10_000_texts_stay_text(folder):
    injected_nowhere(folder, 10_000)


def test_what_tiktokens_fast_way_cannot_do_its_slow_way_does(folder):
    reference, made = engines(folder, False)[0], Loaded.load(folder)
    text = "a" + " " * 1_000_000 + "b"
    assert reference.encode_batch([text.encode()])[0].tolist() == made.encode(text)


class Wrong:
    """An engine that has other ids for texts with a certain letter."""

    name = "wrong 1"

    def __init__(self, made, letter):
        self.reference, self.letter = Tiktoken(made), letter

    def encode_batch(self, texts):
        return self.reference.encode_batch([text.replace(self.letter, b"?") for text in texts])


def test_a_fast_engine_is_watched_at_the_head_and_at_one_text_in_a_thousand(folder):
    made = Loaded.load(folder)
    watched = Watched(Wrong(made, b"X"), Tiktoken(made))
    texts = [b"fine"] * 3000
    for place in (0, 63, 1000, 2000):
        with pytest.raises(Differs, match=r"wrong 1 has other ids than tiktoken .* for 'X'"):
            watched.watch(True).encode_batch([*texts[:place], b"X", *texts[place + 1 :]])
    begun = watched.watch(True)
    begun.encode_batch(texts[:600])
    with pytest.raises(Differs):
        begun.encode_batch([*texts[:400], b"X"])  # the count goes on from batch to batch
    assert len(watched.watch(True).encode_batch([*texts[:500], b"X"])[1]) == 501, "not every text is looked at"


def test_a_fast_engine_that_fails_its_self_test_is_not_used(folder, monkeypatch):
    made = Loaded.load(folder)
    for letter in map(str.encode, ("\r", "\u200d", "9", "٣", "|", "\x00")):
        with pytest.raises(Differs):
            self_test(Wrong(made, letter), Tiktoken(made))
    monkeypatch.setattr(encoders, "Gigatoken", lambda *_: Wrong(made, b"\n"))
    engines.cache_clear()
    assert engines(folder, True)[1] is None
    assert "gigatoken fails its self-test" in engines(folder, True)[2]
    engines.cache_clear()


def test_where_gigatoken_is_absent_the_way_to_it_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    engines.cache_clear()
    assert engines(folder, True)[1:] == (None, 'pip install "gptloom[fast]" encodes several times faster')
    engines.cache_clear()
