"""The tokenizer stage: every kind of vocabulary means the same to tiktoken, tokenizers and transformers."""

import logging
import shutil
import sys
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace

from gpt.chat import render
from gpt.errors import UserError
from gpt.tokenizer import SPECIALS, Tokenizer
from tasks.artifacts import Corpus
from tasks.tokenizer import Vocabulary, sample, tokenizer

PROSE = (
    "It's the 1st of 12,345 loops; we'll weave what they've spun. ¿Qué más, señor?\nfor i in range(10):\n\tprint(i)\n"
)
SCRIPTS = "日本語のテキスト Привет, мир! γειά σου שלום مرحبا १२३४५ ١٢٣٤٥ ๑๒๓๔๕ 12345678 Ⅻ²³ ﬁ ß ſ İı K"
ODD = [
    *(
        "",
        " ",
        "  ",
        "\n",
        "\r\n\r\n",
        " \r\n \n\t x",
        "a\0b\0",
        "\x00\x01\x7f\x80\xa0\xad",
        "\u2028\u2029\u0085\u3000x",
    ),
    *("👩‍👩‍👧‍👦 🏳️‍🌈 🇪🇸🇵🇪 👍🏽 ❤️", "e\u0301 é\u200d\u200b\ufeff", "\ud7ff\ue000\ufffd\U0010ffff"),
    *(piece * 5000 for piece in ("x", " ", "1", "!?", "é", "ab ", "\n\n x", "😀")),
    *(
        "I'M WE'LL they'D 's 'S 't''s ’s",
        "a'ſ 'ſt",
        "CamelCaseHTTPServer2x ABCdef",
        " leading and trailing ",
        "a  b   c    d",
    ),
    *("".join(SPECIALS), "<|endoftext|>a<|end|> <|user|>\n<|assistant|", "<|endoftext|>" * 2, "<|reserved_100256|>"),
    *(SCRIPTS, PROSE),
]
ASSIGNED = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
POINTS = ["".join(f"{c}{c} " for c in ASSIGNED[n : n + 512]) for n in range(0, len(ASSIGNED), 512)]


def corpus(folder: Path, *texts: str, parts: int = 1) -> Corpus:
    """Documents d0, d1, ... in so many parts; a fair stand-in for ingest's output, which has these three columns."""
    folder.mkdir()
    rows = [{"id": f"d{n}", "text": text, "source": "here"} for n, text in enumerate(texts)]
    for part in range(parts):
        size = -(-len(rows) // parts)
        pq.write_table(pa.Table.from_pylist(rows[part * size :][:size]), folder / f"part-{part:05d}.parquet")
    return Corpus(stage="ingest", key="k", digest="d", path=folder)


def build(folder: Path, config: Vocabulary, documents: Corpus) -> tuple[Path, dict[str, float]]:
    folder.mkdir()
    return folder, tokenizer.fn(folder, config, documents)


@pytest.fixture(scope="module", params=["bpe", "characters", "gpt2", "cl100k_base", "o200k_base"])
def made(request, tmp_path_factory) -> tuple[str, Path]:
    """One folder of each kind, made by the stage."""
    root = tmp_path_factory.mktemp(request.param)
    documents = corpus(root / "corpus", *[PROSE * 5, SCRIPTS] * 3)
    options = {"vocab_size": 600} if request.param == "bpe" else {}
    if request.param not in ("bpe", "characters"):
        cache = request.getfixturevalue("shared_data") / "tiktoken_cache"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
            return request.param, build(root / "out", Vocabulary(name=request.param), documents)[0]
    return request.param, build(root / "out", Vocabulary(name=request.param, **options), documents)[0]


def others(name: str, folder: Path) -> dict:
    """Other software's encoders of the same folder, special tokens in text being text, and the official one."""
    from transformers import AutoTokenizer, GPT2TokenizerFast

    saved = HuggingFace.from_file(str(folder / "tokenizer.json"))
    saved.encode_special_tokens = True
    auto = AutoTokenizer.from_pretrained(folder)
    found = {
        "tokenizers": lambda text: saved.encode(text).ids,
        "AutoTokenizer": lambda text: auto(text, split_special_tokens=True)["input_ids"],
    }
    if name in ("bpe", "gpt2"):
        bare = folder.parent / "bare"
        bare.mkdir(exist_ok=True)
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(folder / file, bare / file)
        alone = GPT2TokenizerFast.from_pretrained(bare)
        found["vocab.json and merges.txt"] = lambda text: alone(text, split_special_tokens=True)["input_ids"]
    if name not in ("bpe", "characters"):
        found["OpenAI's"] = tiktoken.get_encoding(name).encode_ordinary
    return found


@pytest.fixture(scope="module")
def readers(made, request):
    """(ours, the others) for one kind of vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        if made[0] not in ("bpe", "characters"):
            patch.setenv("TIKTOKEN_CACHE_DIR", str(request.getfixturevalue("shared_data") / "tiktoken_cache"))
        return Tokenizer.load(made[1]), others(*made)


def differing(readers, texts: list[str]) -> list[tuple[str, str]]:
    ours, theirs = readers
    return [(who, text[:40]) for text in texts for who, encode in theirs.items() if encode(text) != ours.encode(text)]


def test_all_engines_agree_on_odd_texts_and_every_code_point(readers):
    assert differing(readers, ODD) == []
    assert differing(readers, POINTS) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_all_engines_agree_on_any_text_and_decoding_undoes_it(readers, text):
    assert differing(readers, [text]) == []
    assert readers[0].decode(readers[0].encode(text)) == text


def test_transformers_renders_chats_to_the_same_ids_and_mask(made):
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(made[1]), Tokenizer.load(made[1])
    talk = [
        ("system", " Be brief.\n"),
        ("user", SCRIPTS),
        ("assistant", "\n12345 é😀 "),
        ("user", PROSE),
        ("assistant", "ok"),
    ]
    messages = [{"role": role, "content": content} for role, content in talk]
    written = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert (written["input_ids"], written["assistant_masks"]) == render(ours, messages)
    asked = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
    assert asked["input_ids"] == render(ours, messages[:-1], reply=True)[0]


def test_special_tokens_have_the_same_ids_for_transformers_and_eos_ends_a_base_text(made):
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(made[1]), Tokenizer.load(made[1])
    assert {token: theirs.convert_tokens_to_ids(token) for token in ours.specials} == ours.specials
    assert (theirs.eos_token_id, len(theirs)) == (ours.eot, ours.vocab_size)
    assert set(ours.specials) <= set(theirs.all_special_tokens)


def test_a_trained_bpe_has_the_size_asked_for_and_the_same_bytes_each_time(tmp_path):
    documents = corpus(tmp_path / "corpus", *[PROSE + str(n) for n in range(50)], parts=3)
    one, metrics = build(tmp_path / "one", Vocabulary(vocab_size=320), documents)
    two, _ = build(tmp_path / "two", Vocabulary(vocab_size=320), documents)
    assert metrics["data/vocab_size"] == Tokenizer.load(one).vocab_size == 320
    assert all(file.read_bytes() == (two / file.name).read_bytes() for file in one.iterdir() if file.is_file())
    assert metrics["data/bytes_per_token"] > 1.3


def test_a_small_corpus_yields_fewer_tokens_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    _, metrics = build(tmp_path / "out", Vocabulary(), corpus(tmp_path / "corpus", PROSE))
    assert metrics["data/vocab_size"] < 4096
    assert f"{metrics['data/vocab_size']:,.0f} made" in caplog.text


def test_characters_make_each_character_one_token(tmp_path):
    folder, metrics = build(tmp_path / "out", Vocabulary(name="characters"), corpus(tmp_path / "corpus", SCRIPTS, "añ"))
    loaded = Tokenizer.load(folder)
    assert [loaded.decode([token]) for token in loaded.encode(SCRIPTS)] == list(SCRIPTS)
    assert loaded.decode(loaded.encode("unseen: ж漢")) == "unseen: ж漢"
    assert metrics["data/vocab_size"] == loaded.vocab_size


def test_a_ref_takes_the_same_ids_from_a_folder_or_from_inside_a_checkpoint(tmp_path):
    documents = corpus(tmp_path / "corpus", PROSE)
    first, _ = build(tmp_path / "tokenizer", Vocabulary(vocab_size=300), documents)
    other = corpus(tmp_path / "other", "something else")
    for number, ref in enumerate([first, tmp_path]):  # tmp_path holds a folder `tokenizer`, as a checkpoint does
        config = Vocabulary(ref=str(ref))
        again, _ = build(tmp_path / f"again{number}", config, other)
        assert all(file.read_bytes() == (again / file.name).read_bytes() for file in first.iterdir() if file.is_file())
        assert config.outside() == {"ref": Tokenizer.load(first).digest}, "content in the key, not the path"


def test_a_ref_to_the_store_finds_the_artifact(tmp_path):
    from tasks.stage import Session, using
    from tasks.store import Store

    documents = corpus(tmp_path / "corpus", PROSE)
    with using(Session(Store(tmp_path / "store"))):
        earlier = tokenizer(Vocabulary(vocab_size=300), documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLOOM_STORE", str(tmp_path / "store"))
        again, _ = build(tmp_path / "again", Vocabulary(ref=str(earlier)), documents)
        with pytest.raises(UserError, match="tokenizer:0000"):
            Vocabulary(ref="tokenizer:0000").outside()
    assert Tokenizer.load(again).digest == Tokenizer.load(earlier.path).digest


def test_settings_without_effect_are_refused_and_defaults_are_not():
    for wrong in (
        {"name": "gpt2", "vocab_size": 999},
        {"ref": "x", "sample_mb": 5},
        {"name": "characters", "sample_mb": 5},
    ):
        with pytest.raises(ValueError, match="for a bpe trained here"):
            Vocabulary(**wrong)
    everything = Vocabulary(name="gpt2").model_dump()
    assert Vocabulary(**everything) == Vocabulary(name="gpt2"), "what Prefect writes out in full loads again"


@pytest.mark.parametrize("count", [4, 400])
def test_a_capped_sample_is_near_its_size_and_leaves_validation_out(tmp_path, count):
    from tasks.shard import lot

    texts = [f"{n} " + PROSE * (40_000 // count) for n in range(count)]
    texts_of = sample(corpus(tmp_path / "corpus", *texts, parts=2), 2)
    taken = {text.split()[0]: len(text.encode()) for text in texts_of}
    assert 1.4e6 < sum(taken.values()) < 2.6e6, f"{sum(taken.values()):,} bytes of 2 MB asked for"
    if count == 400:
        assert min(lot(f"d{n}") for n in taken) > 0.05, "documents of the lowest lots are for validation"


def test_a_vocabulary_out_of_reach_says_which_file_to_put_where(tmp_path, monkeypatch):
    import requests

    def no_network(*_, **__):
        raise requests.ConnectionError("no route")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(requests, "get", no_network)
    for name, file in (
        ("gpt2", "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4"),
        ("o200k_base", "fb374d419588a4632f3f557e76b4b70aebbca790"),
    ):
        with pytest.raises(UserError, match=rf"{name}.*save it as {tmp_path}/cache/{file}"):
            build(tmp_path / name, Vocabulary(name=name), corpus(tmp_path / f"{name}-corpus", PROSE))


@pytest.mark.shared
def test_don_quijote_trains_a_bpe_and_comes_back_whole(tmp_path, shared_data):
    text = (shared_data / "quijote.txt").read_text(encoding="utf-8")
    folder, metrics = build(tmp_path / "out", Vocabulary(), corpus(tmp_path / "corpus", text))
    loaded = Tokenizer.load(folder)
    assert loaded.vocab_size == 4096
    assert loaded.decode(loaded.encode(text)) == text
    assert metrics["data/bytes_per_token"] > 3.3, f"{metrics['data/bytes_per_token']:.2f} bytes per token"
