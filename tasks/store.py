"""The store: every artifact one immutable folder, found by its key, named by its content, whole or absent.

In: a stage's name, its key, a function that fills a folder. Out: a folder whose files are those of its manifest.
Layout: `<stage>/<key>/<build>/` with `artifact.json`, `<stage>/<key>/current` -> build, `parts/<stage>/<key>/`.
Method: build aside, fsync, seal a canonical manifest, rename (as Nix and Bazel do); a kernel lock makes one builder.
"""

import fcntl
import functools
import hashlib
import json
import os
import shutil
import sqlite3
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
from tasks.runtime import say

MANIFEST = "artifact.json"
OUTSIDE_DIGEST = ("logs/", "report/", "README.md")
"""What tells of the making (journals, figures, the dated model card): verified like the rest, but not the content."""


class Corrupt(Exception):
    """A folder that is not what its manifest says."""


def canonical(value: Any) -> bytes:
    """The one JSON spelling of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def key_of(*identity: Any) -> str:
    """16 hex digits that name everything the bytes depend on."""
    return hashlib.sha256(canonical(identity)).hexdigest()[:16]


# -- one build --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """A folder of artifacts. Every method is safe beside other processes and after a kill at any moment."""

    root: Path

    def folder(self, stage: str, key: str) -> Path:
        """Where the builds of one key lie."""
        return self.root / stage / key

    def open(self, stage: str, key: str) -> tuple[Path, dict[str, Any]] | None:
        """The current build's folder and manifest, verified; what does not verify goes to quarantine."""
        for build in self._builds(stage, key):
            try:
                return build, verify(build)
            except (Corrupt, OSError, ValueError) as error:
                self._quarantine(build, f"{stage}-{key}-{build.name}", error)
        return None

    def build(
        self,
        stage: str,
        key: str,
        fill: Callable[[Path], Mapping[str, Any]],
        *,
        force: bool = False,
        resumes: bool = False,
    ) -> tuple[Path, dict[str, Any], bool]:
        """Return (folder, manifest, hit); on a miss `fill(work)` makes the files and returns the manifest's fields.

        `resumes` hands `fill` the work folder that a killed builder left; else it starts from an empty one.
        """
        folder = self.folder(stage, key)
        folder.mkdir(parents=True, exist_ok=True)
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

    def _publish(self, work: Path, fields: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
        numbers = [int(p.name) for p in work.parent.iterdir() if p.name.isdigit()]
        build = work.parent / f"{max(numbers, default=0) + 1:04d}"
        manifest = seal(work, MANIFEST, fields)
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
        others = sorted((p for p in folder.glob("[0-9]*") if p.is_dir()), reverse=True)
        for build in others:
            self._point(build)
            yield build

    def _quarantine(self, folder: Path, name: str, why: Exception) -> None:
        if not folder.exists():
            return
        say(f"{folder} is not what its manifest says ({why}): moved to quarantine, will be rebuilt")
        (self.root / "quarantine").mkdir(exist_ok=True)
        folder.rename(self.root / "quarantine" / f"{name}-{uuid.uuid4().hex[:8]}")

    def part(self, stage: str, key: str, fill: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """One immutable part that several artifacts may hard-link; a concurrent twin's is as good as ours."""
        folder = self.root / "parts" / stage / key
        if folder.exists():
            try:
                return folder, verify(folder)["facts"]
            except (Corrupt, OSError, ValueError) as error:
                self._quarantine(folder, f"part-{stage}-{key}", error)
        work = folder.parent / f".{key}-{uuid.uuid4().hex[:8]}"
        work.mkdir(parents=True)
        try:
            manifest = seal(work, MANIFEST, {"stage": stage, "key": key, "facts": fill(work)})
            failpoint("part sealed")
            with suppress(OSError):  # a twin was first
                work.rename(folder)
            failpoint("part renamed")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        sync(folder.parent)
        return folder, manifest["facts"]

    # -- care ---------------------------------------------------------------------------------------------------------

    def entries(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every published build with its manifest, unverified, oldest first."""
        found = []
        for build in (p.parent for p in self.root.glob(f"*/*/[0-9]*/{MANIFEST}") if p.parts[-4] != "parts"):
            try:
                found.append((build, read_manifest(build)))
            except (Corrupt, OSError, ValueError) as error:
                say(f"{build} is damaged ({error}); the next run puts it into quarantine")
        yield from sorted(found, key=lambda entry: entry[1]["created"])

    def find(self, ref: str, digest: str = "") -> tuple[Path, dict[str, Any]]:
        """`stage:key` (a unique prefix of the key is enough), `stage` (its newest) or a path, to a verified build.

        `digest` asks for the build of that content, which need not be the current one.
        """
        path = Path(ref)
        if (path / MANIFEST).exists():
            return path.resolve(), _sound(path, ref)
        stage, _, prefix = ref.partition(":")
        fits = [(p, m) for p, m in self.entries() if m["stage"] == stage and m["key"].startswith(prefix)]
        if digest and fits:
            if not (same := [path for path, m in fits if m["digest"] == digest]):
                raise UserError(f"{ref}: the build with content {digest[:12]} is gone; the one here has other content")
            return same[-1], _sound(same[-1], ref)
        keys = {m["key"] for _, m in fits}
        if not keys or (prefix and len(keys) > 1):
            what = f"fits {len(keys)} artifacts" if keys else "is in the store under no name"
            raise UserError(f"{ref}: {what} ({self.root}); `gptloom store ls` lists what can be named as stage:key")
        found = self.open(stage, fits[-1][1]["key"])
        if found is None:
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


def _sound(folder: Path, ref: str) -> dict[str, Any]:
    try:
        return verify(folder)
    except (Corrupt, OSError, ValueError) as error:
        raise UserError(f"{ref}: {error}; the next run of its pipeline rebuilds it") from error


def _shared(part: Path) -> bool:
    return any(f.stat().st_nlink > 1 for f in part.rglob("*") if f.is_file())


# -- manifests --------------------------------------------------------------------------------------------------------


def seal(folder: Path, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Sync every file, then write the manifest: the fields, each file's size and sha256, the content's digest."""
    files: dict[str, list[Any]] = {}
    for path in _files(folder):
        sync(path)
        failpoint("synced")
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, file_digest(path)]
    body = {**fields, "files": files, "digest": content_digest({p: f[1] for p, f in files.items()})}
    (folder / name).write_bytes(_sealed(body))
    failpoint("manifest")
    for path in [folder / name, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync(path)
    return body


def content_digest(files: Mapping[str, str]) -> str:
    """sha256 over the sorted (path, sha256) of the payload: the name of the content, whoever made it and when."""
    payload = sorted((path, sha) for path, sha in files.items() if not path.startswith(OUTSIDE_DIGEST))
    return hashlib.sha256(canonical(payload)).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, byte for byte what `seal` wrote; else Corrupt."""
    raw = (folder / MANIFEST).read_bytes()
    body = json.loads(raw)
    if not isinstance(body, dict) or body.pop("seal", None) is None or _sealed(body) != raw:
        raise Corrupt("the manifest was changed")
    return body


def verify(folder: Path, *, afresh: bool = False) -> dict[str, Any]:
    """The manifest of a folder whose files are exactly those it lists; `afresh` reads every byte again."""
    body = read_manifest(folder)
    found = {p.relative_to(folder).as_posix(): p for p in _files(folder)}
    if odd := found.keys() ^ body["files"].keys():
        raise Corrupt(f"{min(odd)} is {'new' if min(odd) in found else 'gone'}")
    for name, (size, sha256) in body["files"].items():
        if found[name].stat().st_size != size or (hash_file if afresh else file_digest)(found[name]) != sha256:
            raise Corrupt(f"{name} was changed")
    return body


def _sealed(body: Mapping[str, Any]) -> bytes:
    return canonical({**body, "seal": hashlib.sha256(canonical(body)).hexdigest()})


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if not p.is_dir() and p != folder / MANIFEST)


# -- parts of the artifact at work ------------------------------------------------------------------------------------

_building: ContextVar[tuple[Store, str, str] | None] = ContextVar("building", default=None)


@contextmanager
def building(store: Store, stage: str, version: str) -> Generator[None]:
    """Tell `part` and `find_artifact` which store and stage are at work."""
    token = _building.set((store, stage, version))
    try:
        yield
    finally:
        _building.reset(token)


def part(identity: Any, fill: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Build one part once per (stage, version, identity); return its folder and the JSON facts that `fill` returned.

    Outside a run, as in tests of a bare stage body, it is built in a temporary folder.
    """
    if (at := _building.get()) is None:
        folder = Path(tempfile.mkdtemp(prefix="gptloom-part-"))
        return folder, dict(fill(folder))
    store, stage, version = at
    return store.part(stage, key_of(stage, version, identity), fill)


def default_store() -> Store:
    """The store of the run at work, else `$GPTLOOM_STORE`, else `./store`."""
    return at[0] if (at := _building.get()) else Store(Path(os.environ.get("GPTLOOM_STORE", "store")).absolute())


# -- files ------------------------------------------------------------------------------------------------------------


def link(source: Path, target: Path) -> None:
    """Share a file between folders without a copy; across devices, copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = file_digest(source)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    else:
        _remember(_identity(target), digest)  # a new link gives the inode a new ctime


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex; 0.6 GiB/s on one core."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, remembered on this machine by inode, size, mtime and ctime."""
    identity, began = _identity(path), time.time_ns()
    with suppress(sqlite3.Error, OSError):
        if row := _memory().execute("SELECT sha256 FROM digests WHERE identity = ?", (identity,)).fetchone():
            return row[0]
    digest = hash_file(path)
    if began - path.stat().st_ctime_ns > 20_000_000:  # younger than a clock tick: a later change could look the same
        _remember(identity, digest)
    return digest


def _identity(path: Path) -> str:
    s = path.stat()
    return f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}"


def _remember(identity: str, digest: str) -> None:
    with suppress(sqlite3.Error, OSError):
        _memory().execute("INSERT OR REPLACE INTO digests VALUES (?, ?)", (identity, digest))


@functools.cache
def _memory() -> sqlite3.Connection:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptloom"
    home.mkdir(parents=True, exist_ok=True)
    memory = sqlite3.connect(home / "digests.sqlite", timeout=10, isolation_level=None, check_same_thread=False)
    memory.execute("PRAGMA journal_mode=WAL")
    memory.execute("PRAGMA synchronous=OFF")  # a lost memory costs one more hash
    memory.execute("CREATE TABLE IF NOT EXISTS digests (identity TEXT PRIMARY KEY, sha256 TEXT) WITHOUT ROWID")
    return memory


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, waiting: str = "") -> Generator[None]:
    """A kernel lock that ends with its holder, however it ends; the file stays for ever."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting or f"waiting for {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
