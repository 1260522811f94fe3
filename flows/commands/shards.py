"""`gptloom shards ...`: the text behind tokens, and what a shard file holds.

In: a place in the stream, or a file. Out: text, its document, source and row.
"""

import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Typer, echo

from flows.commands.common import StoreDir, store_at

app = Typer(no_args_is_help=True, help="Look into token shards.")


@app.command("show")
def show(offset: int, ref: str = "shard", split: str = "train", width: int = 60, store: StoreDir = None) -> None:
    """The text around a token, its document, source and row."""
    from tasks import shardfiles

    folder, vocabulary = folder_at(ref, store)
    echo(shardfiles.show(folder, split, offset, vocabulary, width))


@app.command("text")
def text(ref: str = "shard", split: str = "train", store: StoreDir = None) -> None:
    """The whole stream as one text, documents separated by <|endoftext|>."""
    from tasks import shardfiles

    folder, vocabulary = folder_at(ref, store)
    sys.stdout.writelines(shardfiles.text(folder, split, vocabulary))


@app.command("inspect")
def inspect(file: Annotated[Path, Argument(exists=True, dir_okay=False)]) -> None:
    """The header and counts of one shard file."""
    from tasks import shardfiles

    for name, value in shardfiles.inspect(file).items():
        echo(f"{name:<10} {value}")


def folder_at(ref: str, folder: Path | None):
    """A shards folder and its tokenizer."""
    from gpt.tokenizer import Tokenizer

    store = store_at(folder)
    path, manifest = store.find(ref)
    made_with = manifest["inputs"]["tokenizer"]
    return path, Tokenizer.load(store.find(f"{made_with['stage']}:{made_with['key']}", made_with["digest"])[0])
