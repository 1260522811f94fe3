"""The built-in corpus: the documentation that every Python installation carries, read without importing any of it.

In: the .py files of the standard library and of the installed distributions. Out: documents, each a module's or a
class's docstrings in readable form, and the documented functions of the standard library. Method: `ast`, fixed order.
"""

import ast
import hashlib
import platform
import sysconfig
import textwrap
import threading
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path, PurePath

from tasks.workers import spread

FIRST = ("numpy", "pandas", "networkx", "scikit-learn", "scipy", "matplotlib")  # much good prose; others follow by name
SKIPPED = {"test", "tests", "idle_test", "conftest.py", "lib2to3", "turtledemo", "site-packages", "dist-packages"}
PIECE_CHARS, SHORTEST_CHARS = 1_200, 200
QUIET = threading.Lock()  # what is ignored is ignored in all threads

Module = tuple[str, str, Path]
"""Distribution as name==version, dotted module name, file."""
Member = tuple[str, str, str]
"""A function's qualified name, signature and docstring."""


def fingerprint(max_mb: float) -> str:
    """sha256 over the Python version, the installed distributions (not gptloom) and the cap; 2 ms, no file is read."""
    installed = f"{platform.python_version()} {max_mb:g} {sorted(_distributions())}"
    return hashlib.sha256(installed.encode()).hexdigest()


def documents(max_mb: float) -> Iterator[dict[str, str]]:
    """Yield {text, source} up to `max_mb` MB of text; source is like numpy==2.1.0, the standard library comes first."""
    left_bytes = max_mb * 1e6
    for (source, *_), described in spread(_described, _modules(), gil=True):
        for text in (text for heading, doc, members in described for text in _pack(heading, doc, members)):
            left_bytes -= len(text.encode(errors="replace"))
            if left_bytes < 0:
                return
            yield {"text": text, "source": source}


def functions() -> Iterator[Member]:
    """Yield (qualified name, signature, first paragraph) of the standard library's public, well described functions."""
    for _, described in spread(_described, _standard_library(), gil=True):
        for name, signature, doc in (member for _, _, members in described for member in members):
            first = " ".join(doc.partition("\n\n")[0].split())
            if "._" not in f".{name}" and 40 <= len(first) <= 300 and first.endswith("."):
                yield name, signature, first


def _distributions() -> dict[str, Path]:
    """name==version to its metadata folder, of this environment whatever the working folder."""
    sites = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    folders = sorted(folder for site in sites for folder in Path(site).glob("*.dist-info"))
    named = ((*folder.stem.lower().replace("_", "-").rpartition("-"), folder) for folder in folders)
    return {f"{name}=={version}": folder for name, _, version, folder in named if name != "gptloom"}


def _modules() -> Iterator[Module]:
    yield from _standard_library()
    rank, found = {name: place for place, name in enumerate(FIRST)}, _distributions()
    for source in sorted(found, key=lambda source: (rank.get(source.partition("==")[0], len(FIRST)), source)):
        yield from _in_order(source, found[source].parent, metadata.Distribution.at(found[source]).files or ())


def _standard_library() -> Iterator[Module]:
    root = Path(sysconfig.get_path("stdlib"))
    return _in_order(f"python=={platform.python_version()}", root, (p.relative_to(root) for p in root.rglob("*.py")))


def _in_order(source: str, root: Path, files: Iterable[PurePath]) -> Iterator[Module]:
    for file in sorted(file for file in files if file.suffix == ".py" and SKIPPED.isdisjoint(file.parts)):
        yield source, ".".join(part for part in file.with_suffix("").parts if part != "__init__"), root / file


def _described(module: Module) -> list[tuple[str, str, list[Member]]]:
    """(heading, docstring, documented functions) of the module and of each of its classes."""
    _, name, path = module
    with QUIET, warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's strings
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            return []
    if name == "pydoc_data.topics":
        topics = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
        return [("", topic, []) for topic in topics.values()]
    return [_describe(name, node) for node in (tree, *tree.body) if isinstance(node, ast.Module | ast.ClassDef)]


def _describe(heading: str, node: ast.Module | ast.ClassDef) -> tuple[str, str, list[Member]]:
    prefix = heading
    if isinstance(node, ast.ClassDef):
        prefix = f"{heading}.{node.name}"
        heading = f"class {prefix}({', '.join(map(ast.unparse, node.bases))})".removesuffix("()")
    functions = [f for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)]
    members = [(f"{prefix}.{f.name}", _signature(f), doc) for f in functions if (doc := ast.get_docstring(f))]
    return heading, ast.get_docstring(node) or "", members


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return f"({ast.unparse(function.args)})" + (f" -> {ast.unparse(function.returns)}" if function.returns else "")


def _pack(heading: str, doc: str, members: list[Member]) -> list[str]:
    """Join paragraphs and members into documents of about PIECE_CHARS, each under the heading."""
    entries = [f"{name}{signature}\n{textwrap.indent(text, '    ')}" for name, signature, text in members]
    texts = [""]
    for piece in filter(str.strip, [*doc.split("\n\n"), *entries]):
        if texts[-1] and len(texts[-1]) + len(piece) > PIECE_CHARS:
            texts.append("")
        texts[-1] = f"{texts[-1] or heading}\n\n{piece}".strip()
    return [text for text in texts if len(text) >= SHORTEST_CHARS]
