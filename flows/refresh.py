"""Refresh: take in what is new among a recipe's sources, work on that alone, and say what became of it.

In: a recipe whose sources grow, a store. Out: the artifacts that one run over all of the sources would give, a Report.
Method: an artifact is a list of parts keyed by content, so all that a refresh has to do is keep the sources in their
order and the tokenizer as it was. `<store>/refresh/NAME.json` remembers both, and the model to go on from.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from flows.intake import Change, Known, Report, compare, entry, report
from flows.pipeline import Recipe
from flows.run import look, run
from gpt.errors import UserError
from gpt.failpoints import failpoint
from tasks.artifacts import Config
from tasks.files import locked, sync
from tasks.manifest import canonical, read_manifest
from tasks.remote import is_url
from tasks.runtime import say
from tasks.stage import Session
from tasks.store import Store
from tasks.tokenizer import Vocabulary

C = TypeVar("C", bound=Config)
AFTERWARDS = ("chats", "sft", "pairs", "prefer", "prompts", "rl")
"""Stages of which a tokenizer knows nothing, and whose sources may be far away."""


class Trained(Config):
    """The last training on these sources."""

    model: str
    """Its checkpoint, as pretrain:KEY."""
    init: str | None
    """The checkpoint that it went on from."""
    sources: tuple[str, ...]
    """Digests of what it learned from."""


class Memory(Config):
    """What one refresh leaves to the next. Nothing in it tells of time: a refresh done twice leaves the same."""

    asked: tuple[str, ...] = ()
    """What the recipe listed."""
    sources: tuple[Known, ...] = ()
    """In the order of their parts."""
    vocabulary: dict[str, Any] = Field({})
    """What the recipe said of the tokenizer."""
    tokenizer: str = ""
    """The one that was made of it, as tokenizer:KEY."""
    artifacts: dict[str, tuple[str, str]] = Field({})
    """Key and digest of each stage's artifact."""
    trained: Trained | None = None


def refresh(recipe: Recipe, store: Store, train: bool = False) -> Report:
    """Bring a recipe's shards up to date with its sources; with `train` go on training, down to the release.

    A killed refresh costs time only. Of two at once the second waits, and finds nothing new.
    """
    if not re.fullmatch(r"\w[\w.-]{0,79}", recipe.name):
        raise UserError(f"name={recipe.name!r} is to name a file; use letters, digits and . - _, at most 80 of them")
    file = store.root / "refresh" / f"{recipe.name}.json"
    with locked(file.with_suffix(".lock"), f"{recipe.name} is being refreshed by another process; waiting for it"):
        before = recall(file)
        if before.asked and not {*before.asked} & {*asked(recipe)}:
            what = f"name={recipe.name}: this store knows it with other sources ({before.asked[0]}, ...)"
            raise UserError(f"{what}; give this recipe a name of its own, or remove {file}")
        change = compare(before.sources, recipe.ingest.found(note=say))
        session = run(planned(recipe, before, change, store), store, until="" if train else "shard")
        made, known = report(recipe.name, session, change)
        show(made, session)
        remember(file, learned(recipe, before, change, session, known))
    return made


def planned(recipe: Recipe, before: Memory, change: Change, store: Store) -> Recipe:
    """The recipe with its sources one by one, its first tokenizer, and the last model to go on from.

    Where nothing came in, all is done as it was the last time, so that the store has it.
    """
    recipe = _with(recipe, ingest=_with(recipe.ingest, sources=tuple(map(entry, change.sources))))
    if _pins(recipe, before) and _tokenizer(recipe, store) != before.artifacts["tokenizer"][1]:
        recipe = _with(recipe, tokenizer=Vocabulary(ref=before.tokenizer))
    if last := before.trained:
        init = last.init if last.sources == change.digests else last.model
        recipe = _with(recipe, pretrain=_with(recipe.pretrain, init=init))
    return recipe


def asked(recipe: Recipe) -> tuple[str, ...]:
    """What the recipe lists as sources, the same from any working folder."""
    abstract = ("hf:", "pydocs")
    return tuple(e if e.startswith(abstract) or is_url(e) else os.path.abspath(e) for e in recipe.ingest.sources)


def _with(config: C, **fields: Any) -> C:
    return config.model_copy(update=fields)


def _tokenizer(recipe: Recipe, store: Store) -> str:
    """The digest of the tokenizer that the recipe would make by itself, if the store has it already."""
    return look(_with(recipe, **dict.fromkeys(AFTERWARDS)), store).results["tokenizer"].digest


def _pins(recipe: Recipe, before: Memory) -> bool:
    """Whether the recipe still says of its tokenizer what it said when that was made, and names no finished one."""
    return not recipe.tokenizer.ref and recipe.tokenizer.model_dump(mode="json") == before.vocabulary


def learned(recipe: Recipe, before: Memory, change: Change, session: Session, known: list[Known]) -> Memory:
    """What to remember of a refresh that has come to its end."""
    results = {stage: result for stage, result in session.results.items() if result.digest}
    refs = {stage: f"{stage}:{result.key}" for stage, result in results.items()}
    read = read_manifest(Path(results["ingest"].path))["outside"]["sources"]
    if read != [source.identity for source in change.sources]:
        raise UserError(f"{recipe.name}: sources changed between their listing and their reading; refresh again")
    trained = before.trained
    if "pretrain" in results:
        init = read_manifest(Path(results["pretrain"].path))["config"]["init"]
        trained = Trained(model=refs["pretrain"], init=init, sources=change.digests)
    return Memory(
        asked=asked(recipe),
        sources=tuple(known),
        vocabulary=recipe.tokenizer.model_dump(mode="json"),
        tokenizer=before.tokenizer if _pins(recipe, before) else refs["tokenizer"],
        artifacts={stage: (result.key, result.digest) for stage, result in results.items()},
        trained=trained,
    )


def show(made: Report, session: Session) -> None:
    """Put the report among the files of the run's page in MLflow, where a server took the run."""
    if (courier := session.tracker.courier) and session.url:
        with suppress(Exception):  # the server went away, and a report is not worth a failed refresh
            courier.client.log_text(courier.state["runs"][session.tracker.id], made.markdown(), "report/refresh.md")


def recall(file: Path) -> Memory:
    """What the last refresh left; nothing before the first."""
    try:
        return Memory.model_validate_json(file.read_bytes()) if file.exists() else Memory()
    except ValidationError as error:
        what = f"{file} is not what a refresh leaves ({error.errors()[0]['msg']})"
        raise UserError(f"{what}; remove it, and the next refresh counts as the first") from error


def remember(file: Path, memory: Memory) -> None:
    """Put the memory in the place of the former one, whole."""
    fresh = file.with_suffix(".tmp")
    fresh.write_bytes(canonical(memory.model_dump(mode="json")) + b"\n")
    sync(fresh)
    failpoint("refresh written")
    os.replace(fresh, file)
    failpoint("refresh remembered")
    sync(file.parent)
