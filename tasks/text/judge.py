"""A second opinion on flagged lines: a classifier of the Hugging Face hub, or of a folder, must find them toxic too.

In: lines, its name. Out: whether it agrees, line by line. Only the few lines that the linear model flags are shown to
it, one at a time, so that no line's answer depends on its neighbours. Here alone a data stage imports torch.
"""

from functools import cache
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from tasks.files import file_digest

CLEAN = ("clean", "neutral", "normal", "none", "label_0", "neither", "acceptable", "ok")
KINDS = (".json", ".safetensors", ".txt", ".model")
CHARS, HALF = 2_000, 0.5


def agrees(name: str, lines: list[str]) -> list[bool]:
    """Whether some label other than a clean one has at least half of the probability."""
    return [any(label["score"] >= HALF and _is_toxic(label["label"]) for label in _classifier(name)(line)[0])
            for line in lines]  # fmt: skip


def content(name: str) -> list[str]:
    """What identifies the classifier: the digests of its files."""
    return [file_digest(path) for path in sorted(folder(name).iterdir()) if path.suffix in KINDS]


def folder(name: str) -> Path:
    """Where its files lie: fetched from the hub, unless they are there already."""
    if Path(name).is_dir():
        return Path(name).absolute()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[f"*{kind}" for kind in KINDS]))
    except Exception as error:  # whatever a network and its client can raise
        what = f"filter.toxicity.judge={name!r}: the Hugging Face hub gave {type(error).__name__}"
        raise UserError(f"{what}; check the name and the network, give a folder, or leave it out") from error


@cache
def _classifier(name: str) -> Any:
    from transformers import pipeline

    return pipeline("text-classification", model=str(folder(name)), top_k=None, truncation=True, device="cpu")


def _is_toxic(label: str) -> bool:
    label = label.lower()
    return label not in CLEAN and not label.startswith(("non", "not"))
