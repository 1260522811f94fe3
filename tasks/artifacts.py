"""The types that travel between stages: each a small frozen record that points at one immutable folder.

In: nothing. Out: `Config`, the base of every stage's settings, and the artifact types of the DAG.
The folder's layout for each type stands in docs/formats.md; the record beside it is `artifact.json` (tasks/store.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from gpt.tokenizer import Tokenizer as LoadedTokenizer

Metrics = dict[str, float]
"""What a stage returns: MLflow metric names to values; the first one is the stage's headline."""


class Config(BaseModel):
    """Settings of one stage: frozen, every field with a default and a sentence under it, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def outside(self) -> dict[str, Any]:
        """Content identity (JSON) of each field that names something outside the recipe: files, hubs, other models.

        It stands in the key in place of the field's value, so that content enters the key and a path never does.
        """
        return {}

    def refs(self) -> dict[str, str]:
        """The REF or folder in each field that names another artifact, from which this one is made too."""
        return {}


class Artifact(BaseModel):
    """One whole, verified folder: where it is, what its content is called, what was measured while it was made."""

    model_config = ConfigDict(frozen=True)

    stage: str
    key: str
    digest: str
    path: Path
    metrics: Metrics = {}

    def __str__(self) -> str:
        return f"{self.stage}:{self.key}"


class Corpus(Artifact):
    """Documents: `part-*.parquet` with id, text, source; `dropped/part-*.parquet` says what went and why."""

    @property
    def parts(self) -> list[Path]:
        """The parquet parts in their order."""
        return sorted(self.path.glob("part-*.parquet"))


class Classifier(Artifact):
    """A model of toxic lines: `model.safetensors`, `model.json`."""


class Tokenizer(Artifact):
    """The Hugging Face file set plus `ranks.tiktoken`."""

    def load(self) -> "LoadedTokenizer":
        """The tokenizer, ready to encode."""
        from gpt.tokenizer import Tokenizer as Loaded

        return Loaded.load(self.path)


class Shards(Artifact):
    """One stream of tokens per split: `train-*.bin`, `val-*.bin` (llm.c), `index.parquet`, `shards.json`."""

    def files(self, split: str) -> list[Path]:
        """The split's `.bin` files in stream order."""
        return sorted(self.path.glob(f"{split}-*.bin"))


class Chats(Artifact):
    """Conversations: `chats.parquet`, `ids.npy`, `mask.npy`, `offsets.npy`, `split.npy`, `heldout.json`."""


class Pairs(Artifact):
    """Preferences: `pairs.parquet` (TRL's columns) and, two rows a pair, the arrays that Chats has."""


class Prompts(Artifact):
    """Problems with checkable answers: `prompts.jsonl`."""


class Checkpoint(Artifact):
    """A model that can go on training: weights, config, optimiser, state, and its tokenizer's files."""


class Scores(Artifact):
    """What the models scored: `scores.json`, `samples.txt`."""


class Release(Artifact):
    """The Hugging Face folder that other software loads, with its model card."""
