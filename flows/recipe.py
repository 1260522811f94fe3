"""Recipes from YAML: presets by name or files by path, with `--set a.b=c` on top.

In: a name or path and overrides. Out: a checked `Recipe`, or a UserError that names key, value, rule and way out.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flows.pipeline import Recipe
from gpt.errors import UserError

PRESETS = Path(__file__).parent / "presets"


def presets() -> dict[str, str]:
    """Name -> first comment line of every preset that ships with gptloom."""
    return {path.stem: path.read_text().splitlines()[0].lstrip("# ") for path in sorted(PRESETS.glob("*.yaml"))}


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a preset or a YAML file, with overrides `key.path=value` (values are YAML)."""
    given = yaml_of(name)
    for override in overrides:
        put(given, override)
    given.setdefault("name", Path(name).stem)
    return checked(given, name)


def checked(given: dict[str, Any], name: str) -> Recipe:
    """The recipe of a mapping; UserError, which calls it `name`, for the first thing wrong with it."""
    try:
        return Recipe(**given)
    except ValidationError as error:
        raise UserError(explain(error, name)) from error


def yaml_of(name: str) -> dict[str, Any]:
    """The mapping in a recipe file or preset."""
    path = PRESETS / f"{name}.yaml" if name in presets() else Path(name)
    try:
        given = yaml.safe_load(path.read_text()) or {}
    except OSError as error:  # not there, a folder, unreadable, or no name that a file could have
        near, *_ = difflib.get_close_matches(name, presets(), 1) or ["demo"]
        problem = f"{name}: neither a preset nor a file; did you mean {near}? `gptloom presets` lists them"
        raise UserError(problem) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name} line {mark.line + 1}" if mark else name
        raise UserError(f"{where}: not valid YAML; a recipe is `stage: {{field: value}}` lines") from error
    if not isinstance(given, dict):
        raise UserError(f"{name}: a recipe is a mapping of stages to settings, this is a {type(given).__name__}")
    if odd := [key for key in given if not isinstance(key, str)]:
        raise UserError(f"{name}: the key {odd[0]!r} is no text; quote it (on, off, yes, no are truth values in YAML)")
    return given


def put(given: dict[str, Any], override: str) -> None:
    """Apply one `a.b.c=value`."""
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: must read key.path=value, for example --set pretrain.steps=100")
    *parents, last = path.split(".")
    at = given
    for parent in parents:
        at[parent] = at.get(parent) or {}
        at = at[parent]
        if not isinstance(at, dict):
            raise UserError(f"--set {override}: {parent} holds {at!r} and has no fields; set it as a whole")
    try:
        at[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not valid YAML; quote it") from error


def explain(error: ValidationError, name: str) -> str:
    """One line for the first problem: key, value, rule, way out."""
    first = error.errors()[0]
    *parents, last = [str(part) for part in first["loc"] if not str(part)[:1].isupper()] or ["recipe"]
    key = ".".join([*parents, last])
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        close = difflib.get_close_matches(last, fields_at(parents), 1)
        way = f"did you mean {close[0]}?" if close else f"known here: {', '.join(fields_at(parents))}"
        return f"{name}: {key} is no setting; {way}"
    if first["type"] == "value_error":
        return f"{name}: {rule}"
    return f"{name}: {key}={first['input']!r} does not fit: {rule}; `gptloom show {name}` prints every default"


def fields_at(path: Sequence[str]) -> list[str]:
    """The settings that exist under a key path."""
    at: Any = Recipe()
    for name in path:
        at = getattr(at, name, None)
    return list(getattr(at, "__dict__", {}))
