"""The tokenizer stage: what it trains, takes, samples and refuses."""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt.errors import UserError
from gpt.tokenizer import Tokenizer
from tasks import openai
from tasks.artifacts import Corpus
from tasks.fertility import kind
from tasks.tokenizer import Vocabulary, sample, tokenizer

PROSE = (
    "It's the 1st of 12,345 loops; we'll weave what they've spun. ¿Qué más, señor?\nfor i in range(10):\n\tprint(i)\n"
)
SCRIPTS = "日本語のテキスト Привет, мир! γειά σου שלום مرحبا १२३४५ ١٢٣٤٥ ๑๒๓๔๕ 12345678 Ⅻ²³ ﬁ ß ſ İı K"


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


def test_a_trained_bpe_has_the_size_asked_for_and_the_same_bytes_each_time(tmp_path):
    documents = corpus(tmp_path / "corpus", *[PROSE + str(n) for n in range(50)], parts=3)
    one, metrics = build(tmp_path / "one", Vocabulary(vocab_size=320), documents)
    two, _ = build(tmp_path / "two", Vocabulary(vocab_size=320), documents)
    assert metrics["data/vocab_size"] == Tokenizer.load(one).vocab_size == 320
    assert all(file.read_bytes() == (two / file.name).read_bytes() for file in one.iterdir() if file.is_file())
    assert metrics["data/bytes_per_token"] > 1.3


@pytest.mark.parametrize("pattern", ["cl100k_base", "o200k_base"])
def test_a_bpe_can_be_trained_on_other_patterns(tmp_path, pattern):
    documents = corpus(tmp_path / "corpus", *["In 20261121 they'VE  paid 20261121 SomeName\r\n\r\n"] * 20)
    folder, _ = build(tmp_path / "out", Vocabulary(vocab_size=300, pattern=pattern), documents)
    loaded = Tokenizer.load(folder)
    assert loaded.pattern == pattern
    assert max(len(token) for token in loaded.ranks if token.isdigit()) == 3, "no more than three digits together"


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
        {"name": "o200k_base", "pattern": "o200k_base"},
    ):
        with pytest.raises(ValueError, match="for a bpe trained here"):
            Vocabulary(**wrong)
    everything = Vocabulary(name="gpt2").model_dump()
    assert Vocabulary(**everything) == Vocabulary(name="gpt2"), "what Prefect writes out in full loads again"


@pytest.mark.parametrize("count", [4, 400])
def test_a_capped_sample_is_near_its_size_and_leaves_validation_out(tmp_path, count):
    from tasks.shard import lot

    texts = [f"{n} " + PROSE * (40_000 // count) + f" {n}" for n in range(count)]
    documents = corpus(tmp_path / "corpus", *texts, parts=2)
    texts_of, unseen = sample(documents, 2), set(sample(documents, 2, unseen=True))
    taken = {text.split()[0]: len(text.encode()) for text in texts_of}
    assert 1.4e6 < sum(taken.values()) < 2.6e6, f"{sum(taken.values()):,} bytes of 2 MB asked for"
    ends = {text.split()[-1] for text in unseen}
    assert ends == set(taken) if count == 4 else not ends & set(taken), "of four documents the other end is read"
    if count == 400:
        assert min(lot(f"d{n}") for n in taken) > 0.05, "documents of the lowest lots are for validation"


@pytest.mark.shared
def test_don_quijote_trains_a_bpe_and_comes_back_whole(tmp_path, shared_data):
    text = (shared_data / "quijote.txt").read_text(encoding="utf-8")
    folder, metrics = build(tmp_path / "out", Vocabulary(), corpus(tmp_path / "corpus", text))
    loaded = Tokenizer.load(folder)
    assert loaded.vocab_size == 4096
    assert loaded.decode(loaded.encode(text)) == text
    assert metrics["data/bytes_per_token"] > 3.3, f"{metrics['data/bytes_per_token']:.2f} bytes per token"


@pytest.mark.shared
def test_the_report_tells_how_well_it_fits_each_script_and_code_beside_openai(tmp_path, shared_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
    latin = (shared_data / "quijote.txt").read_text(encoding="utf-8")[:60_000].split("\n\n")
    others = ["Привет, мир, как дела?"] * 9 + ["漢字文本處理"] * 9 + ["def f(x):\n    return [x_ for x_ in g(x)]\n"] * 9
    folder, metrics = build(tmp_path / "out", Vocabulary(vocab_size=1000), corpus(tmp_path / "corpus", *latin, *others))
    rows = json.loads((folder / "report" / "fertility.json").read_text())
    by = {(row["text"], row["vocabulary"]): row for row in rows}
    assert {text for text, _ in by} >= {"all", "Latin", "Cyrillic", "Han", "code"}
    assert {who for _, who in by} == {"this", "gpt2", "cl100k_base", "o200k_base"}
    assert by["all", "this"]["bytes_per_token"] == metrics["data/bytes_per_token"]
    assert by["Cyrillic", "o200k_base"]["bytes_per_token"] > 2 * by["Cyrillic", "gpt2"]["bytes_per_token"]
    assert by["Han", "gpt2"]["tokens_per_word"] is None, "its words are not told apart by blanks"
    assert (folder / "report" / "fertility.png").read_bytes().startswith(b"\x89PNG")
    assert "| Cyrillic | 9 |" in (folder / "report" / "fertility.md").read_text()
    assert len(metrics) <= 8


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("¿Qué más, señor? (dijo)", "Latin"),
        ("γειά σου", "Greek"),
        ("שלום", "Hebrew"),
        ("ひらがなと漢字", "Kana"),
        ("int main(void) { return 0; }", "code"),
        ("12 + 12", "none"),
    ],
)
def test_a_text_is_code_or_of_the_script_of_most_of_its_letters(text, told):
    assert kind(text) == told


def test_the_report_never_goes_to_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(openai, "_download", lambda url: pytest.fail(url))
    folder, _ = build(tmp_path / "out", Vocabulary(vocab_size=300), corpus(tmp_path / "corpus", PROSE))
    rows = json.loads((folder / "report" / "fertility.json").read_text())
    assert {row["vocabulary"] for row in rows} == {"this"}
