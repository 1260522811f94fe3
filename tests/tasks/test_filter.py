"""Filter: bad documents go with their reason, books and documentation stay, and a stage that drops most stops."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt.errors import UserError
from tasks.artifacts import Corpus
from tasks.corpus import DOCUMENT
from tasks.filter import Filter, filter
from tasks.ingest import Ingest, ingest
from tasks.runtime import Runtime, running

GOOD = " ".join(
    f"The {name} sat on the mat and looked at the dog that was in the garden." for name in ("cat", "fox", "hen", "owl")
)
SHORT = "This is not the document that was asked for."


def corpus(folder: Path, *parts: list[str]) -> Corpus:
    folder.mkdir()
    for number, texts in enumerate(parts):
        rows = [{"id": f"{number}-{n}", "text": text, "source": "s", "url": f"u{n}"} for n, text in enumerate(texts)]
        pq.write_table(
            pa.Table.from_pylist(rows, DOCUMENT.append(pa.field("url", pa.string()))),
            folder / f"part-{number:05d}.parquet",
        )
    return Corpus(stage="ingest", key="k", digest="d", path=folder)


def run(tmp_path: Path, given: Corpus, **config: object) -> tuple[list[dict], list[dict], dict]:
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    out.mkdir()
    metrics = filter.fn(out, Filter(**config), given)
    kept, dropped = (
        [row for path in sorted(folder.glob("part-*")) for row in pq.read_table(path).to_pylist()]
        for folder in (out, out / "dropped")
    )
    return kept, dropped, metrics


def test_dropped_rows_tell_rule_number_and_excerpt_and_kept_rows_are_whole(tmp_path):
    given = corpus(tmp_path / "in", [GOOD, SHORT], [GOOD + " Again."])
    kept, dropped, metrics = run(tmp_path, given)
    assert [(row["id"], row["url"]) for row in kept] == [("0-0", "u0"), ("1-0", "u0")]
    told = {"id": "0-1", "reason": "min_words", "score": 9.0, "detail": SHORT, "kept_id": None, "kept": None}
    assert dropped == [told]
    assert next(iter(metrics)) == "data/documents"
    expected = {"data/documents": 2, "data/dropped": 1, "data/dropped_share": 1 / 3, "data/dropped/min_words": 1}
    assert {name: metrics[name] for name in expected} == expected
    report = tmp_path / "out0" / "report"
    assert json.loads((report / "examples.json").read_text()) == dropped
    table = json.loads((report / "dropped.table.json").read_text())  # the form that MLflow shows
    assert dict(zip(table["columns"], table["data"][0], strict=True)) == dropped[0]


def test_every_rule_has_its_sample_drawn_from_all_parts(tmp_path):
    wordy = [GOOD + f" {n}" + " #word" * 80 for n in range(30)]
    given = corpus(tmp_path / "in", *[[GOOD, GOOD, SHORT, SHORT, text] for text in wordy])
    run(tmp_path, given, max_drop_share=0.7)
    examples = json.loads((tmp_path / "out0" / "report" / "examples.json").read_text())
    by_rule = {rule: [row["id"] for row in examples if row["reason"] == rule] for rule in ("min_words", "max_symbols")}
    assert all(5 <= len(ids) <= 10 and len({each.split("-")[0] for each in ids}) > 3 for ids in by_rule.values()), (
        by_rule
    )


def test_a_stage_that_would_drop_most_stops_and_names_the_rule_and_the_ways_out(tmp_path):
    given = corpus(tmp_path / "in", [GOOD, SHORT, SHORT])
    with pytest.raises(UserError) as error:
        run(tmp_path, given)
    for told in ("2 of 3", "67%", "min_words 2", "filter.min_words", "filter.max_drop_share"):
        assert told in str(error.value)
    assert len(run(tmp_path, given, max_drop_share=0.7)[0]) == 1
    assert len(run(tmp_path, given, min_words=None)[0]) == 3


def test_a_part_whose_documents_all_go_is_empty_and_can_be_read_on(tmp_path):
    kept, *_ = run(tmp_path, corpus(tmp_path / "in", [SHORT], [GOOD, GOOD]))
    assert len(kept) == 2
    again = Corpus(stage="filter", key="k", digest="d", path=tmp_path / "out0")
    assert run(tmp_path, again)[0] == kept


def test_word_lists_enter_the_key_by_content_and_bad_ones_are_told(tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    for path in (first, second):
        path.write_text("garden\nowl\n")
    assert lists(first).outside() == lists(second).outside() != Filter().outside()
    given = corpus(tmp_path / "in", [GOOD, GOOD.replace("garden", "yard").replace("owl", "hawk")])
    kept, dropped, metrics = run(tmp_path, given, toxicity={"wordlists": [str(first)]})
    assert (len(kept), dropped, metrics["data/listed_documents"]) == (2, [], 1), "a list alone drops nothing"
    shown = json.loads((tmp_path / "out0" / "report" / "toxicity.table.json").read_text())
    assert [row[:3] for row in shown["data"]] == [["listed", "0-0", 0]]
    first.write_bytes(b"caf\xe9")
    for bad in (first, tmp_path / "none.txt"):
        with pytest.raises(UserError, match=r"filter\.toxicity\.wordlists"):
            lists(bad).outside()


def lists(path: Path) -> Filter:
    return Filter(toxicity={"wordlists": [str(path)]})


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path):
    given = corpus(tmp_path / "in", [GOOD * 20 + f"me@host{n}.org" for n in range(80)])
    table = pq.read_table(given.parts[0])
    pq.write_table(table, given.parts[0], row_group_size=10)
    found = []
    for workers in (1, 2):
        with running("filter", Runtime(workers=workers)):
            run(tmp_path, given, max_dup_line_chars=None, pii="replace")
        found.append((tmp_path / f"out{workers - 1}" / "part-00000.parquet").read_bytes())
    assert found[0] == found[1]


def test_real_books_and_documentation_pass(tmp_path, shared_data):
    (tmp_path / "in").mkdir()
    sources = (str(shared_data / "quijote.txt"), str(shared_data / "tinyshakespeare.txt"), "pydocs")
    with running("ingest", Runtime(workers=1)):
        ingest.fn(tmp_path / "in", Ingest(sources=sources, max_mb=0.5))
    kept, dropped, metrics = run(tmp_path, Corpus(stage="ingest", key="k", digest="d", path=tmp_path / "in"))
    assert {row["source"] for row in kept[:2]}.isdisjoint({row["id"][:16] for row in dropped})
    assert metrics["data/dropped_share"] < 0.2, metrics
    assert len(dropped) > 5


def test_don_quijote_keeps_nearly_all_of_its_paragraphs_by_the_spanish_rules(tmp_path, shared_data):
    paragraphs = [p for p in (shared_data / "quijote.txt").read_text().split("\n\n") if p.strip()]
    kept, _, metrics = run(tmp_path, corpus(tmp_path / "in", paragraphs))
    assert len(kept) >= 0.95 * len(paragraphs), metrics
    long = [p for p in paragraphs if len(p.split()) >= 50]
    kept, dropped, _ = run(tmp_path, corpus(tmp_path / "long", long), languages=("es",), min_language_score=0.84)
    assert len(kept) >= 0.999 * len(long), [row["reason"] for row in dropped]


def test_other_languages_go_where_some_are_named_and_are_counted(tmp_path):
    french = "Le chat est assis sur le tapis et regarde le chien qui dort dans le jardin de la maison. " * 5
    spanish = "El gato está sentado en la alfombra y mira al perro que duerme en el jardín de la casa. " * 5
    given = corpus(tmp_path / "in", [GOOD, french, spanish, "1 2 3 " * 90])
    settings = {"max_dup_line_chars": None, "min_alphabetic": None}
    kept, dropped, metrics = run(tmp_path, given, languages=("en", "es"), **settings)
    assert [row["id"] for row in kept] == ["0-0", "0-2"]
    assert [row["reason"] for row in dropped] == ["languages", "languages"]
    assert metrics["data/language/fr"] == 1
    with pytest.raises(ValueError, match="xx"):
        Filter(languages=("en", "xx"))


def test_personal_data_gives_way_to_placeholders_and_is_counted(tmp_path):
    secret = GOOD + " Write to ada@example.com from 8.8.8.8."
    given = corpus(tmp_path / "in", [GOOD, secret, GOOD + " Again."])
    kept, dropped, metrics = run(tmp_path, given, pii="replace")
    assert [row["text"] for row in kept] == [GOOD, GOOD + " Write to [EMAIL] from [IP].", GOOD + " Again."]
    assert (dropped, metrics["data/pii/email"], metrics["data/pii/ip"]) == ([], 1, 1)
    kept, *_ = run(tmp_path, given, pii="replace", pii_kinds=("ip",))
    assert "ada@example.com from [IP]" in kept[1]["text"]
    assert run(tmp_path, given)[0][1]["text"] == secret, "off by default"
    kept, dropped, _ = run(tmp_path, corpus(tmp_path / "drop", [GOOD, "ada@example.com " + secret]), pii="drop")
    assert [(row["id"], row["reason"], row["score"]) for row in dropped] == [("0-1", "pii", 3.0)]
    assert dropped[0]["detail"].startswith("[EMAIL] The cat"), "nor is it in the excerpt"


def test_documents_with_evaluation_texts_go_and_the_texts_enter_the_key_by_content(tmp_path):
    exam = "Which of the rivers that flow through the old town of Prague is the longest one in Bohemia?"
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (one, two):
        path.write_text(json.dumps({"question": exam, "choices": ["Vltava", "Elbe"]}) + "\n")
    given = corpus(tmp_path / "in", [GOOD, GOOD + " " + exam.upper()])
    assert run(tmp_path, given)[1] == []
    _, dropped, _ = run(tmp_path, given, evaluation=(str(one),))
    assert [(row["id"], row["reason"], row["score"]) for row in dropped] == [("0-1", "max_overlap", 6.0)]
    assert len(run(tmp_path, given, evaluation=(str(one),), max_overlap=6)[0]) == 2
    assert Filter(evaluation=(str(one),)).outside() == Filter(evaluation=(str(two),)).outside()
    two.write_text('"too short"')
    for bad, told in ((two, "13 words"), (tmp_path / "none.txt", "none.txt")):
        with pytest.raises(UserError, match=r"filter\.evaluation.*" + told):
            Filter(evaluation=(str(bad),)).outside() and run(tmp_path, given, evaluation=(str(bad),))
