"""The tokenizer on a vocabulary small enough to check by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.errors import UserError
from gpt.tokenizer import LETTERS, PATTERNS, SPECIALS, Tokenizer, ranks_to_merges, reserve

BYTES = [bytes([byte]) for byte in LETTERS]


def tiny(words: tuple[bytes, ...] = (b"he", b"ll", b"hell", b"hello"), pattern: str = "gpt2") -> Tokenizer:
    ranks = {token: rank for rank, token in enumerate([*BYTES, *words])}
    return Tokenizer(ranks, pattern, reserve(ranks))


def test_ids_follow_the_ranks_and_special_tokens_come_last():
    tokenizer = tiny()
    assert tokenizer.encode("hello") == [259]
    assert tokenizer.encode("!hello") == [0, 259], "the first byte id is '!', as in GPT-2"
    assert tokenizer.specials == {token: 260 + n for n, token in enumerate(SPECIALS)}
    assert (tokenizer.vocab_size, tokenizer.eot, tokenizer.end) == (265, 260, 264)


def test_special_tokens_in_text_are_text():
    tokenizer = tiny()
    for special in SPECIALS:
        ids = tokenizer.encode(f"a{special}b")
        assert not set(ids) & set(tokenizer.specials.values()), f"{special} became an id in {ids}"
        assert tokenizer.decode(ids) == f"a{special}b"


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_decoding_undoes_encoding(text):
    assert tiny().decode(tiny().encode(text)) == text


@settings(deadline=None)
@given(st.text(alphabet=st.characters()))
def test_half_characters_become_replacement_characters(text):
    repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tiny().decode(tiny().encode(text)) == repaired


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("text", [" " * 1_200_000 + "x", "\n " * 700_000 + "x", "a" * 300_000])
def test_a_run_that_is_too_long_for_the_regex_engine_is_encoded_all_the_same(pattern, text):
    tokenizer = tiny(pattern=pattern)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_per_token_add_up_to_the_text_and_specials_count_nothing():
    tokenizer, text = tiny(), "hello <|end|> ñandú 你好"
    lengths = tokenizer.bytes_per_token()
    assert lengths.dtype == np.int64
    assert lengths[tokenizer.encode(text)].sum() == len(text.encode())
    assert not lengths[list(tokenizer.specials.values())].any()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_saved_loads_as_the_same_and_saves_as_the_same_bytes(tmp_path, pattern):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    tiny(pattern=pattern).save(first)
    loaded = Tokenizer.load(first)
    loaded.save(second)
    assert (loaded.digest, loaded.pattern) == (tiny(pattern=pattern).digest, pattern)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), f"{file.name} changed"
    names = {"tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"}
    assert {file.name for file in first.iterdir()} == names | {"ranks.tiktoken", "chat_template.jinja"}


def test_the_digest_tells_ranks_patterns_and_specials_apart():
    ranks = tiny().ranks
    other = Tokenizer(ranks, "gpt2", reserve(ranks, {"<|more|>": 260}))
    names = [tiny(), tiny((b"he", b"ll", b"hell")), tiny(pattern="characters"), other]
    assert len({tokenizer.digest for tokenizer in names}) == 4


def test_borrowed_specials_keep_their_ids_and_gaps_are_reserved():
    ranks = {token: rank for rank, token in enumerate(BYTES)}
    specials = reserve(ranks, {"<|endoftext|>": 257, "<|x|>": 260})
    assert specials["<|endoftext|>"] == 257
    assert [specials[f"<|reserved_{n}|>"] for n in (256, 258, 259)] == [256, 258, 259]
    assert [specials[token] for token in SPECIALS[1:]] == [261, 262, 263, 264]


def test_merges_of_a_worked_example():
    merges = ranks_to_merges(tiny().ranks)
    assert merges == [(b"h", b"e"), (b"l", b"l"), (b"he", b"ll"), (b"hell", b"o")]
    with pytest.raises(UserError, match=r"b'abc'.*not a BPE vocabulary"):
        ranks_to_merges({token: rank for rank, token in enumerate([*BYTES, b"abc"])})


def test_the_byte_letters_are_those_of_huggingface():
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(LETTERS.values()) == set(ByteLevel.alphabet())
    for byte in range(128):
        assert ByteLevel(add_prefix_space=False).pre_tokenize_str(chr(byte))[0][0] == LETTERS[byte]


def test_a_folder_that_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"ranks\.tiktoken"):
        Tokenizer.load(tmp_path)
    tiny(pattern="cl100k_base").save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[a-z]+"
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"\[a-z\]\+"):
        Tokenizer.load(tmp_path)
