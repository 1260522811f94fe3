"""Where an artifact comes from: its tree down to the source files, and that tree as one page with a picture.

In: manifests of the store, or a like tree from MLflow (flows/lineage.py). Out: a tree `{"artifact", "digest", "run",
"created", "seconds", "headline", "config", "sources", "inputs": [tree, ...]}`, and HTML (lineage.html) without scripts,
links or outside resources, because MLflow shows it in a sandbox. Method: tasks/picture.py draws.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from html import escape
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any

from tasks.artifacts import Artifact
from tasks.manifest import DAMAGE, MANIFEST, read_manifest
from tasks.measures import headline
from tasks.picture import Box, Edge, draw
from tasks.stage import Stage
from tasks.tracking import flat

Tree = dict[str, Any]
SHOWN = 12
"""Sources of a stage that the picture names; the table has all."""
EARLIER = 5
"""Models to follow that each went on from the one before; a refresh every night makes a chain without end."""
KINDS = dict.fromkeys(("pretrain", "sft", "prefer", "rl", "export"), "model") | {"evaluate": "scores"}
"""What a stage's box is coloured as; the others make data."""


# -- the tree ---------------------------------------------------------------------------------------------------------


def leaf(artifact: str, digest: str) -> Tree:
    """An artifact of which nothing more is known."""
    blank = {"run": "", "created": "", "seconds": 0.0, "headline": "", "config": {}, "sources": [], "inputs": []}
    return {"artifact": artifact, "digest": digest, **blank}


def grown(store: Path, manifest: Mapping[str, Any], folder: Path, seen: dict[str, Tree], left: int = EARLIER) -> Tree:
    """The tree of one build; what is gone from the store is a leaf."""
    own = f"{manifest['stage']}:{manifest['key']}"
    if (at := f"{own}@{manifest['digest']}") not in seen:
        file = folder / "logs" / "sources.json"
        noted = json.loads(file.read_text()) if file.exists() else []
        facts = {field: manifest[field] for field in ("created", "seconds")}
        facts |= {"run": manifest["tracking"].get("run", ""), "config": flat(manifest["config"])}
        facts["headline"] = headline(dict(manifest["metrics"]))
        above = (manifest["inputs"] | manifest.get("origins", {})).values()
        facts["inputs"] = [found(store, seen, left - (a["stage"] == manifest["stage"]), **a) for a in above]
        seen[at] = leaf(own, manifest["digest"]) | facts | {"sources": [source(s) for s in noted]}
    return seen[at]


def found(store: Path, seen: dict[str, Tree], left: int, stage: str, key: str, digest: str) -> Tree:
    """The tree of an artifact by its name and content; a leaf where none are left to follow."""
    for file in sorted((store / stage / key).glob(f"[0-9]*/{MANIFEST}")) if left >= 0 else ():
        with suppress(*DAMAGE):
            if (manifest := read_manifest(file.parent))["digest"] == digest:
                return grown(store, manifest, file.parent, seen, left)
    return leaf(f"{stage}:{key}", digest)


def becoming(out: Path, inputs: list[Artifact]) -> Tree:
    """The tree of the artifact whose work folder this is: it has no digest yet."""
    seen, store = dict[str, Tree](), out.parents[2]
    tree = leaf(f"{out.parents[1].name}:{out.parent.name}", "")
    return tree | {"inputs": [found(store, seen, EARLIER, a.stage, a.key, a.digest) for a in inputs]}


def source(noted: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a source file."""
    return {name: noted[name] for name in ("path", "kind", "digest", "documents", "bytes")}


def nodes(tree: Tree) -> dict[str, Tree]:
    """Every artifact of a tree once, each after its inputs, the model last."""
    seen: dict[str, Tree] = {}

    def visit(node: Tree) -> None:
        if name(node) not in seen:
            for above in node["inputs"]:
                visit(above)
            seen[name(node)] = node

    visit(tree)
    return seen


def name(node: Tree) -> str:
    """An artifact's name with its content, which a forced rebuild may change."""
    return f"{node['artifact']}@{node['digest']}"


# -- the page ---------------------------------------------------------------------------------------------------------


def page(tree: Tree) -> str:
    """The whole lineage as one HTML file."""
    known = nodes(tree)
    sources = [(node, s) for node in known.values() for s in node["sources"]]
    files = {(s["path"], s["digest"]): s["documents"] for _, s in sources}  # an earlier model may have read them too
    facts = {"name": tree["artifact"], "artifacts": str(len(known)), "files": count(len(files), "source")}
    facts["documents"] = count(sum(files.values()), "document")
    facts = {name: escape(value) for name, value in facts.items()} | {"picture": picture(known)}
    facts["stages"] = "\n".join(map(stage_row, known.values()))
    facts["sources"] = "\n".join(source_row(node, s) for node, s in sources)
    return Template(Path(__file__).with_name("lineage.html").read_text(encoding="utf-8")).substitute(facts)


def picture(known: Mapping[str, Tree]) -> str:
    """The tree as boxes and lines, the source files at the top, the model at the bottom."""
    boxes: dict[str, Box] = {}
    edges: dict[Edge, None] = {}
    for at, node in known.items():
        if node["sources"]:
            boxes[f"sources of {at}"] = frame(node["sources"])
            edges[f"sources of {at}", at] = None
        boxes[at] = box(node)
        edges |= {(name(above), at): None for above in node["inputs"]}
    return draw(boxes, list(edges))


def frame(files: list[dict[str, Any]]) -> Box:
    """The source files of a stage, each by its name and content."""
    more = [f"… and {len(files) - SHOWN + 1:,} more, in the table"] if len(files) > SHOWN else []
    shown = files[: SHOWN - len(more)]
    cells = [f"{fit(Path(s['path']).name or s['kind'], 19)} {s['digest'][:12]}" for s in shown]
    return Box([count(len(files), "source")], "source", "name, sha256", cells + more)


def box(node: Tree) -> Box:
    """An artifact's box: stage, headline, key and content, when and how long."""
    stage, _, key = node["artifact"].partition(":")
    made = f"made {when(node)} in {node['seconds']:,.0f} s" if node["created"] else "its own lineage is not told here"
    lines = [stage, fit(node["headline"], 33), f"{key} = {node['digest'][:12]}", made]
    lines = lines if node["digest"] else [stage, key, "this release"]
    return Box([line for line in lines if line], KINDS.get(stage, "data"), f"{stage}: {purpose(stage)}")


def stage_row(node: Tree) -> str:
    """An artifact as a row of the table."""
    stage = node["artifact"].partition(":")[0]
    settings = ", ".join(f"{name} = {value}" for name, value in changed(node).items()) or "all default"
    made = f"{when(node)}, {node['seconds']:,.1f} s" if node["created"] else ""
    cells = [f"<b>{escape(stage)}</b><br>{escape(purpose(stage))}", f"<code>{escape(node['artifact'])}</code>"]
    cells += [f"<code>{escape(node['digest'])}</code>", escape(made), escape(node["headline"]).replace("/", "/<wbr>")]
    cells.append(f"<code>{escape(settings)}</code>" if changed(node) else settings)
    return row(cells)


def source_row(node: Tree, noted: Mapping[str, Any]) -> str:
    """A source file as a row of the table."""
    cells = [escape(noted["path"]), noted["kind"], f"<code>{escape(noted['digest'])}</code>"]
    return row([*cells, f"{noted['documents']:,}", f"{noted['bytes']:,}", escape(node["artifact"])])


def row(cells: list[str]) -> str:
    """A row of HTML."""
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def stage_of(name: str) -> Stage | None:
    """The stage of that name, which stands in the module of that name."""
    with suppress(ImportError):
        return getattr(import_module(f"tasks.{name}"), name, None)
    return None


def purpose(name: str) -> str:
    """A stage's one sentence."""
    return stage.doc.splitlines()[0] if isinstance(stage := stage_of(name), Stage) else ""


def changed(node: Tree) -> dict[str, str]:
    """The settings that are not their defaults."""
    stage = stage_of(node["artifact"].partition(":")[0])
    usual = flat(stage.config_type().model_dump(mode="json")) if isinstance(stage, Stage) else {}
    return {name: value for name, value in node["config"].items() if usual.get(name) != value}


def when(node: Tree) -> str:
    """The minute it was made, in UTC."""
    return node["created"][:16].replace("T", " ")


def fit(text: str, most: int) -> str:
    """The text, shortened in its middle."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - most // 2 - 1) :]}"


def count(number: int, noun: str) -> str:
    """As in `1 source file`, `6,564 documents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
