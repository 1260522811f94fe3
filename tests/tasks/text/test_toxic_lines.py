"""What becomes of flagged lines: marked, taken out, or documents dropped; and what is kept to be looked at."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus import DOCUMENT
from tasks.text.scan import lowered
from tasks.text.toxic_lines import SAMPLE, TAGS, merged, schema, table_of, tools, treat
from tasks.text.toxicity import BITS, Model, hashed_lines, load
from tasks.wordlists import ToxicLines

NASTY, SHADY = "you NASTY thing", "a shady zork"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that knows two words: `nasty` is toxic, `shady` if a listed word stands beside it."""
    weights = np.zeros(1 << BITS, np.float32)
    for word, weight in (("nasty", 20), ("shady", 3)):
        weights[hashed_lines(lowered(pa.chunked_array([[word]])))[0]] = weight
    at = tmp_path_factory.mktemp("model")
    Model(weights, 0.0, 4.0, 1.0).save(at, {})
    (at / "words.txt").write_text("zork\n")
    assert load(at).threshold == 4.0
    return at


def table(*texts: str) -> pa.Table:
    return pa.Table.from_pylist(
        [{"id": f"d{n}", "text": text, "source": "s"} for n, text in enumerate(texts)], DOCUMENT
    )


def run(folder, *texts: str, model: bool = True, **changed: object):
    asked = ToxicLines(**{"wordlists": (str(folder / "words.txt"),), "model": str(folder) if model else None} | changed)
    return treat(table(*texts), asked, tools(asked))


LONG = "\n".join(["İstanbul is calm", "", f"{NASTY}!", *["Σ a calm line"] * 8])


def test_strip_takes_flagged_lines_out_and_drops_documents_that_are_full_of_them(folder):
    texts = (LONG, NASTY, "calm\n\n", SHADY, "shady alone", "zork alone")
    made, verdicts, counts, _ = run(folder, *texts)
    assert made["text"].to_pylist()[0] == LONG.replace(f"{NASTY}!\n", "")
    assert made["text"].to_pylist()[1:] == list(texts[1:]), "what is dropped and what is clean stay as they were"
    assert [verdict and verdict[:2] for verdict in verdicts] == [
        None, ("toxicity", 1.0), None, ("toxicity", 1.0), None, None,
    ]  # fmt: skip
    assert counts == {"toxic_lines": 3, "toxic_documents": 3, "listed_documents": 2}
    assert made.schema == schema(DOCUMENT, ToxicLines())


def test_tag_adds_columns_and_takes_nothing(folder):
    made, verdicts, *_ = run(folder, LONG, "calm", "...", action="tag")
    assert made.schema == schema(DOCUMENT, ToxicLines(action="tag"))
    assert made["text"].to_pylist() == [LONG, "calm", "..."]
    assert verdicts == [None] * 3
    found = {name: made[name].to_pylist() for name in TAGS}
    assert found["tox_lines"] == [1, 0, 0]
    assert found["tox_frac"] == [pytest.approx(0.1), 0, 0], "a line without words is none"
    assert found["tox_max"] == [pytest.approx(0.998, abs=0.003), 0.5, pytest.approx(0)]


def test_drop_takes_every_document_with_a_flagged_line(folder):
    made, verdicts, *_ = run(folder, LONG, "calm", action="drop")
    assert [bool(verdict) for verdict in verdicts] == [True, False]
    assert made["text"].to_pylist() == [LONG, "calm"]


def test_without_a_model_listed_words_are_counted_and_shown_and_nothing_goes(folder):
    made, verdicts, counts, audit = run(folder, f"zork zork\n{NASTY}", "calm", model=False)
    assert made.equals(table(f"zork zork\n{NASTY}", "calm"))
    assert verdicts == [None, None]
    assert counts == {"listed_documents": 1}
    assert [row[1:] for row in audit["listed"]] == [["d0", 0, 0.0, 2, "zork zork"]]
    shipped = ToxicLines()
    assert treat(table("the vagina and the uterus", "¡maricón!"), shipped, tools(shipped))[2]["listed_documents"] == 1


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([LONG, NASTY, SHADY, "calm", "", "shady"]), min_size=2, max_size=12), st.integers(1, 11)
)
def test_any_cut_of_a_table_gives_the_same_texts_verdicts_and_audit(folder, texts, cut):
    whole, (asked, given) = run(folder, *texts), (ToxicLines(), table(*texts))
    asked = ToxicLines(wordlists=(str(folder / "words.txt"),), model=str(folder))
    halves = [treat(part, asked, tools(asked)) for part in (given[:cut], given[cut:])]
    assert pa.concat_tables([half[0] for half in halves]).equals(whole[0])
    assert halves[0][1] + halves[1][1] == whole[1]
    assert halves[0][2] + halves[1][2] == whole[2] + whole[2].__class__()
    assert merged([halves[1][3], halves[0][3]]) == merged([whole[3]])


def test_the_audit_shows_a_fair_sample_and_the_lines_nearest_below_the_threshold(folder):
    texts = [f"{'nasty' if n % 2 else 'shady'} {n}" + " calm" * (n % 7) for n in range(3 * SAMPLE)]
    *_, audit = run(folder, *texts)
    assert {kind: len(rows) for kind, rows in audit.items()} == {"flagged": SAMPLE, "borderline": SAMPLE}
    shown = [row[3] for row in audit["borderline"]]
    assert shown == sorted(shown, reverse=True)
    assert all("shady" in row[-1] for row in audit["borderline"])
    data = table_of(audit)
    assert len(data["data"]) == 2 * SAMPLE
    assert all(len(row) == len(data["columns"]) for row in data["data"])
