"""The built-in corpus: real documentation, read without importing it, the same each time."""

import inspect
import sys
import textwrap
from itertools import islice

import pytest

from tasks.pydocs import documents, fingerprint, functions
from tasks.runtime import Runtime, running


@pytest.fixture(scope="module")
def docs():
    return list(documents(0.3))


def test_the_cap_holds_and_is_nearly_used(docs):
    size = sum(len(document["text"].encode(errors="replace")) for document in docs)
    assert 290_000 < size <= 300_000, f"{size:,} bytes"


def test_documents_are_the_same_for_any_number_of_workers(docs):
    with running("ingest", Runtime(workers=1)):
        assert list(documents(0.3)) == docs


def test_documents_hold_docstrings_under_their_names(docs):
    text = "\n".join(document["text"] for document in docs)
    assert textwrap.indent(inspect.getdoc(__import__("abc").abstractmethod).split("\n")[0], "    ") in text
    assert "abc.abstractmethod(funcobj)" in text
    assert {document["source"].partition("==")[0] for document in docs} == {"python"}
    assert min(len(document["text"]) for document in docs) >= 200


def test_functions_agree_with_inspect():
    found = {name: (signature, doc) for name, signature, doc in functions()}
    assert found["textwrap.dedent"] == ("(text)", "Remove any common leading whitespace from every line in `text`.")
    assert found["shutil.which"][0] == str(inspect.signature(__import__("shutil").which)).replace(
        "mode=1", "mode=os.F_OK | os.X_OK"
    )
    assert len(found) > 1_000, f"only {len(found)} functions"
    assert not [name for name in found if "._" in name]


def test_nothing_is_imported():
    before = set(sys.modules)
    with running("ingest", Runtime(workers=1)):
        list(islice(documents(1), 50))
    assert not {name for name in set(sys.modules) - before if "." not in name}


def test_the_fingerprint_holds_the_distributions_but_not_gptloom(monkeypatch):
    from tasks import pydocs

    installed = pydocs._distributions()
    assert "numpy" in {name.partition("==")[0] for name in installed}
    assert "gptloom" not in {name.partition("==")[0] for name in installed}
    before = fingerprint(8)
    monkeypatch.setattr(pydocs, "_distributions", lambda: {**installed, "new==1.0": None})
    assert fingerprint(8) != before
