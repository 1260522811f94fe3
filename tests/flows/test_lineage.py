"""The picture of a lineage: whole, safe in a sandbox, and drawn so that nothing lies on anything else."""

import re
from html import unescape
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.lineage import as_text, from_store, write_page
from gpt.errors import UserError
from tasks.lineage import EARLIER, changed, nodes, page
from tasks.picture import WIDTH, Box, arrange, draw
from tasks.store import Store

SOURCES = [
    {"path": f"/data/<odd> name {n:02}.jsonl", "kind": "file", "digest": f"{n:064x}", "documents": n, "bytes": 9}
    for n in range(1, 21)
]


def node(artifact, *inputs, sources=(), config=None):
    facts = {"run": "", "created": "2026-11-21T10:54:05+00:00", "seconds": 3.0, "headline": "data/documents 6,564"}
    digest = f"{sum(map(ord, artifact)):064x}"
    made = {"config": config or {}, "sources": list(sources), "inputs": list(inputs)}
    return {"artifact": artifact, "digest": digest, **facts, **made}


@pytest.fixture
def tree():
    ingest = node("ingest:1111222233334444", sources=SOURCES, config={"max_mb": "3.5", "text_column": "text"})
    words = node("tokenizer:aaaa", ingest)
    model = node("pretrain:bbbb", node("shard:cccc", ingest, words), words)
    return node("export:dddd", model, node("evaluate:eeee", model, words), words)


def test_the_page_names_every_artifact_and_every_source_file_whole(tree):
    text = unescape(page(tree))
    for each in nodes(tree).values():
        assert each["artifact"] in text
        assert each["digest"] in text
    for source in SOURCES:
        assert source["path"] in text
        assert source["digest"] in text
    assert "20 sources with 210 documents" in text
    assert "… and 9 more, in the table" in text
    assert text.index("ingest:1111") < text.rindex("export:dddd")


def test_the_page_needs_no_script_no_link_and_nothing_from_outside(tree):
    text = page(tree)
    assert not re.findall(r"<script|<a |<img|<link|<iframe|href=|src=|url\(h|@import| on\w+=", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}, "but for SVG's own name"
    assert "<odd>" not in text, "a file's name is text"
    assert "prefers-color-scheme: dark" in text


def test_settings_that_differ_from_the_defaults_stand_on_the_page(tree):
    ingest = next(iter(nodes(tree).values()))
    assert changed(ingest) == {"max_mb": "3.5"}
    assert "max_mb = 3.5" in page(tree)


def test_no_text_leaves_its_box(tree):
    drawn = re.search(r"<svg.*</svg>", page(tree), re.DOTALL)
    assert drawn
    svg = "{http://www.w3.org/2000/svg}"
    for group in ElementTree.fromstring(drawn[0]).iter(f"{svg}g"):  # noqa: S314 our own
        frame = group.find(f"{svg}rect")
        assert frame is not None
        end = float(frame.get("x", "")) + float(frame.get("width", ""))
        for text in group.iter(f"{svg}text"):
            assert float(text.get("x", "")) + 7.3 * len(text.text or "") <= end, text.text


graphs = st.integers(1, 14).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.sets(
            st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).filter(lambda e: e[0] < e[1]), max_size=40
        ),
        st.lists(st.integers(0, 15), min_size=size, max_size=size),
    )
)


@given(graphs)
def test_boxes_never_touch_and_lines_pass_beside_them(graph):
    size, edges, cells = graph
    boxes = {str(n): Box(["line"] * 4, "data", cells=["cell"] * cells[n]) for n in range(size)}
    layers, lines = arrange(boxes, [(str(a), str(b)) for a, b in sorted(edges)])
    for layer in layers:
        for one, other in combinations(layer.values(), 2):
            apart = abs(one.x - other.x) - (one.width + other.width) / 2
            assert apart > 0, f"{one} and {other} overlap by {-apart:.1f}"
    for upper, lower in pairwise(layers):
        assert max(b.y + b.height for b in upper.values()) < min(b.y for b in lower.values())
    assert all(below.top > above.top for above, below, _, _ in lines)
    drawn = {name for layer in layers for name, box in layer.items() if box.kind != "lane"}
    assert drawn == {str(n) for n in range(size)}


def test_one_box_and_an_edge_over_many_layers_are_drawn():
    assert draw({"only": Box(["it"], "data")}, []).count("<g ") == 1
    chain = {str(n): Box([str(n)], "data") for n in range(5)}
    edges = [(str(n), str(n + 1)) for n in range(4)] + [("0", "4")]
    layers, _ = arrange(dict(chain), edges)
    assert [len(layer) for layer in layers] == [1, 2, 2, 2, 1], "the long edge keeps a lane in each layer it passes"
    assert draw(chain, edges).count("marker-end") == 5
    assert all(box.width <= WIDTH for layer in layers for box in layer.values())


def test_an_input_that_is_gone_from_the_store_is_a_leaf_that_says_so(tmp_path):
    def fill(work):
        (work / "file").write_text("x")
        gone = {"model": {"stage": "rl", "key": "ffff", "digest": "9" * 64}}
        facts = {"created": "2026-11-21T10:54:05+00:00", "seconds": 1.0, "config": {}, "tracking": {}, "metrics": []}
        return {"type": "Release", "inputs": gone, **facts}

    store = Store(tmp_path / "store")
    store.build("export", "0123", fill)
    tree = from_store(store, "export")
    assert [above["artifact"] for above in tree["inputs"]] == ["rl:ffff"]
    assert "its own lineage is not told here" in page(tree)
    assert "rl:ffff  999999999999" in as_text(tree)


def test_a_chain_of_models_that_went_on_from_each_other_is_followed_a_few_models_back(tmp_path):
    facts = {"created": "2026-11-21T10:54:05+00:00", "seconds": 1.0, "config": {}, "tracking": {}, "metrics": []}
    store, before = Store(tmp_path / "store"), {}
    for night in range(12):

        def fill(work, night=night, before=before):
            (work / "model").write_text(str(night))
            return {"type": "Checkpoint", "inputs": {}, "origins": before, **facts}

        made = store.build("pretrain", f"{night:04}", fill)[1]
        before = {"init": {name: made[name] for name in ("stage", "key", "digest")}}
    known = [each["artifact"] for each in nodes(from_store(store, "pretrain:0011")).values()]
    assert known == [f"pretrain:{night:04}" for night in range(11 - EARLIER - 1, 12)]


def test_a_page_that_cannot_be_written_is_one_clear_line(tmp_path, tree):
    with pytest.raises(UserError, match=r"--html .*: No such file or directory; name a file in a folder of your own"):
        write_page(tmp_path / "none" / "page.html", tree)
    write_page(tmp_path / "page.html", tree)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page(tree)
