"""The built-in corpus: the documentation that every Python installation carries, read without importing any of it.

In: the .py files of the standard library and of the installed distributions. Out: documents, each a module's or a
class's docstrings in readable form, and the documented functions of the standard library. Method: `ast`, fixed order.
"""

import ast
import hashlib
import platform
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from tasks.workers import spread

FIRST = ("numpy", "pandas", "networkx", "scikit-learn", "scipy", "matplotlib")
"""Distributions with much good prose come before the others, which follow by name."""
SKIPPED = {"test", "tests", "idle_test", "conftest.py", "lib2to3", "turtledemo", "site-packages", "dist-packages"}
PIECE_CHARS = 4_000
SHORTEST_CHARS = 200
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    """One file: `source` is the distribution as name==version."""

    source: str
    name: str
    path: Path


def fingerprint(max_mb: float) -> str:
    """sha256 over the Python version, the installed distributions (not gptloom) and the cap: 5 ms, no file is read."""
    installed = f"{platform.python_version()} {max_mb:g} {sorted(_distributions())}"
    return hashlib.sha256(installed.encode()).hexdigest()


def documents(max_mb: float) -> Iterator[dict[str, str]]:
    """Yield {text, source} up to `max_mb` MB of text; source is like numpy==2.1.0, the standard library comes first."""
    left_bytes = max_mb * 1e6
    for module, texts in spread(_documents, _modules()):
        for text in texts:
            left_bytes -= len(text.encode(errors="replace"))
            if left_bytes < 0:
                return
            yield {"text": text, "source": module.source}


def functions() -> Iterator[tuple[str, str, str]]:
    """Yield (qualified name, signature, first paragraph) of the standard library's public, well described functions."""
    for _, found in spread(_functions, _standard_library()):
        yield from found


def _distributions() -> dict[str, Path]:
    """name==version to its metadata folder, of this environment whatever the working folder."""
    sites = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    found = {}
    for folder in sorted(path for site in sites for path in Path(site).glob("*.dist-info")):
        name, _, version = folder.stem.rpartition("-")
        found[f"{name.lower().replace('_', '-')}=={version}"] = folder
    return {name: folder for name, folder in found.items() if not name.startswith("gptloom==")}


def _modules() -> Iterator[Module]:
    yield from _standard_library()
    distributions = _distributions()
    rank = {name: place for place, name in enumerate(FIRST)}
    for source in sorted(distributions, key=lambda s: (rank.get(s.partition("==")[0], len(FIRST)), s)):
        files = metadata.Distribution.at(distributions[source]).files or []
        for file in sorted(f for f in files if f.suffix == ".py" and SKIPPED.isdisjoint(f.parts)):
            yield Module(source, _dotted(file.with_suffix("").parts), Path(str(file.locate())))


def _standard_library() -> Iterator[Module]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if SKIPPED.isdisjoint(inside.parts):
            yield Module(f"python=={platform.python_version()}", _dotted(inside.with_suffix("").parts), path)


def _dotted(parts: tuple[str, ...]) -> str:
    return ".".join(part for part in parts if part != "__init__")


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's strings
        try:
            return ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            return ast.Module([], [])


def _documents(module: Module) -> list[str]:
    tree = _parse(module.path)
    if module.name == "pydoc_data.topics":
        topics = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
        return [text for topic in topics[0].values() for text in _pack("", topic.split("\n\n"))]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [text for node in (tree, *classes) for text in _describe(module.name, node)]


def _describe(module: str, node: ast.Module | ast.ClassDef) -> list[str]:
    heading, prefix = module, module
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        heading, prefix = f"class {module}.{node.name}({bases})".replace("()", ""), node.name
    members = [(f, ast.get_docstring(f)) for f in node.body if isinstance(f, Function)]
    entries = [f"{prefix}.{f.name}{_signature(f)}\n{textwrap.indent(doc, '    ')}" for f, doc in members if doc]
    return _pack(heading, [*(ast.get_docstring(node) or "").split("\n\n"), *entries])


def _signature(function: Function) -> str:
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"({ast.unparse(function.args)}){returns}"


def _pack(heading: str, pieces: list[str]) -> list[str]:
    """Join pieces into documents of about PIECE_CHARS, each under the heading; what says too little is left out."""
    documents = [[heading] if heading else []]
    for piece in filter(str.strip, pieces):
        if sum(map(len, documents[-1])) > len(heading) and sum(map(len, documents[-1])) + len(piece) > PIECE_CHARS:
            documents.append([heading] if heading else [])
        documents[-1].append(piece)
    return [text for text in map("\n\n".join, documents) if len(text) >= SHORTEST_CHARS]


def _functions(module: Module) -> list[tuple[str, str, str]]:
    tree, found = _parse(module.path), []
    for owner in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
        prefix = f"{module.name}.{owner.name}" if isinstance(owner, ast.ClassDef) else module.name
        for function in (f for f in owner.body if isinstance(f, Function)):
            name = f"{prefix}.{function.name}"
            first = " ".join((ast.get_docstring(function) or "").partition("\n\n")[0].split())
            if "._" not in f".{name}" and 40 <= len(first) <= 300 and first.endswith("."):
                found.append((name, _signature(function), first))
    return found
