"""OpenAI's vocabularies: fetched whole and right, or not at all, and a line that tells what to put where."""

import hashlib

import pytest
import requests

from flows.commands.tokenizer import fetch
from gpt.errors import UserError
from tasks import openai

CONTENT = b"aGk= 0\n"
NAME = "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and a vocabulary of seven bytes at gpt2's address."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    file = openai.File("r50k_base", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(openai, "FILES", {"gpt2": file})
    return tmp_path / "cache"


def no_network(*_, **__):
    raise requests.ConnectionError("no route")


def test_a_fetched_file_lies_where_tiktoken_looks_and_is_not_fetched_again(cache, monkeypatch, capsys):
    monkeypatch.setattr(openai, "_download", lambda url: CONTENT)
    fetch("gpt2")
    assert capsys.readouterr().out == f"gpt2 is in {cache / NAME}\n"
    assert [file.read_bytes() for file in cache.iterdir()] == [CONTENT]
    monkeypatch.setattr(requests, "get", no_network)
    assert openai.fetch("gpt2") == cache / NAME


def test_what_is_not_the_file_is_not_kept(cache, monkeypatch):
    monkeypatch.setattr(openai, "_download", lambda url: b"<html>sign in</html>")
    with pytest.raises(UserError, match=r"not OpenAI's file \(20 bytes\)"):
        openai.fetch("gpt2")
    assert not cache.exists()


def test_offline_the_line_tells_which_file_to_put_where(cache, monkeypatch):
    monkeypatch.setattr(requests, "get", no_network)
    with pytest.raises(
        UserError, match=rf"gpt2: no way to https.*save it as {cache / NAME} \(7 bytes, sha256 "
    ) as error:
        openai.vocabulary("gpt2")
    assert "\n" not in str(error.value)


def test_a_wrong_file_in_the_cache_is_named_and_left_alone_until_the_right_one_is_there(cache, monkeypatch):
    cache.mkdir()
    (cache / NAME).write_bytes(b"wrong")
    monkeypatch.setattr(requests, "get", no_network)
    with pytest.raises(UserError, match="has another sha256"):
        openai.vocabulary("gpt2")
    assert (cache / NAME).read_bytes() == b"wrong", "tiktoken itself would have deleted it"
    monkeypatch.setattr(openai, "_download", lambda url: CONTENT)
    assert openai.fetch("gpt2").read_bytes() == CONTENT


def test_a_disk_that_takes_no_more_leaves_nothing_behind(cache, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openai, "_download", lambda url: CONTENT)
    monkeypatch.setattr(openai, "sync", full)
    with pytest.raises(UserError, match="No space left on device; set TIKTOKEN_CACHE_DIR"):
        openai.fetch("gpt2")
    assert not list(cache.iterdir())


def test_unknown_names_and_a_cache_that_is_turned_off_are_one_line(cache, monkeypatch):
    with pytest.raises(UserError, match="no vocabulary 'gpt5' is known; one of gpt2"):
        openai.fetch("gpt5")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with pytest.raises(UserError, match="turns tiktoken's cache off"):
        openai.fetch("gpt2")


@pytest.mark.shared
def test_the_real_files_have_the_sizes_and_sums_written_here(shared_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
    for name, file in openai.FILES.items():
        assert openai.cached(name), name
        assert openai.place(name).stat().st_size == file.size_bytes
