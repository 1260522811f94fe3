"""Personal data: what is found and what is not, and that the kernel overlooks nothing that the patterns see."""

from collections.abc import Collection

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.text.pii import KINDS, documents_of, replaced, spans
from tasks.text.scan import plain
from tests.tasks.text import twins

SOME = st.one_of(st.just(set(KINDS)), st.sets(st.sampled_from(KINDS), min_size=1))


def found(*texts: str, kinds: Collection[str] = KINDS) -> list[tuple[str, str]]:
    column = plain(pa.chunked_array([list(texts)], pa.string()))
    there = spans(column, kinds)
    return [(KINDS[span.kind], column.data[span.start : span.stop].tobytes().decode()) for span in there]


def test_a_chain_of_a_hundred_thousand_groups_is_walked_once():
    assert found("0." * 100_000 + "8.8.8.8", kinds=["ip"]) == [("ip", "8.8.8.8")]
    assert found("7." * 50_000 + "12.345.678-Z", kinds=["dni"]) == []
    assert found("12.345.678-Z", kinds=["dni"]) == [("dni", "12.345.678-Z")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to ada.lovelace+x@mail.example.co.uk, please.", ["ada.lovelace+x@mail.example.co.uk"]),
        ("é.x@b.org and <x@b-c.org>, y@[8.8.8.8]", ["x@b.org", "x@b-c.org", "y@[8.8.8.8]"]),
        ("@decorator, a@b, user@localhost, x @ y.org, 10@", []),
        ("8.8.8.8, 10.0.0.1, 192.168.1.1, 127.0.0.1, 999.1.1.1, 1.2.3", ["8.8.8.8"]),
        ("Call +34 612 345 678 or 0034 912 34 56 78 or +1 (415) 555-2671.",
         ["+34 612 345 678", "0034 912 34 56 78", "+1 (415) 555-2671"]),
        ("Tel. 612345678, 91 234 56 78, 912 345 678, 958-123-456",
         ["612345678", "91 234 56 78", "912 345 678", "958-123-456"]),
        ("712.345.678 euros, 1612345678, 612345678901, 0.612345678, x612345678, 2024-11-21, 123 456 789", []),
        ("12 345 678 912 345 678, +0123456789, 612345678-9", []),
        ("ES91 2100 0418 4502 0005 1332 and GB29NWBK60161331926819.",
         ["ES91 2100 0418 4502 0005 1332", "GB29NWBK60161331926819"]),
        ("ES92 2100 0418 4502 0005 1332, GB29NWBK601613319268190, XX29NWBK60161331926819", []),
        ("DNI 12345678Z, 12.345.678-Z, 12345678-z; NIE X1234567L, x X-1234567-L",
         ["12345678Z", "12.345.678-Z", "12345678-z", "X1234567L", "X-1234567-L"]),
        ("12345678A, X1234567A, A12345678Z, 123456789Z, 12345678Zz", []),
    ],
)  # fmt: skip
def test_what_is_personal_and_what_only_looks_so(text, expected):
    assert [what for _, what in found(text)] == expected


PIECES = [
    *("a@b.org", "@", ".", "x", " ", "-", "+", "8.8.8.8", "1.2.3.4.5", "01.1.1.1", "+34 ", "612345678", "612 345 678"),
    *(
        "0034",
        "91 234 56 78",
        "ES91 2100 0418 4502 0005 1332",
        "GB29NWBK60161331926819",
        "12345678Z",
        "12.345.678",
        "Z",
    ),
    *("X1234567L", "é", "日", "(", ")", "\n", ",", "7", "00", "[", "]", "_", "A", "AB", "12"),
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join), st.text(max_size=3), SOME)
def test_the_kernel_overlooks_nothing_that_the_patterns_see(text, before, kinds):
    assert found(before + text, kinds=kinds) == twins.personal(before + text, kinds)


@settings(max_examples=200, deadline=None)
@given(st.text("0123456789 .-+()@aZX", max_size=60), SOME)
def test_nor_among_digits_and_marks(text, kinds):
    assert found(text, kinds=kinds) == twins.personal(text, kinds)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), min_size=1, max_size=5))
def test_placeholders_stand_where_it_was_and_all_else_stays(texts):
    column = plain(pa.chunked_array([texts], pa.string()))
    there = spans(column)
    edited = replaced(column, there)
    edited.validate(full=True)
    expected = [text.encode() for text in texts]
    for document, span in zip(documents_of(column, there)[::-1], there[::-1], strict=True):
        start, text = int(column.ends_D1[document]), expected[document]
        mark = f"[{KINDS[span.kind].upper()}]".encode()
        expected[document] = text[: span.start - start] + mark + text[span.stop - start :]
    assert edited.to_pylist() == [text.decode() for text in expected]


def test_a_slice_of_a_column_and_only_some_kinds():
    column = pa.chunked_array([["a@b.org", "é 8.8.8.8 c@d.org", "x"]]).slice(1)
    there = spans(plain(column), ("ip",))
    assert replaced(plain(column), there).to_pylist() == ["é [IP] c@d.org", "x"]
    assert documents_of(plain(column), there).tolist() == [0]
