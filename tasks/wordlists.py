"""What a recipe says of toxic lines, and the lists of unwanted words that it names.

In: `en` and `es` (LDNOOBW, CC BY 4.0: tasks/text/lexicons/README.md), files, URLs. Out: entries, one a line.
"""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gpt.errors import UserError
from tasks.artifacts import Config
from tasks.files import file_digest
from tasks.remote import fetched, is_url
from tasks.store import folder_of

SHIPPED = ("en", "es")
LEXICONS = files("tasks.text") / "lexicons"
MODEL_FILES = ("model.safetensors", "model.json")


class ToxicLines(Config):
    """How toxic lines are found and what becomes of them."""

    model: str | None = None
    """toxicity:KEY or a folder that `gptloom train-toxicity` wrote; null: listed words are counted, nothing goes."""
    action: Literal["tag", "strip", "drop"] = "strip"
    """tag: add columns; strip: take flagged lines out; drop: drop documents with a flagged line."""
    max_share: float = Field(0.2, ge=0, le=1)
    """Strip drops documents with a greater share of flagged lines."""
    judge: str | None = None
    """A text classifier of the Hugging Face hub, or its folder, that must find a flagged line toxic too."""
    wordlists: tuple[str, ...] = ("en", "es")
    """Files or addresses of unwanted words and phrases; en and es ship. They lower the score that flags a line."""

    def folder(self) -> Path | None:
        """Where the model lies."""
        return folder_of(self.model) if self.model else None

    def outside(self) -> dict[str, Any]:
        """The settings, with the model and the lists by content."""
        words = hashlib.sha256("\n".join(entries(self.wordlists)).encode()).hexdigest()
        return self.model_dump(mode="json") | {"model": self._digests(), "judge": self._judge(), "wordlists": words}

    def _judge(self) -> list[str]:
        if not self.judge:
            return []
        from tasks.text.judge import content

        return content(self.judge)

    def _digests(self) -> list[str]:
        if not (folder := self.folder()):
            return []
        try:
            return [file_digest(folder / name) for name in MODEL_FILES]
        except OSError as error:
            what = f"filter.toxicity.model={self.model!r} holds no {' and '.join(MODEL_FILES)}"
            raise UserError(f"{what}; name toxicity:KEY or a folder that `gptloom train-toxicity` made") from error


def entries(names: tuple[str, ...]) -> list[str]:
    """The entries of all lists; from those that ship, neutral words are left out (`vagina`, `sexo`)."""
    return [entry for name in names for entry in (shipped(name) if name in SHIPPED else _own(name))]


def shipped(lang: str) -> list[str]:
    """The entries of a list that ships, without words that are no insult in themselves."""
    known = frozenset(_lines("neutral"))
    return [entry for entry in _lines(lang) if entry.lower() not in known]


def _lines(name: str) -> list[str]:
    return (LEXICONS / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def _own(name: str) -> list[str]:
    """A file or an address."""
    try:
        if is_url(name):
            return next(fetched(name))[1].read_text(encoding="utf-8").splitlines()
        return Path(name).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = f"filter.toxicity.wordlists: {name!r} is no UTF-8 text file ({error})"
        raise UserError(f"{what}; mend it, leave it out, or take one that ships: {', '.join(SHIPPED)}") from error
