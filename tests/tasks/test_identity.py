"""Ids are the same in ours, tiktoken, tokenizers and transformers, for every kind of vocabulary and any text."""

import json
import random
import shutil
import socket
import sys
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as HuggingFace

from gpt.chat import render
from gpt.tokenizer import PATTERNS, SPECIALS, Tokenizer, reserve, splitter
from tasks import openai
from tasks.bpe import train_bpe
from tasks.encoders import Tiktoken
from tasks.tokenizer import character_ranks

PROSE = "It's the 1st of 12,345 loops; we'll weave what they've spun. ¿Qué más?\nfor i in range(10):\n\tprint(i)\n"
SCRIPTS = "日本語のテキスト Привет, мир! γειά σου שלום مرحبا १२३४५ ١٢٣٤٥ ๑๒๓๔๕ 12345678 Ⅻ²³ ﬁ ß ſ İı K"
BLANKS = ["", " ", "  ", "\n", "\r\n\r\n", " \r\n \n\t x", "\u2028\u2029\u0085\u3000x", "a  b   c    d", "  ends \n"]
SIGNS = [
    "a\0b\0",
    "\x00\x01\x7f\x80\xa0\xad",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇪🇸🇵🇪 👍🏽 ❤️",
    "e\u0301 é\u200d\u200b\ufeff",
    "\ud7ff\ue000\ufffd\U0010ffff",
]
WORDS = [
    "I'M WE'LL they'D 's 'S 't''s ’s",
    "a'ſ 'ſt",
    "CamelCaseHTTPServer2x ABCdef",
    "ǅungla naïve",
    "https://a.b/c?d=1&e",
]
SPELLED = [
    "".join(SPECIALS),
    "<|endoftext|>a<|end|> <|user|>\n<|assistant|",
    "<|endoftext|>" * 2,
    "<|reserved_100256|>",
]
RUNS = [piece * 5000 for piece in ("x", " ", "1", "!?", "é", "ab ", "\n\n x", "😀", "\r\n", "字", "=")]
ODD = [*BLANKS, *SIGNS, *WORDS, *SPELLED, *RUNS, SCRIPTS, PROSE]

SPELLINGS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": PATTERNS["o200k_base"].replace("{1,3}", "{1,3}+").replace(r"]+[\r\n/]*", r"]++[\r\n/]*+"),
    "characters": r"(?s:.)",
}
"""The other spelling of each pattern: plain for gpt2, possessive for cl100k_base (OpenAI's own) and o200k_base.

Ours and the shards' encoder have a third in tiktoken, `grouped`."""
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("cl100k_base", "o200k_base")]
KINDS = ["bpe gpt2", "bpe cl100k_base", "bpe o200k_base", "characters", "gpt2", *LARGE]

Encode = Callable[[list[str]], list[list[int]]]
Readers = dict[str, Encode]


@cache
def assigned() -> list[str]:
    """Every assigned code point; half characters and private ones aside."""
    points = map(chr, range(sys.maxunicode + 1))
    return [point for point in points if unicodedata.category(point) not in ("Cn", "Cs", "Co")]


def points(size: int) -> list[str]:
    """Every assigned code point twice with a blank behind it, so many in a text."""
    return ["".join(f"{c}{c} " for c in assigned()[n : n + size]) for n in range(0, len(assigned()), size)]


def adversarial() -> list[str]:
    """More than 12,000 texts that tell tokenizers apart."""
    draw = random.Random(1)
    digits = [c for c in assigned() if unicodedata.category(c) == "Nd"]
    zeros = [c for c in digits if unicodedata.digit(c) == 0]
    numbers = [f"{zero * n}x {zero * n}" for zero in zeros for n in range(1, 9)]
    bare = ["".join(draw.sample(assigned(), 64)) for _ in range(2_000)]
    atoms = [*BLANKS, *SIGNS, *WORDS, *SPELLED, *SPECIALS, *SCRIPTS.split(), *PROSE.split(), *digits[::7]]
    mixed = ["".join(draw.choices(atoms, k=draw.randint(1, 12))) for _ in range(5_000)]
    near = ["".join(map(chr, draw.choices(range(1, 0x3000), k=draw.randint(1, 80)))) for _ in range(3_000)]
    return [*ODD, *points(64), *numbers, *bare, *mixed, *near]


def real(size: int) -> Iterator[str]:
    """Texts of this machine, at least so many bytes: documentation, Python's and its packages' sources."""
    folders = [Path("/usr/share/doc"), *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))]
    files = (
        path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in ("", ".txt", ".py", ".md")
    )
    seen, done = set[int](), 0
    for path in files:
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() and path.stat().st_size < 2_000_000 else ""
        except (OSError, UnicodeError):
            continue
        if text and hash(text) not in seen:
            seen.add(hash(text))
            done += len(text.encode())
            yield text
        if done >= size:
            return


def save(folder: Path, ranks: dict[bytes, int], pattern: str, borrowed: dict[str, int] | None = None) -> Path:
    folder.mkdir()
    Tokenizer(ranks, pattern, reserve(ranks, borrowed)).save(folder)
    return folder


def published(folder: Path, name: str, shared_data: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
        known = openai.vocabulary(name)
    return save(folder, known["mergeable_ranks"], name, known["special_tokens"])


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> Path:
    """A folder of each kind."""
    folder, name = tmp_path_factory.mktemp("kind") / "out", request.param
    if name.startswith("bpe"):
        pattern = name.split()[1]
        return save(folder, train_bpe([PROSE * 5, SCRIPTS] * 3, 600, pattern), pattern)
    if name == "characters":
        return save(folder, character_ranks([PROSE, SCRIPTS]), name)
    return published(folder, name, request.getfixturevalue("shared_data"))


@cache
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@cache
def transformers(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def readers(made) -> Readers:
    return readers_of(made)


def readers_of(folder: Path) -> Readers:
    """Whoever reads the folder, special tokens in text being text; `ours` is the first."""
    mine, auto = ours(folder), transformers(folder)
    saved = HuggingFace.from_file(str(folder / "tokenizer.json"))
    saved.encode_special_tokens = True
    shards, (listed, other) = Tiktoken(mine), (spelled(mine, known[mine.pattern]) for known in (PATTERNS, SPELLINGS))
    found: Readers = {
        "ours": lambda texts: [mine.encode(text) for text in texts],
        "the shards' encoder": lambda texts: [shards.encode_batch([text.encode()])[0].tolist() for text in texts],
        "tiktoken with the listed spelling": lambda texts: [listed.encode_ordinary(text) for text in texts],
        "tiktoken with the other spelling": lambda texts: [other.encode_ordinary(text) for text in texts],
        "tokenizers": lambda texts: [found.ids for found in saved.encode_batch(texts)],
        "AutoTokenizer": lambda texts: auto(texts, split_special_tokens=True)["input_ids"],
    }
    return found | (bare(folder) if mine.pattern == "gpt2" else {})


def spelled(made: Tokenizer, spelling: str) -> tiktoken.Encoding:
    return tiktoken.Encoding("x", pat_str=spelling, mergeable_ranks=made.ranks, special_tokens=made.specials)


def bare(folder: Path) -> Readers:
    """What transformers makes of vocab.json and merges.txt alone."""
    from transformers import GPT2TokenizerFast

    alone = folder.parent / f"{folder.name}-bare"
    alone.mkdir(exist_ok=True)
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(folder / file, alone / file)
    reader = GPT2TokenizerFast.from_pretrained(alone)
    return {"vocab.json and merges.txt": lambda texts: reader(texts, split_special_tokens=True)["input_ids"]}


def differing(readers: Readers, texts: list[str]) -> list[tuple[str, str]]:
    """(who, text) wherever someone's ids are not ours."""
    ours = readers["ours"](texts)
    theirs = {who: encode(texts) for who, encode in readers.items() if who != "ours"}
    return [(who, texts[n][:40]) for who, ids in theirs.items() for n in range(len(texts)) if ids[n] != ours[n]]


def test_all_engines_agree_on_odd_texts_and_every_code_point(readers):
    assert differing(readers, ODD) == []
    assert differing(readers, points(512)) == []


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_all_engines_agree_on_any_text_and_decoding_undoes_it(made, readers, text):
    assert differing(readers, [text]) == []
    assert ours(made).decode(readers["ours"]([text])[0]) == text


PIECES = [*SPECIALS, "<|", "|>", " ", "\n", "<|endoftext|", "end"]
SPELLING = st.lists(
    st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=12
)


def injected(tokenizer: Tokenizer, readers: Readers, text: str) -> None:
    """A text that spells special tokens yields none and comes back whole, whoever reads it."""
    ids = readers["ours"]([text])[0]
    assert not set(ids) & set(tokenizer.specials.values()), text
    assert tokenizer.decode(ids) == text
    assert differing(readers, [text]) == []


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Tokenizer, Readers]:
    """A trained vocabulary and its readers."""
    folder = save(tmp_path_factory.mktemp("small") / "out", train_bpe([PROSE * 5, SCRIPTS] * 3, 400), "gpt2")
    return ours(folder), readers_of(folder)


@settings(max_examples=500, deadline=None)
@given(pieces=SPELLING)
def test_special_tokens_spelled_in_a_text_are_never_injected(small, pieces):
    injected(*small, "".join(pieces))


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(pieces=SPELLING)
def test_special_tokens_are_not_injected_in_ten_thousand_texts(small, pieces):
    injected(*small, "".join(pieces))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_spellings_cut_alike_in_hugging_face_where_it_can_read_both(pattern):
    text = "\n".join([*BLANKS, *SIGNS, *WORDS, *SPELLED, SCRIPTS, PROSE])
    plain = PATTERNS[pattern] if pattern != "gpt2" else SPELLINGS["gpt2"]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(plain), "isolated"), letters])
    assert split.pre_tokenize_str(text) == splitter(pattern).pre_tokenize_str(text)


def test_a_possessive_spelling_would_glue_digits_in_hugging_face():
    wrong = pre_tokenizers.Split(Regex(SPELLINGS["cl100k_base"]), "isolated")
    assert len(wrong.pre_tokenize_str("12345678")) == 1
    assert len(splitter("cl100k_base").pre_tokenize_str("12345678")) == 3


def test_transformers_loads_the_folder_without_a_network(made, monkeypatch):
    from transformers import AutoTokenizer

    def no_network(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    assert len(AutoTokenizer.from_pretrained(made)) == ours(made).vocab_size


def test_transformers_renders_chats_to_the_same_ids_and_mask(made):
    theirs, mine = transformers(made), ours(made)
    said = [" Be brief.\n", SCRIPTS, "\n12345 é😀 ", PROSE, "ok"]
    roles = ["system", "user", "assistant", "user", "assistant"]
    messages = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
    written = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert (written["input_ids"], written["assistant_masks"]) == render(mine, messages)
    asked = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
    assert asked["input_ids"] == render(mine, messages[:-1], reply=True)[0]


def test_special_tokens_have_the_same_ids_for_transformers_and_eos_ends_a_base_text(made):
    theirs, mine = transformers(made), ours(made)
    assert {token: theirs.convert_tokens_to_ids(token) for token in mine.specials} == mine.specials
    assert (theirs.eos_token_id, len(theirs)) == (mine.eot, mine.vocab_size)
    assert set(mine.specials) <= set(theirs.all_special_tokens)


def test_a_published_vocabulary_has_the_ids_of_tiktoken_itself(made, readers, shared_data, monkeypatch):
    if ours(made).vocab_size < 50_000:
        return
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
    official = tiktoken.get_encoding(ours(made).pattern)
    assert readers["ours"](ODD) == [official.encode_ordinary(text) for text in ODD]


FULL = ["512", "4096", "32768", "4096 cl100k_base", "4096 o200k_base", "gpt2", "cl100k_base", "o200k_base"]


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("kind", FULL)
def test_all_engines_agree_on_12_000_adversarial_texts_and_50_mb_of_real_ones(kind, tmp_path, shared_data, capsys):
    if kind[0].isdigit():
        size, pattern = int(kind.split()[0]) - len(SPECIALS), (*kind.split(), "gpt2")[1]
        folder = save(tmp_path / "out", train_bpe(real(20_000_000), size, pattern), pattern)
    else:
        folder = published(tmp_path / "out", kind, shared_data)
    readers, odd, wrong, count, length = readers_of(folder), adversarial(), [], 0, 0
    assert len(odd) >= 12_000
    wrong += differing(readers, odd)
    texts = real(50_000_000)
    while batch := list(islice(texts, 500)):
        wrong += differing(readers, batch)
        count, length = count + len(batch), length + sum(len(text.encode()) for text in batch)
    assert length >= 50_000_000
    about = {"kind": kind, "readers": list(readers), "adversarial": len(odd), "real": count, "bytes": length}
    with capsys.disabled():
        print(json.dumps({**about, "differing": len(wrong)}))
    assert wrong == []
