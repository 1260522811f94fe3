"""`gptloom store ...`: what lies in the store, whether it is sound, what can go.

In: the store's folder. Out: a line an artifact.
"""

import json
from typing import Annotated

from typer import Exit, Option, Typer, echo

from flows.commands.common import Json, StoreDir, store_at

app = Typer(no_args_is_help=True, help="Care for the store.")
Yes = Annotated[bool, Option("--yes", help="Really remove; else only list.")]


@app.command("ls")
def ls(store: StoreDir = None, as_json: Json = False) -> None:
    """Every artifact: when, what, how large (with --json one object a line)."""
    for path, m in store_at(store).entries():
        name, size = f"{m['stage']}:{m['key']}", sum(size for size, _ in m["files"].values())
        row = {"artifact": name, "build": path.name, "created": m["created"], "digest": m["digest"], "bytes": size}
        line = f"{m['created'][:19]}  {name:<28} {path.name}  {size / 1e6:>9.1f} MB"
        echo(json.dumps({**row, "path": str(path)}) if as_json else line)


@app.command("verify")
def verify(store: StoreDir = None) -> None:
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


@app.command("gc")
def gc(store: StoreDir = None, yes: Yes = False) -> None:
    """Remove old builds, dead work folders, quarantine and unshared parts."""
    import shutil

    for path in store_at(store).garbage():
        if yes:
            shutil.rmtree(path)
        echo(f"{'removed' if yes else 'would remove'} {path}")
    if not yes:
        echo("add --yes to remove them; no run should be reading them")
