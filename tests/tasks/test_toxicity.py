"""Training on labelled texts and clean lines: what a user gets, and what the model can do on real data."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt.errors import UserError
from tasks import pydocs
from tasks.artifacts import Corpus
from tasks.corpus import DOCUMENT
from tasks.text.scan import lowered
from tasks.text.toxicity import load, phrases, rate
from tasks.toxicity import Toxicity, auc, is_toxic, limit, parts_of, toxicity
from tasks.wordlists import SHIPPED, entries

SENTENCES = Path(__file__).parent / "text" / "sentences"
CALM = ["the garden", "a quiet river", "my old bicycle", "this library", "our green kitchen"]
RUDE = ["you zork", "what a zorking blunk", "zorks and blunks", "blunk off"]


def corpus(folder: Path, rows: list[dict[str, str]]) -> Corpus:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, DOCUMENT), folder / "part-00000.parquet")
    return Corpus(stage="ingest", key="k", digest="d", path=folder)


def calm(folder: Path) -> Corpus:
    lines = [f"{CALM[n % 5]} and {CALM[n % 3]} number {n} of {n * 7 % 11}" for n in range(3_000)]
    return corpus(
        folder,
        [
            {"id": str(n), "text": "\n".join(lines[n::100]), "source": f"s{n % 12}"} for n in range(100)
        ],
    )  # fmt: skip


def labelled(path: Path, toxic: object = "bad", clean: object = "clean") -> str:
    rows = [{"text": f"{RUDE[n % 4]} {n} {CALM[n % 5]}", "label": toxic, "lang": "en"} for n in range(200)]
    rows += [{"text": f"{CALM[n % 5]} {n}", "label": clean, "lang": "es" if n % 2 else "en"} for n in range(200)]
    rows += [{"text": f"zork {n} es", "label": toxic, "lang": "es"} for n in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def run(tmp_path: Path, given: Corpus, **settings: object) -> tuple[Path, dict[str, float]]:
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    out.mkdir()
    return out, toxicity.fn(out, Toxicity(**{"false_positives": 0.01} | settings), given)


def test_a_model_tells_what_it_can_do_and_training_twice_gives_the_same_bytes(tmp_path):
    data, given = labelled(tmp_path / "data.jsonl"), calm(tmp_path / "in")
    out, figures = run(tmp_path, given, data=(data,))
    assert figures["eval/auc"] > 0.99
    assert figures["eval/recall"] > 0.9
    assert figures["eval/false_positives"] <= 0.06
    assert {"eval/en_auc", "eval/es_recall"} <= figures.keys()
    model = load(out)
    rating = rate(lowered(pa.chunked_array([["you zork\n\nthe garden"]])), model, phrases(()))
    assert rating.flagged(model).tolist() == [True, False, False]
    again, _ = run(tmp_path, given, data=(data,))
    for name in ("model.safetensors", "model.json", "report/clean_lines.table.json"):
        assert (out / name).read_bytes() == (again / name).read_bytes()
    table = json.loads((out / "report" / "clean_lines.table.json").read_text())
    assert table["columns"] == ["score", "flagged", "source", "line"]
    assert [row[0] for row in table["data"]] == sorted((row[0] for row in table["data"]), reverse=True)


def test_labels_are_numbers_or_words_and_a_file_without_them_is_told(tmp_path):
    assert [is_toxic(label, ("neither",)) for label in (1, 0, 0.7, True, False, "0", "1", "Neither ", "hate")] == [
        True, False, True, True, False, False, True, False, True,
    ]  # fmt: skip
    assert [is_toxic(label, ("2",)) for label in (0, 1, 2, "2")] == [True, True, False, False]
    assert not is_toxic("neither", ("Neither",))
    given = calm(tmp_path / "in")
    numbers = labelled(tmp_path / "numbers.jsonl", 1, 0)
    words = labelled(tmp_path / "words.jsonl")
    assert run(tmp_path, given, data=(numbers,))[1] == run(tmp_path, given, data=(words,))[1]
    with pytest.raises(UserError, match="mean the same"):
        run(tmp_path, given, data=(labelled(tmp_path / "odd.jsonl", "bad", "fine"),))
    with pytest.raises(UserError, match="no column 'tag'"):
        run(tmp_path, given, data=(words,), label_column="tag")
    with pytest.raises(UserError, match="names nothing to read"):
        Toxicity().outside()


def test_csv_and_jsonl_of_the_same_rows_give_the_same_model(tmp_path):
    words = labelled(tmp_path / "words.jsonl")
    rows = [json.loads(line) for line in Path(words).read_text().splitlines()]
    table = "\n".join(["text,label,lang", *(",".join(row.values()) for row in rows)])
    (tmp_path / "words.csv").write_text(table)
    given = calm(tmp_path / "in")
    folders = [run(tmp_path, given, data=(str(path),))[0] for path in (words, tmp_path / "words.csv")]
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1


def test_thresholds_keep_both_promises_and_too_few_clean_lines_are_told():
    draw = np.random.default_rng(0)
    clean, hard, config = (
        draw.normal(size=10_000),
        draw.normal(size=1_000),
        Toxicity(false_positives=0.001, false_positives_labelled=0.03),
    )
    strict, loose = limit(clean, hard - 9, config)
    assert ((clean >= strict).sum(), (clean >= loose).sum()) == (10, 30)
    strict, loose = limit(clean - 9, hard, config)
    assert ((hard >= strict).sum(), (hard >= loose).sum()) == (30, 90)
    assert limit(clean, hard[:0], config)[0] == limit(clean, hard - 9, config)[0]
    with pytest.raises(UserError, match="which takes 1,000"):
        limit(clean[:900], hard, config)


def test_a_source_is_on_one_side_only():
    groups = [f"g{n % 17}" for n in range(3_000)]
    parts = parts_of(groups)
    assert all(len({part for part, g in zip(parts, groups, strict=True) if g == group}) == 1 for group in set(groups))
    assert 0.5 < (parts == "train").mean() < 0.7
    assert {"train", "limit", "test"} == set(parts)


def test_auc_is_that_of_all_pairs():
    scores, toxic = np.array([0.1, 0.5, 0.5, 0.9, 0.3]), np.array([False, True, False, True, True])
    pairs = [(a > b) + (a == b) / 2 for a in scores[toxic] for b in scores[~toxic]]
    assert auc(scores, toxic) == pytest.approx(np.mean(pairs))


def test_lists_that_ship_hold_no_neutral_word_and_a_list_of_ones_own_is_taken_as_it_is(tmp_path):
    assert {"vagina", "sexo", "intercourse"}.isdisjoint(entry.lower() for entry in entries(SHIPPED))
    assert len(entries(SHIPPED)) > 350
    (tmp_path / "own.txt").write_text("vagina\nzork\n")
    assert entries((str(tmp_path / "own.txt"),)) == ["vagina", "zork"]
    with pytest.raises(UserError, match="en, es"):
        entries((str(tmp_path / "none.txt"),))


def test_the_sentences_are_as_many_as_promised_and_the_insults_hold_no_listed_word():
    read = {path.stem: path.read_text().splitlines() for path in SENTENCES.glob("*.txt")}
    assert {name: len(set(lines)) for name, lines in read.items()} == {
        "identity": 209,
        "medical": 223,
        "paraphrases": 45,
    }
    listed = {entry.lower() for name in SHIPPED for entry in entries((name,))}
    found = [line for line in read["paraphrases"] if listed & set(re.findall(r"\w+", line.lower()))]
    assert not found


@pytest.mark.shared
def test_on_real_tweets_and_documentation_the_model_is_as_good_as_promised(tmp_path, shared_data):
    rows = [{"id": str(n), **row} for n, row in enumerate(pydocs.documents(6.0))]
    held_out = [row for row in rows if row["source"].startswith("pandas")]
    given = corpus(tmp_path / "in", [row for row in rows if row not in held_out])
    data = (str(shared_data / "toxicity_train.csv"),)
    out, figures = run(tmp_path, given, data=data, false_positives=Toxicity().false_positives)
    model, listed = load(out), phrases(entries(SHIPPED))

    def flagged(lines: list[str]) -> float:
        lines = [line for line in lines if any(map(str.isalpha, line))]
        return float(rate(lowered(pa.chunked_array([lines])), model, listed).flagged(model).mean())

    clean = flagged([line for row in held_out for line in row["text"].split("\n")])
    rates = {path.stem: flagged(path.read_text().splitlines()) for path in SENTENCES.glob("*.txt")}
    told = f"{figures}, pandas {clean:.4%}, {rates}"
    assert held_out, told
    assert figures["eval/auc"] >= 0.98, told
    assert figures["eval/recall"] >= 0.9, told
    assert clean <= 0.001, told
    assert rates["identity"] <= 0.02, told
    assert rates["medical"] <= 0.05, told
