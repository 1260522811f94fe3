"""`gptloom tokenizer ...`: vocabularies that are published elsewhere.

In: a name. Out: the file in tiktoken's cache folder, from which the tokenizer stage and tiktoken itself read it.
"""

from typing import Annotated

from typer import Argument, Typer, echo

app = Typer(no_args_is_help=True, help="Fetch published vocabularies.")
Name = Annotated[str, Argument(metavar="gpt2|cl100k_base|o200k_base", help="Whose file to bring into the cache.")]


@app.command()
def fetch(name: Name) -> None:
    """Bring one of OpenAI's vocabularies into tiktoken's cache, checked by sha256; offline: which file to put where."""
    from tasks import openai

    echo(f"{name} is in {openai.fetch(name)}")


@app.callback()
def tokenizer() -> None:
    """Fetch published vocabularies."""
