"""Files at URLs, fetched once into the store: http(s) by tasks/web.py, s3 and gs by Arrow, hf by its own client.

In: a URL, limits. Out: the file on this machine. What tells of a file's content (ETag, date, size) is remembered beside
it: an unchanged file is not fetched again, and a download that was cut goes on where it stopped.
`<store>/remote/` may be removed at any time: it is fetched again then. Keys know the content alone.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from gpt.errors import UserError
from tasks.files import locked, sync
from tasks.runtime import say
from tasks.store import default_store
from tasks.web import Unreachable, answer, public

SCHEMES = ("http", "https", "s3", "gs", "hf")
TRIES, PAUSE_S, PIECE_BYTES = 5, 1.0, 1 << 20
SLOW_BYTES_S, PATIENCE_S = 1_000, 60.0
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
BELIEVED_S = 300.0
"""How long a server is not asked again: a stage asks three times what its sources are."""
_confirmed: dict[Path, float] = {}


class Limits(NamedTuple):
    """What a URL may do."""

    private: bool = False
    """Lead to this machine and to private networks."""
    max_bytes: int = 200_000_000_000
    """How long a file may be."""


ANY = Limits()


class Known(NamedTuple):
    """What a server says of a file's content."""

    tag: str = ""
    date: str = ""
    size: int | None = None

    @property
    def tells(self) -> bool:
        """Whether another content would have another one."""
        return bool(self.tag or self.date)


def is_url(entry: str) -> bool:
    """Whether an entry is a URL that can be fetched."""
    return entry.partition("://")[0].lower() in SCHEMES and "://" in entry


def fetched(url: str, limits: Limits = ANY, wanted: Callable[[str], object] = bool) -> Iterator[tuple[str, Path]]:
    """(URL, local file) of each file that a URL names: one over http(s), elsewhere those of a glob, or of a folder if
    they are `wanted` by their names.
    """
    parts = urlsplit(url)
    if parts.password or ("@" in parts.netloc and parts.scheme.startswith("http")):
        bare = url.replace(parts.netloc, parts.netloc.rpartition("@")[2])
        raise UserError(f"source {bare!r} came with a password, which would stand in manifests; give it without")
    if parts.scheme in ("http", "https"):
        yield url, _kept(url, partial(_http, url, limits))
        return
    system, paths = _listed(url, limits, wanted)
    user, at, _ = parts.netloc.rpartition("@")
    for path, now in paths:  # each with all that it takes to name it alone
        name = f"{parts.scheme}://{user}{at}{path.lstrip('/')}" + (f"?{parts.query}" if parts.query else "")
        opened = partial(system.open_input_file, path)
        yield name, _kept(name, partial(_copied, name, opened, now, limits))


def _kept(url: str, bring: Callable[[Path, Path], None]) -> Path:
    """The URL's file in the store, brought up to date."""
    folder = default_store().root / "remote" / hashlib.sha256(url.encode()).hexdigest()[:24]
    file = folder / (re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path).rpartition("/")[2])[-80:] or "file")
    with locked(folder / "lock", f"{url} is being fetched by another process; waiting for it"):
        bring(folder, file)
    return file


# -- http and https ---------------------------------------------------------------------------------------------------


def _http(url: str, limits: Limits, folder: Path, file: Path) -> None:
    """Try again where that may help; a try that brought more counts as the first. Where all fail an old copy serves."""
    half, tries = folder / "partial", 0
    if file.exists() and time.monotonic() - _confirmed.get(folder, -BELIEVED_S) < BELIEVED_S:
        return
    while True:
        before = _size(half)
        try:
            _try(url, limits, folder, file)
            _confirmed[folder] = time.monotonic()
            return
        except (Unreachable, OSError, HTTPException) as error:
            if getattr(error, "errno", None) in FULL:
                raise
            tries, why = (1 if _size(half) > before else tries + 1), str(error) or type(error).__name__
            if tries >= TRIES or getattr(error, "hopeless", False):
                return _fall_back(url, folder, file, why, error)
            wait_s = getattr(error, "wait_s", 0) or PAUSE_S * 2 ** (tries - 1)
            say(f"{url}: {why}; try {tries + 1} of {TRIES} in {wait_s:.0f} s")
            time.sleep(wait_s)


def _fall_back(url: str, folder: Path, file: Path, why: str, error: Exception) -> None:
    if not (file.exists() and _remembered(folder / "known.json").tells):
        raise UserError(f"source {url!r} cannot be reached ({why}); check the address and the network") from error
    day = time.strftime("%Y-%m-%d", time.gmtime(file.stat().st_mtime))
    say(f"{url} cannot be reached ({why}); the copy of {day} is used")


def _try(url: str, limits: Limits, folder: Path, file: Path) -> None:
    half, known = folder / "partial", _remembered(folder / "known.json")
    begun, start = _remembered(folder / "partial.json"), _size(half)
    headers = dict[str, str]()
    if start and (begun.date or begun.tag) and not begun.tag.startswith("W/"):
        headers = {"Range": f"bytes={start}-", "If-Range": begun.tag or begun.date}
    elif file.exists() and known.tells:
        headers = {"If-None-Match": known.tag} if known.tag else {"If-Modified-Since": known.date}
    with answer(url, headers, limits.private) as found:
        now = _told(found)
        if found.status == 304 or (file.exists() and known.tells and now == known):
            return
        if found.status == 416 or (found.status == 206 and not _goes_on(found, start)):
            half.unlink()
            raise Unreachable("the server does not go on where the download stopped")
        start = start if found.status == 206 else 0
        total = None if found.length is None else start + found.length
        if total is None and not found.chunked:
            what = f"source {url!r}: the server does not say how long it is, so a cut would go unseen"
            raise UserError(f"{what}; fetch it by hand, or mend the server")
        if found.getheader("Content-Encoding", "identity") != "identity" and not file.name.endswith((".gz", ".zst")):
            raise UserError(f"source {url!r}: the server packs it unasked; fetch it by hand, or mend the server")
        _write(folder / "partial.json", now)
        _save(url, found.read1, half, start, total, limits)
    _publish(folder, file, now)


def _goes_on(found: HTTPResponse, start: int) -> bool:
    return found.getheader("Content-Range", "").startswith(f"bytes {start}-")


def _told(found: HTTPResponse) -> Known:
    size = found.getheader("Content-Range", "").rpartition("/")[2] if found.status == 206 else found.length
    return Known(found.getheader("ETag", ""), found.getheader("Last-Modified", ""), int(size) if size else None)


# -- object stores ----------------------------------------------------------------------------------------------------


def _listed(url: str, limits: Limits, wanted: Callable[[str], object]) -> tuple[Any, list[tuple[str, Known]]]:
    """(the file system, each file that the URL names, by name)."""
    from pyarrow.fs import FileSelector, FileType

    name, _, query = url.partition("?")
    base, star, _ = name.partition("*")
    asked = "?".join(filter(None, [base.rpartition("/")[0] if star else name.rstrip("/"), query]))
    pattern = f"/{name.partition('://')[2].rpartition('@')[2]}"
    try:
        system, path = _system(asked, limits)
        (about,) = system.get_file_info([path])
        found = [about] if about.is_file else system.get_file_info(FileSelector(path, recursive=True))
    except UserError:
        raise
    except Exception as error:  # whatever a network and three clients can raise
        why = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        raise UserError(f"source {url!r} cannot be read ({why}); check the address, rights and network") from error
    files = [f for f in found if f.type == FileType.File]
    if star:
        files = [f for f in files if PurePosixPath(f"/{f.path.lstrip('/')}").match(pattern)]
    elif not about.is_file:
        files = [f for f in files if wanted(f.base_name) and "/." not in f.path]
    if not files:
        raise UserError(f"source {url!r} names no file that can be read; mend the path")
    return system, [(f.path, _said(system, f)) for f in sorted(files, key=lambda f: f.path)]


def _system(url: str, limits: Limits) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    if url.startswith("hf://"):
        from huggingface_hub import HfFileSystem

        return PyFileSystem(FSSpecHandler(HfFileSystem())), url.removeprefix("hf://")
    for endpoint in parse_qs(urlsplit(url).query).get("endpoint_override", []):
        at = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        if not limits.private:
            public(at.hostname or "", at.port or 443)
    return FileSystem.from_uri(url)


def _said(system: Any, file: Any) -> Known:
    """The hub names contents; other stores tell when a file was written."""
    tag = ""
    with suppress(AttributeError, KeyError):
        tag = system.handler.fs.info(file.path)["blob_id"]
    return Known(tag, str(file.mtime_ns or ""), file.size)


def _copied(url: str, opened: Callable[[], Any], now: Known, limits: Limits, folder: Path, file: Path) -> None:
    if file.exists() and now.tells and _remembered(folder / "known.json") == now:
        return
    half = folder / "partial"
    start = _size(half) if now.tells and _remembered(folder / "partial.json") == now else 0
    _write(folder / "partial.json", now)
    try:
        with opened() as stream:
            stream.seek(start)
            _save(url, stream.read, half, start, now.size, limits)
    except UserError:
        raise
    except Exception as error:  # as above
        if getattr(error, "errno", None) in FULL:
            raise
        raise UserError(f"source {url!r} broke off ({error}); run again, it goes on from there") from error
    _publish(folder, file, now)


# -- both -------------------------------------------------------------------------------------------------------------


def _save(url: str, read: Callable[[int], bytes], half: Path, start: int, total: int | None, limits: Limits) -> None:
    """The body from `start` on; Unreachable where it ends early or comes too slowly, UserError where it is too long."""
    began = shown = time.monotonic()
    got, of = start, f" of {total / 1e6:,.0f}" if total else ""
    with half.open("ab") as file:
        file.truncate(start)
        while (total or 0) <= limits.max_bytes and got <= limits.max_bytes and (piece := read(PIECE_BYTES)):
            got += file.write(piece)
            now = time.monotonic()
            if now - shown > 5:
                shown = now
                say(f"{url}: {got / 1e6:,.0f}{of} MB")
            if now - began > PATIENCE_S and got - start < SLOW_BYTES_S * (now - began):
                raise Unreachable(f"less than {SLOW_BYTES_S:,} bytes a second")
    if max(total or 0, got) > limits.max_bytes:
        half.unlink()
        raise UserError(f"source {url!r} is longer than ingest.max_fetch_gb={limits.max_bytes / 1e9:g}; raise that")
    if total not in (None, got):
        raise Unreachable(f"it ended after {got:,} of {total:,} bytes")


def _publish(folder: Path, file: Path, now: Known) -> None:
    """The whole file takes its name, then what is known of it: a kill between costs a download."""
    (folder / "known.json").unlink(missing_ok=True)
    sync(folder / "partial")
    os.replace(folder / "partial", file)
    (folder / "partial.json").unlink(missing_ok=True)
    _write(folder / "known.json", now)


def _remembered(path: Path) -> Known:
    try:
        return Known(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return Known()


def _write(path: Path, known: Known) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(known._asdict()))
    os.replace(fresh, path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
