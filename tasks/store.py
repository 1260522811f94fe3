"""The store: every artifact one immutable folder, found by its key, named by its content, whole or absent.

In: a stage's name, its key, a function that fills a folder. Out: a folder whose files are those of its manifest.
Layout: `<stage>/<key>/<build>/` with `artifact.json`, `<stage>/<key>/current` -> build, `parts/<stage>/<key>/`.
Method: build aside, fsync, seal a canonical manifest, rename (as Nix and Bazel do); a kernel lock makes one builder.
"""

import atexit
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.failpoints import failpoint
from tasks.files import is_locked, locked, sync
from tasks.manifest import DAMAGE, MANIFEST, key_of, read_manifest, seal, verify
from tasks.runtime import say

Manifest = dict[str, Any]
Fill = Callable[[Path], Mapping[str, Any]]
"""Makes the files of a folder and returns what is to be noted of them (JSON)."""


@dataclass(frozen=True)
class Store:
    """A folder of artifacts. Every method is safe beside other processes and after a kill at any moment."""

    root: Path

    def folder(self, stage: str, key: str) -> Path:
        """Where the builds of one key lie."""
        return self.root / stage / key

    def open(self, stage: str, key: str) -> tuple[Path, Manifest] | None:
        """The current build's folder and manifest, verified; what does not verify goes to quarantine."""
        for build in self._builds(stage, key):
            if manifest := self._trusted(build, f"{stage}-{key}-{build.name}"):
                return build, manifest
        return None

    def build(
        self, stage: str, key: str, fill: Fill, *, force: bool = False, resumes: bool = False
    ) -> tuple[Path, Manifest, bool]:
        """Return (folder, manifest, hit); on a miss `fill(work)` makes the files and returns the manifest's fields.

        `resumes` hands `fill` the work folder that a killed builder left; else it starts from an empty one.
        """
        folder = self.folder(stage, key)
        with locked(folder / "lock", f"{stage}:{key} is being built by another process; waiting for it"):
            if not force and (found := self.open(stage, key)):
                return *found, True
            work = folder / "work"
            if not resumes:
                shutil.rmtree(work, ignore_errors=True)
            work.mkdir(exist_ok=True)
            fields = fill(work)
            failpoint("built")
            return *self._publish(work, {"stage": stage, "key": key, **fields}), False

    def _publish(self, work: Path, fields: Mapping[str, Any]) -> tuple[Path, Manifest]:
        numbers = [int(p.name) for p in work.parent.iterdir() if p.name.isdigit()]
        build = work.parent / f"{max(numbers, default=0) + 1:04d}"
        manifest = seal(work, fields)
        failpoint("sealed")
        work.rename(build)
        failpoint("renamed")
        sync(build.parent)
        self._point(build)
        return build, manifest

    def _point(self, build: Path) -> None:
        fresh = build.parent / ".current"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(build.name)
        failpoint("before current")
        fresh.replace(build.parent / "current")
        failpoint("current")
        sync(build.parent)

    def _builds(self, stage: str, key: str) -> Iterator[Path]:
        """The current build, then the others, newest first: one whose maker died before `current` moved counts."""
        folder = self.folder(stage, key)
        with suppress(OSError):
            yield folder / os.readlink(folder / "current")
        for build in sorted(folder.glob("[0-9]*"), reverse=True):
            self._point(build)
            yield build

    def _trusted(self, folder: Path, name: str) -> Manifest | None:
        """The manifest of a folder that is what it says; any other goes to quarantine."""
        if not folder.exists():
            return None
        try:
            return verify(folder)
        except DAMAGE as error:
            say(f"{folder} is not what its manifest says ({error}): moved to quarantine, will be rebuilt")
            (self.root / "quarantine").mkdir(exist_ok=True)
            folder.rename(self.root / "quarantine" / f"{name}-{uuid.uuid4().hex[:8]}")
        return None

    def part(self, stage: str, key: str, fill: Fill) -> tuple[Path, dict[str, Any], bool]:
        """Return (folder, facts, hit) of an immutable part that several artifacts may hard-link; a concurrent twin's is
        as good as ours."""
        folder = self.root / "parts" / stage / key
        if manifest := self._trusted(folder, f"part-{stage}-{key}"):
            return folder, manifest["facts"], True
        work = folder.parent / f".{key}-{uuid.uuid4().hex[:8]}"
        work.mkdir(parents=True)
        try:
            manifest = seal(work, {"stage": stage, "key": key, "facts": fill(work)})
            failpoint("part sealed")
            with suppress(OSError):  # a twin was first
                work.rename(folder)
            failpoint("part renamed")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        sync(folder.parent)
        return folder, manifest["facts"], False

    # -- care ---------------------------------------------------------------------------------------------------------

    def entries(self) -> Iterator[tuple[Path, Manifest]]:
        """Every published build with its manifest, unverified, oldest first."""
        found = []
        for build in (p.parent for p in self.root.glob(f"*/*/[0-9]*/{MANIFEST}") if p.parts[-4] != "parts"):
            try:
                found.append((build, read_manifest(build)))
            except DAMAGE as error:
                say(f"{build} is damaged ({error}); the next run puts it into quarantine")
        yield from sorted(found, key=lambda entry: entry[1]["created"])

    def find(self, ref: str, digest: str = "") -> tuple[Path, Manifest]:
        """`stage:key` (a unique prefix of the key is enough), `stage` (its newest) or a path, to a verified build.

        `digest` asks for the build of that content, which need not be the current one. UserError: there is none.
        """
        if (Path(ref) / MANIFEST).exists():
            return Path(ref).resolve(), _sound(Path(ref), ref)
        stage, _, prefix = ref.partition(":")
        fits = [(p, m) for p, m in self.entries() if m["stage"] == stage and m["key"].startswith(prefix)]
        same = [path for path, m in fits if m["digest"] == digest]
        if same:
            return same[-1], _sound(same[-1], ref)
        keys = {m["key"] for _, m in fits}
        if not keys or (prefix and len(keys) > 1):
            what = f"fits {len(keys)} artifacts" if keys else "is in the store under no name"
            raise UserError(f"{ref}: {what} ({self.root}); `gptloom store ls` lists what can be named as stage:key")
        if digest:
            raise UserError(f"{ref}: the build with content {digest[:12]} is gone; the one here has other content")
        if not (found := self.open(stage, fits[-1][1]["key"])):
            raise UserError(f"{ref}: its files were damaged and are now in quarantine; run the pipeline to rebuild it")
        return found

    def garbage(self) -> list[Path]:
        """What nothing points to: old builds, work of the dead, quarantine, parts that no artifact shares."""
        old = [b for b, _ in self.entries() if (b.parent / "current").exists() and not is_locked(b.parent / "lock")]
        old = [b for b in old if os.path.realpath(b.parent / "current") != str(b.resolve())]
        work = [w for w in self.root.glob("*/*/work") if not is_locked(w.parent / "lock")]
        parts = [p.parent for p in self.root.glob(f"parts/*/*/{MANIFEST}") if not _shared(p.parent)]
        halves = [p for p in self.root.glob("parts/*/.*") if time.time() - p.stat().st_mtime > 86_400]
        return [*old, *work, *parts, *halves, *self.root.glob("quarantine/*")]


def _sound(folder: Path, ref: str) -> Manifest:
    try:
        return verify(folder)
    except DAMAGE as error:
        raise UserError(f"{ref}: {error}; the next run of its pipeline rebuilds it") from error


def _shared(part: Path) -> bool:
    return any(f.stat().st_nlink > 1 for f in part.rglob("*") if f.is_file())


# -- parts of the artifact at work ------------------------------------------------------------------------------------


@dataclass
class Building:
    """The stage at work: where, which, and how many parts it has asked for and found."""

    store: Store
    stage: str
    version: str
    parts: int = 0
    reused: int = 0


_building: ContextVar[Building | None] = ContextVar("building", default=None)


@contextmanager
def building(store: Store, stage: str, version: str) -> Generator[None]:
    """Tell `part` and `default_store` which store and stage are at work."""
    token = _building.set(Building(store, stage, version))
    try:
        yield
    finally:
        _building.reset(token)


def here() -> Building | None:
    """The stage at work; None outside of a run."""
    return _building.get()


def part(identity: Any, fill: Fill, *, counts: bool = True) -> tuple[Path, dict[str, Any]]:
    """Build one part once per (stage, version, identity); return its folder and the JSON facts that `fill` returned.

    `counts` is false for what a part is only made from: the stage's figures leave it out.
    Outside a run, as in tests of a bare stage body, it is built in a temporary folder that goes with this process.
    """
    if (at := _building.get()) is None:
        folder = Path(tempfile.mkdtemp(prefix="gptloom-part-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder, dict(fill(folder))
    folder, facts, hit = at.store.part(at.stage, key_of(at.stage, at.version, identity), fill)
    at.parts, at.reused = at.parts + counts, at.reused + (hit and counts)
    return folder, facts


def has_part(identity: Any) -> bool:
    """Whether `part` would find this one, if it is sound."""
    at = _building.get()
    return bool(at) and (at.store.root / "parts" / at.stage / key_of(at.stage, at.version, identity)).exists()


def part_figures() -> dict[str, float]:
    """Metrics of a stage that is made of parts: how many, and how many of them an earlier run had built."""
    at = _building.get()
    return {"data/parts": at.parts, "data/parts_reused": at.reused} if at and at.parts else {}


def folder_of(ref: str) -> Path:
    """The folder that a path, or a REF in the store at work, names."""
    return Path(ref) if Path(ref).is_dir() else default_store().find(ref)[0]


def default_store() -> Store:
    """The store of the run at work, else `$GPTLOOM_STORE`, else `./store`."""
    return at.store if (at := _building.get()) else Store(Path(os.environ.get("GPTLOOM_STORE", "store")).absolute())
