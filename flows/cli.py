"""The `gptloom` command: every subcommand in a few lines; heavy imports live inside them so that `--help` is instant.

In: arguments. Out: tables and text on stdout, progress and errors on stderr, exit code 2 for what the user can fix.
"""

import json
import logging
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option, Typer, echo

from flows.vocabularies import app as tokenizer_app
from gpt.errors import UserError

if TYPE_CHECKING:
    from flows.pipeline import Recipe
    from tasks.stage import Session
    from tasks.store import Store

app = Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
            help="Build your own GPT: raw text in, chat model out, one cached DAG.")  # fmt: skip
shards_app = Typer(no_args_is_help=True, help="Look into token shards.")
store_app = Typer(no_args_is_help=True, help="Care for the store.")
for name, group in {"shards": shards_app, "store": store_app, "tokenizer": tokenizer_app}.items():
    app.add_typer(group, name=name)

RecipeName = Annotated[str, Argument(help="A preset's name or a YAML file.", show_default=True)]
Sets = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.")]
StoreDir = Annotated[Path | None, Option("--store", help="The store's folder; default $GPTLOOM_STORE or ./store.")]
Ref = Annotated[str, Argument(help="stage:key, stage (its newest), a path, or models:/gptloom@challenger.")]
HtmlFile = Annotated[Path | None, Option("--html", metavar="FILE", help="Write the picture here, as one HTML page.")]
Json = Annotated[bool, Option("--json", help="Machine-readable output.")]
Whole = Annotated[bool, Option("--config", help="Print the whole recipe, defaults included, as YAML.")]
Gpus = Annotated[str, Option(help="Hardware to plan for, such as 8xH100; default: this machine's CPU.")]
PrefectPort = Annotated[int | None, Option(help="Default 4200, or any free port.")]
MlflowPort = Annotated[int | None, Option(help="Default 5000, or any free port.")]
Temperature = Annotated[float, Option(min=0.0, help="0 takes the likeliest token.")]
TopK = Annotated[int, Option(min=0, help="Keep this many tokens; 0 keeps all.")]
TopP = Annotated[float, Option(min=0.0, max=1.0, help="Keep the likeliest tokens of this mass.")]
MinP = Annotated[float, Option(min=0.0, max=1.0, help="Drop what is less than this share as likely as the likeliest.")]
Penalty = Annotated[float, Option(min=0.01, help="Above 1, what was said before becomes less likely.")]
WeightsKind = Annotated[str, Option(help="float32, bfloat16 or int8: fewer bytes a token, for large models on a CPU.")]
System = Annotated[str, Option(help="What the model is told before the conversation.")]
Yes = Annotated[bool, Option("--yes", help="Really remove; else only list.")]


def main() -> None:
    """Run the command; what stages say goes to stderr with the time of day; a UserError is one line and exit code 2."""
    log, handler = logging.getLogger("gptloom"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        app()
    except UserError as error:
        echo(f"error: {error}", err=True)
        sys.exit(2)


def store_at(folder: Path | None, writes: bool = False) -> "Store":
    """The store a command works on; UserError for one that is no folder, or where nothing can be written."""
    from tasks.store import Store, default_store

    store = Store(folder.absolute()) if folder else default_store()
    try:
        if writes:
            store.root.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=store.root).close()
        elif store.root.exists():
            os.listdir(store.root)
    except OSError as error:
        raise UserError(f"--store {store.root}: {error.strerror}; name a folder of your own") from error
    return store


def recipe_of(name: str, overrides: list[str] | None) -> "Recipe":
    """A command's recipe; the servers come first, because Prefect reads its settings, telemetry's too, on import."""
    from flows.servers import connect

    connect()
    from flows.recipe import load

    return load(name, overrides or [])


@app.command()
def run(
    recipe: RecipeName,
    set_: Sets = None,
    until: Annotated[str, Option(help="Build up to this stage, inclusive.")] = "",
    from_: Annotated[str, Option("--from", help="What lies above this stage must be in the store.")] = "",
    only: Annotated[str, Option(help="This stage alone; what lies above it must be in the store.")] = "",
    force: Annotated[list[str] | None, Option(help="Build this stage anew; repeatable.")] = None,
    store: StoreDir = None,
    as_json: Annotated[bool, Option("--json", help="End with one JSON object on stdout, also on failure.")] = False,
) -> None:
    """Run a recipe: every stage that is not in the store yet."""
    echo(f"gptloom: {recipe}", err=True)
    seen: list[Session] = []
    try:
        loaded, at = recipe_of(recipe, set_), store_at(store, writes=True)
        from flows import run as runner

        runner.run(loaded, at, until=until, start=from_, only=only, force=force or [], report=seen.append)
    finally:
        if as_json:
            problem = sys.exception()
            error = (str(problem) or type(problem).__name__) if problem else None
            blank = {"run": None, "error": error, "stages": []}
            echo(json.dumps(runner.summary(seen[0], error) if seen else blank))
        elif seen:
            echo(table(seen[0]))


def table(session: "Session") -> str:
    """One line a stage: what it did, how long it took, its headline."""
    from tasks.measures import headline

    lines = [f"{'stage':<10} {'cache':<8} {'seconds':>8}  {'artifact':<28} headline"]
    for r in session.results.values():
        artifact = f"{r.stage}:{r.key}" if r.key else "-"
        lines.append(f"{r.stage:<10} {r.cache:<8} {r.seconds:>8.1f}  {artifact:<28} {headline(r.metrics)}")
    return "\n".join([*lines, *([f"MLflow: {session.url}"] if session.url else [])])


@app.command()
def refresh(
    recipe: RecipeName,
    set_: Sets = None,
    store: StoreDir = None,
    train: Annotated[bool, Option("--train", help="Go on training from the last model, down to export.")] = False,
    as_json: Json = False,
) -> None:
    """Take in what is new among a recipe's sources, and only that."""
    echo(f"gptloom: {recipe}", err=True)
    loaded, at = recipe_of(recipe, set_), store_at(store, writes=True)
    from flows.refresh import refresh as take_in

    made = take_in(loaded, at, train)
    echo(json.dumps(made.as_json()) if as_json else "\n".join(made.lines()))


@app.command()
def train_toxicity(
    data: Annotated[list[str], Argument(help="Labelled texts: CSV, parquet, JSONL with text, label and maybe lang.")],
    clean: Annotated[list[str] | None, Option(help="Clean text of your kind: what ingest.sources takes.")] = None,
    set_: Sets = None,
    store: StoreDir = None,
) -> None:
    """Train a model of toxic lines for filter.toxicity.model, and say what it can do."""
    echo(f"gptloom: train-toxicity {' '.join(data)}", err=True)
    at = store_at(store, writes=True)
    from flows.servers import connect

    connect()
    from flows.toxicity import lesson, lines, train

    for line in lines(train(lesson(data, clean or ["pydocs"], set_ or []), at)):
        echo(line)


@app.command()
def demo(store: StoreDir = None) -> None:
    """Servers up, the demo recipe end to end, a sample, a chat answer, where to look, what next."""
    from flows.demo import demo as show

    show(store_at(store, writes=True))


@app.command()
def show(recipe: RecipeName = "demo", set_: Sets = None, store: StoreDir = None, config: Whole = False) -> None:
    """The stages of a recipe and whether the store has them."""
    import yaml

    loaded = recipe_of(recipe, set_)
    from flows.run import look

    whole = yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    echo(whole if config else table(look(loaded, store_at(store))))


@app.command()
def presets() -> None:
    """The recipes that ship with gptloom."""
    from flows.recipe import presets as all_presets

    for name, line in all_presets().items():
        echo(f"{name:<18} {line}")


@app.command()
def plan(recipe: RecipeName = "demo", set_: Sets = None, gpus: Gpus = "") -> None:
    """Tokens, parameters, FLOPs, time and memory before anything runs."""
    loaded = recipe_of(recipe, set_)
    from flows.plan import plan as lines

    for line in lines(loaded, gpus):
        echo(line)


@app.command()
def lineage(ref: Ref = "export", store: StoreDir = None, as_json: Json = False, html: HtmlFile = None) -> None:
    """Where a model or artifact comes from, down to the source files."""
    from flows.lineage import as_text, from_mlflow, from_store, write_page
    from flows.servers import tracking

    tree = from_mlflow(ref, tracking()) if ref.startswith("models:/") else from_store(store_at(store), ref)
    if html:
        write_page(html, tree)
    echo(json.dumps(tree) if as_json else as_text(tree))


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def up(
    prefect_port: PrefectPort = None,
    mlflow_port: MlflowPort = None,
    auth: Annotated[bool | None, Option(help="Ask for user and password on both servers.")] = None,
    database: Annotated[
        str | None,
        Option(envvar="GPTLOOM_DATABASE", help="postgresql://user:password@host:port; default: SQLite files."),
    ] = None,
    store: StoreDir = None,
) -> None:
    """Start Prefect, MLflow and a worker on this machine, and make the deployments; what was said before is kept."""
    from flows.servers import up as start

    folder = store_at(store, writes=True).root if store else None
    start({"prefect": prefect_port, "mlflow": mlflow_port}, auth=auth, database=database, store=folder)
    status()
    echo("stop them with: gptloom down")


@app.command()
def down() -> None:
    """Stop what `up` started."""
    from flows.servers import down as stop

    echo(f"stopped: {', '.join(stop()) or 'nothing was running'}")


@app.command()
def status() -> None:
    """Which services run, whether they answer, and where things are."""
    from flows.servers import HEALTH, known
    from flows.settings import Settings, home

    servers, settings = known(), Settings.load()
    for name in HEALTH:
        server = servers.get(name)
        about = f"{server.url}  {'up' if server.healthy else 'starting'} (pid {server.pid})" if server else "down"
        echo(f"{name:<8} {about}")
    echo(f"store    {settings.store or '-'}\nlogs     {home() / 'logs'}")
    if settings.auth:
        echo(f"login    user and password stand in {home() / 'auth.json'}")


@app.command()
def deploy() -> None:
    """Make the deployments on the Prefect server of PREFECT_API_URL, else on the one that `up` started."""
    from flows.servers import connect

    connect()
    if "PREFECT_API_URL" not in os.environ:
        raise UserError("no Prefect server is known; start it with `gptloom up` or set PREFECT_API_URL")
    from flows.deploy import main as make

    if make():
        raise UserError("Prefect could not make the deployments; its lines above say why")


@app.command()
def sync(store: StoreDir = None) -> None:
    """Deliver to MLflow what an outage or a run without servers held back."""
    from flows.servers import tracking

    uri = tracking()
    from tasks.courier import sync as deliver

    echo(f"{deliver(store_at(store).root, uri)} runs delivered to {uri}")


@store_app.command("ls")
def store_ls(store: StoreDir = None, as_json: Json = False) -> None:
    """Every artifact: when, what, how large (with --json one object a line)."""
    for path, m in store_at(store).entries():
        name, size = f"{m['stage']}:{m['key']}", sum(size for size, _ in m["files"].values())
        row = {"artifact": name, "build": path.name, "created": m["created"], "digest": m["digest"], "bytes": size}
        line = f"{m['created'][:19]}  {name:<28} {path.name}  {size / 1e6:>9.1f} MB"
        echo(json.dumps({**row, "path": str(path)}) if as_json else line)


@store_app.command("verify")
def store_verify(store: StoreDir = None) -> None:
    """Read every byte again; exit code 1 if anything is not what its manifest says."""
    from tasks.manifest import DAMAGE, verify

    bad = 0
    for path in sorted(p.parent for p in store_at(store).root.glob("*/*/*/artifact.json")):
        try:
            verify(path, afresh=True)
        except DAMAGE as error:
            bad += 1
            echo(f"bad: {path}: {error}")
    echo(f"{bad} damaged" if bad else "all artifacts are what their manifests say")
    raise Exit(1 if bad else 0)


@store_app.command("gc")
def store_gc(store: StoreDir = None, yes: Yes = False) -> None:
    """Remove old builds, dead work folders, quarantine and unshared parts."""
    import shutil

    for path in store_at(store).garbage():
        if yes:
            shutil.rmtree(path)
        echo(f"{'removed' if yes else 'would remove'} {path}")
    if not yes:
        echo("add --yes to remove them; no run should be reading them")


@shards_app.command("show")
def shards_show(offset: int, ref: str = "shard", split: str = "train", width: int = 60, store: StoreDir = None) -> None:
    """The text around a token, its document, source and row."""
    from tasks import shardfiles

    folder, vocabulary = shards_at(ref, store)
    echo(shardfiles.show(folder, split, offset, vocabulary, width))


@shards_app.command("text")
def shards_text(ref: str = "shard", split: str = "train", store: StoreDir = None) -> None:
    """The whole stream as one text, documents separated by <|endoftext|>."""
    from tasks import shardfiles

    folder, vocabulary = shards_at(ref, store)
    sys.stdout.writelines(shardfiles.text(folder, split, vocabulary))


@shards_app.command("inspect")
def shards_inspect(file: Annotated[Path, Argument(exists=True, dir_okay=False)]) -> None:
    """The header and counts of one shard file."""
    from tasks import shardfiles

    for name, value in shardfiles.inspect(file).items():
        echo(f"{name:<10} {value}")


def shards_at(ref: str, folder: Path | None):
    """A shards folder and its tokenizer."""
    from gpt.tokenizer import Tokenizer

    store = store_at(folder)
    path, manifest = store.find(ref)
    made_with = manifest["inputs"]["tokenizer"]
    return path, Tokenizer.load(store.find(f"{made_with['stage']}:{made_with['key']}", made_with["digest"])[0])


if __name__ == "__main__":
    main()
