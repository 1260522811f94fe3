"""`gptloom lineage, promote, sample, chat`: what works on an artifact, most often a model.

In: a REF. Out: where it comes from, whether it is the champion, what it says.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, echo

from flows.commands.common import Json, Ref, StoreDir, store_at

HtmlFile = Annotated[Path | None, Option("--html", metavar="FILE", help="Write the picture here, as one HTML page.")]
Temperature = Annotated[float, Option(min=0.0, help="0 takes the likeliest token.")]
TopK = Annotated[int, Option(min=0, help="Keep this many tokens; 0 keeps all.")]
TopP = Annotated[float, Option(min=0.0, max=1.0, help="Keep the likeliest tokens of this mass.")]
MinP = Annotated[float, Option(min=0.0, max=1.0, help="Drop what is less than this share as likely as the likeliest.")]
Penalty = Annotated[float, Option(min=0.01, help="Above 1, what was said before becomes less likely.")]
WeightsKind = Annotated[str, Option(help="float32, bfloat16 or int8: fewer bytes a token, for large models on a CPU.")]
System = Annotated[str, Option(help="What the model is told before the conversation.")]


def lineage(ref: Ref = "export", store: StoreDir = None, as_json: Json = False, html: HtmlFile = None) -> None:
    """Where a model or artifact comes from, down to the source files."""
    from flows.lineage import as_text, from_mlflow, from_store, write_page
    from flows.servers import tracking

    tree = from_mlflow(ref, tracking()) if ref.startswith("models:/") else from_store(store_at(store), ref)
    if html:
        write_page(html, tree)
    echo(json.dumps(tree) if as_json else as_text(tree))


def promote(
    ref: Annotated[str, Argument(help="The candidate: an alias or a version.")] = "models:/gptloom@challenger",
    force: Annotated[bool, Option("--force", help="Promote it whatever the comparison says.")] = False,
) -> None:
    """Make a registered model the champion if it is no worse than the one there; exit code 1 if it is held back."""
    from flows.servers import tracking

    uri = tracking()
    from flows.promote import promote as decide

    verdict = decide(ref, uri, force)
    echo(str(verdict))
    raise Exit(0 if verdict.promoted else 1)


def sample(
    ref: Ref = "pretrain",
    start: Annotated[str, Option(help="Text to go on from, or FILE:path of a file with it.")] = "\n",
    num_samples: Annotated[int, Option(min=1)] = 10,
    max_new_tokens: Annotated[int, Option(min=1)] = 500,
    temperature: Temperature = 0.8,
    top_k: TopK = 200,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    stop: Annotated[list[str] | None, Option(help="End a sample before this text; may be repeated.")] = None,
    seed: int = 1337,
    device: str = "auto",
    weights: WeightsKind = "float32",
    store: StoreDir = None,
) -> None:
    """Text from a checkpoint or release, in nanoGPT's form."""
    from flows.lineage import model_folder

    folder = model_folder(store_at(store), ref)
    from gpt.generate import Knobs
    from gpt.generate import sample as texts

    knobs = Knobs(temperature, top_k, top_p, min_p, repetition_penalty)
    for text in texts(folder, start, num_samples, max_new_tokens, *knobs, stop or (), seed, device, weights):
        echo(f"{text}\n{'-' * 15}")


def chat(
    ref: Ref = "export", system: System = "", temperature: Temperature = 0.7, top_k: TopK = 50, top_p: TopP = 1.0,
    min_p: MinP = 0.0, repetition_penalty: Penalty = 1.0, seed: int = 1337, device: str = "auto",
    weights: WeightsKind = "float32", store: StoreDir = None,
) -> None:  # fmt: skip
    """Talk with a chat model; an empty line or Ctrl-D ends it."""
    from flows.lineage import model_folder

    folder = model_folder(store_at(store), ref)
    from gpt.converse import Conversation
    from gpt.generate import Knobs

    knobs = Knobs(temperature, top_k, top_p, min_p, repetition_penalty)
    talk = Conversation(folder, device, system, knobs, seed, weights)
    echo("(an empty line ends the conversation)", err=True)
    with suppress(EOFError, KeyboardInterrupt):
        while text := input("you> ").strip():
            echo("model> ", nl=False)
            talk.say(text, lambda piece: echo(piece, nl=False))
            echo()
