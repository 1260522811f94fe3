"""The BPE trainers: the fast one is used only where it makes Hugging Face's merges, and it is said when not."""

import logging
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

from tasks import bpe
from tasks.bpe import plain, train_bpe

gigatoken = pytest.mark.skipif(not find_spec("gigatoken"), reason='needs pip install "gptloom[fast]"')


def library() -> list[str]:
    """Python's own sources, 6 MB."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in files]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return library()


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return caplog


@gigatoken
def test_the_fast_trainer_makes_the_merges_of_hugging_face_on_python_s_library(texts, said):
    made = train_bpe(texts, 3000)
    assert made == plain(texts, 3000, "gpt2")
    assert "gigatoken makes Hugging Face's merges" in said.text
    assert "trainer does it" not in said.text


@gigatoken
@pytest.mark.shared
def test_a_book_in_one_document_is_no_trap_for_the_fast_trainer(shared_data, said, monkeypatch):
    monkeypatch.setattr(bpe, "WORTH_BYTES", 0)
    book = [(shared_data / "quijote.txt").read_text(encoding="utf-8")]
    assert train_bpe(book, 2000) == plain(book, 2000, "gpt2")
    assert "trainer does it" not in said.text


@gigatoken
def test_where_pairs_would_be_merged_that_occur_once_hugging_face_trains(said, monkeypatch):
    monkeypatch.setattr(bpe, "WORTH_BYTES", 0)
    few = ["hello hello world", "other words here"]
    assert train_bpe(few, 280) == plain(few, 280, "gpt2")
    assert "Hugging Face's trainer does it: " in said.text


def test_other_merges_of_the_head_are_refused(texts, said, monkeypatch):
    monkeypatch.setattr(bpe, "find_spec", lambda name: True)
    monkeypatch.setattr(bpe, "by_gigatoken", lambda file, size: {b"x": 0})
    head = texts[:20]
    monkeypatch.setattr(bpe, "WORTH_BYTES", 0)
    assert train_bpe(head, 400) == plain(head, 400, "gpt2")
    assert "gigatoken makes other merges of the head" in said.text


def test_a_fast_trainer_that_dies_is_no_loss(texts, said, monkeypatch):
    monkeypatch.setattr(bpe, "find_spec", lambda name: True)
    monkeypatch.setattr(bpe, "WORTH_BYTES", 0)
    monkeypatch.setattr(bpe, "launch", lambda command: (_ for _ in ()).throw(RuntimeError("it ended with -14\nlines")))
    head = texts[:20]
    assert train_bpe(head, 400) == plain(head, 400, "gpt2")
    assert "Hugging Face's trainer does it: it ended with -14" in said.text
    assert "lines" not in said.text


def test_without_it_or_on_another_pattern_the_corpus_is_read_once_and_streamed(texts, monkeypatch):
    monkeypatch.setattr(bpe, "by_gigatoken", lambda file, size: pytest.fail("not for this pattern"))
    head = texts[:20]
    assert train_bpe(iter(head), 400, "cl100k_base") == plain(head, 400, "cl100k_base")
    monkeypatch.setattr(bpe, "find_spec", lambda name: None)
    assert train_bpe(iter(head), 400) == plain(head, 400, "gpt2")
