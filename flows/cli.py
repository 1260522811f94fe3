"""The `gptloom` command: every subcommand in a few lines; heavy imports live inside them so that `--help` is instant.

In: arguments. Out: tables and text on stdout, progress and errors on stderr, exit code 2 for what the user can fix.
"""

import json as json_module
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt.errors import UserError

if TYPE_CHECKING:
    from tasks.stage import Session
    from tasks.store import Store

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Build your own GPT: raw text in, chat model out, one cached DAG.")  # fmt: skip
shards_app = typer.Typer(no_args_is_help=True, help="Look into token shards.")
store_app = typer.Typer(no_args_is_help=True, help="Care for the store.")
app.add_typer(shards_app, name="shards")
app.add_typer(store_app, name="store")

RecipeName = Annotated[str, typer.Argument(help="A preset's name or a YAML file.", show_default=True)]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.")]
StoreDir = Annotated[
    Path | None, typer.Option("--store", help="The store's folder; default $GPTLOOM_STORE or ./store.")
]
Ref = Annotated[str, typer.Argument(help="stage:key, stage (its newest), a path, or models:/gptloom@challenger.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def main() -> None:
    """Run the command; a UserError is one line and exit code 2."""
    talk()
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def talk() -> None:
    """Lines of the stages on stderr, with the time of day."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("gptloom")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def store_at(folder: Path | None) -> "Store":
    """The store a command works on."""
    from tasks.store import Store, default_store

    return Store(folder.absolute()) if folder else default_store()


@app.command()
def run(
    recipe: RecipeName,
    set_: Sets = None,
    until: Annotated[str, typer.Option(help="Build up to this stage, inclusive.")] = "",
    from_: Annotated[str, typer.Option("--from", help="What lies above this stage must be in the store.")] = "",
    only: Annotated[str, typer.Option(help="This stage alone; what lies above it must be in the store.")] = "",
    force: Annotated[list[str] | None, typer.Option(help="Build this stage anew; repeatable.")] = None,
    store: StoreDir = None,
    json: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout, also on failure.")] = False,
) -> None:
    """Run a recipe: every stage that is not in the store yet."""
    typer.echo(f"gptloom: {recipe}", err=True)
    from flows.servers import connect

    connect()
    from flows import run as runner
    from flows.recipe import load

    error = None
    seen: list[Session] = []
    try:
        loaded = load(recipe, set_ or [])
        runner.run(loaded, store_at(store), until=until, start=from_, only=only, force=force or [], report=seen.append)
    except BaseException as problem:
        error = str(problem) or type(problem).__name__
        raise
    finally:
        if seen and not json:
            typer.echo(table(seen[0]))
        if json:
            blank = {"run": None, "error": error, "stages": []}
            typer.echo(json_module.dumps(runner.summary(seen[0], error) if seen else blank))


def table(session: "Session") -> str:
    """One line a stage: what it did, how long it took, its headline."""
    from tasks.stage import headline

    lines = [f"{'stage':<10} {'cache':<8} {'seconds':>8}  {'artifact':<28} headline"]
    for r in session.results.values():
        artifact = f"{r.stage}:{r.key}" if r.key else "-"
        lines.append(f"{r.stage:<10} {r.cache:<8} {r.seconds:>8.1f}  {artifact:<28} {headline(r.metrics).lstrip(', ')}")
    return "\n".join([*lines, *([f"MLflow: {session.url}"] if session.url else [])])


@app.command()
def demo(store: StoreDir = None) -> None:
    """Servers up, the demo recipe end to end, a sample, a chat answer, where to look, what next."""
    from flows.demo import demo as show

    show(store_at(store))


@app.command()
def show(
    recipe: RecipeName = "demo",
    set_: Sets = None,
    store: StoreDir = None,
    config: Annotated[
        bool, typer.Option("--config", help="Print the whole recipe, defaults included, as YAML.")
    ] = False,
) -> None:
    """The stages of a recipe and whether the store has them."""
    from flows.servers import connect

    connect()
    from flows import run as runner
    from flows.recipe import load

    loaded = load(recipe, set_ or [])
    if config:
        import yaml

        typer.echo(yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    else:
        typer.echo(table(runner.look(loaded, store_at(store))))


@app.command()
def presets() -> None:
    """The recipes that ship with gptloom."""
    from flows.recipe import presets as all_presets

    for name, line in all_presets().items():
        typer.echo(f"{name:<18} {line}")


@app.command()
def plan(
    recipe: RecipeName = "demo",
    set_: Sets = None,
    gpus: Annotated[str, typer.Option(help="Hardware to plan for, such as 8xH100; default: this machine's CPU.")] = "",
) -> None:
    """Tokens, parameters, FLOPs, time and memory before anything runs."""
    from flows.plan import plan as lines
    from flows.recipe import load

    for line in lines(load(recipe, set_ or []), gpus):
        typer.echo(line)


@app.command()
def lineage(ref: Ref = "export", store: StoreDir = None, json: Json = False) -> None:
    """Where a model or artifact comes from, down to the source files."""
    from flows.lineage import as_text, from_mlflow, from_store

    tree = from_mlflow(ref, tracking()) if ref.startswith("models:/") else from_store(store_at(store), ref)
    typer.echo(json_module.dumps(tree) if json else as_text(tree))


def tracking() -> str:
    """MLflow's address."""
    from flows.servers import connect

    if not (uri := connect()):
        raise UserError("no MLflow server is known; start it with `gptloom up` or set MLFLOW_TRACKING_URI")
    return uri


@app.command()
def sample(
    ref: Ref = "pretrain",
    start: Annotated[str, typer.Option(help="Text to go on from.")] = "\n",
    num_samples: Annotated[int, typer.Option(min=1)] = 10,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 500,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Keep this many tokens; 0 keeps all.")] = 200,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens of this mass.")] = 1.0,
    seed: int = 1337,
    device: str = "auto",
    store: StoreDir = None,
) -> None:
    """Text from a checkpoint or release, in nanoGPT's form."""
    from flows.lineage import model_folder

    folder = model_folder(store_at(store), ref, tracking if ref.startswith("models:/") else None)
    from gpt.generate import sample as texts

    for text in texts(folder, start, num_samples, max_new_tokens, temperature, top_k, top_p, seed, device):
        typer.echo(text)
        typer.echo("-" * 15)


@app.command()
def up(
    prefect_port: Annotated[int | None, typer.Option(help="Default 4200, or any free port.")] = None,
    mlflow_port: Annotated[int | None, typer.Option(help="Default 5000, or any free port.")] = None,
) -> None:
    """Start the Prefect and MLflow servers on this machine."""
    from flows.servers import up as start

    for server in start({"prefect": prefect_port, "mlflow": mlflow_port}).values():
        typer.echo(f"{server.name:<8} {server.url}  (pid {server.pid})")
    typer.echo("stop them with: gptloom down")


@app.command()
def down() -> None:
    """Stop what `up` started."""
    from flows.servers import down as stop

    typer.echo(f"stopped: {', '.join(stop()) or 'nothing was running'}")


@app.command()
def status() -> None:
    """Which servers run, and whether they answer."""
    from flows.servers import PORTS, known

    servers = known()
    for name in PORTS:
        server = servers.get(name)
        typer.echo(f"{name:<8} " + (f"{server.url}  {'up' if server.healthy else 'starting'}" if server else "down"))


@app.command()
def sync(store: StoreDir = None) -> None:
    """Deliver to MLflow what an outage or a run without servers held back."""
    uri = tracking()
    from tasks.courier import sync as deliver

    typer.echo(f"{deliver(store_at(store).root, uri)} runs delivered to {uri}")


@store_app.command("ls")
def store_ls(store: StoreDir = None, json: Json = False) -> None:
    """Every artifact: when, what, how large (with --json one object a line)."""
    for path, m in store_at(store).entries():
        name, size = f"{m['stage']}:{m['key']}", sum(size for size, _ in m["files"].values())
        row = {"artifact": name, "build": path.name, "created": m["created"], "digest": m["digest"], "bytes": size}
        line = f"{m['created'][:19]}  {name:<28} {path.name}  {size / 1e6:>9.1f} MB"
        typer.echo(json_module.dumps({**row, "path": str(path)}) if json else line)


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
            typer.echo(f"bad: {path}: {error}")
    typer.echo(f"{bad} damaged" if bad else "all artifacts are what their manifests say")
    raise typer.Exit(1 if bad else 0)


@store_app.command("gc")
def store_gc(
    store: StoreDir = None, yes: Annotated[bool, typer.Option("--yes", help="Really remove; else only list.")] = False
) -> None:
    """Remove old builds, dead work folders, quarantine and unshared parts."""
    import shutil

    for path in store_at(store).garbage():
        if yes:
            shutil.rmtree(path)
        typer.echo(f"{'removed' if yes else 'would remove'} {path}")
    if not yes:
        typer.echo("add --yes to remove them; no run should be reading them")


@shards_app.command("show")
def shards_show(offset: int, ref: str = "shard", split: str = "train", width: int = 60, store: StoreDir = None) -> None:
    """The text around a token, its document, source and row."""
    from tasks import shard

    folder, vocabulary = shards_at(ref, store)
    typer.echo(shard.show(folder, split, offset, vocabulary, width))


@shards_app.command("text")
def shards_text(ref: str = "shard", split: str = "train", store: StoreDir = None) -> None:
    """The whole stream as one text, documents separated by <|endoftext|>."""
    from tasks import shard

    folder, vocabulary = shards_at(ref, store)
    for piece in shard.text(folder, split, vocabulary):
        sys.stdout.write(piece)


@shards_app.command("inspect")
def shards_inspect(file: Path) -> None:
    """The header and counts of one shard file."""
    from tasks import shard

    for name, value in shard.inspect(file).items():
        typer.echo(f"{name:<10} {value}")


def shards_at(ref: str, folder: Path | None):
    """A shards folder and its tokenizer."""
    from gpt.tokenizer import Tokenizer

    store = store_at(folder)
    path, manifest = store.find(ref)
    made_with = manifest["inputs"]["tokenizer"]
    return path, Tokenizer.load(store.find(f"{made_with['stage']}:{made_with['key']}", made_with["digest"])[0])


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
