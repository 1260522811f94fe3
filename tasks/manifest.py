"""The manifest of an immutable folder: what it is, how it was made, and the size and sha256 of every file in it.

In: a filled folder and the fields to note. Out: `artifact.json` in one canonical spelling, sealed with its own sha256,
written last; `verify` believes a folder only if every byte is what its manifest says.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpt.failpoints import failpoint
from tasks.files import file_digest, hash_file, sync
from tasks.runtime import runtime

MANIFEST = "artifact.json"
OUTSIDE_DIGEST = ("logs/", "report/", "README.md")
"""What tells of the making (journals, figures, the dated model card): verified like the rest, but not the content."""


class Corrupt(Exception):
    """A folder that is not what its manifest says."""


DAMAGE = Corrupt, OSError, ValueError
"""What reading a damaged folder raises."""


def canonical(value: Any) -> bytes:
    """The one JSON spelling of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="surrogatepass")  # a file's name may hold half a character; json reads it back


def key_of(*identity: Any) -> str:
    """16 hex digits that name everything the bytes depend on."""
    return hashlib.sha256(canonical(identity)).hexdigest()[:16]


def seal(folder: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Sync every file, then write the manifest: the fields, each file's size and sha256, the content's digest."""
    found = _files(folder)
    for path in found:
        sync(path)
        failpoint("synced")
    with ThreadPoolExecutor(runtime().workers) as readers:  # hashing leaves the interpreter to others
        digests = readers.map(file_digest, found)
        shas = {path.relative_to(folder).as_posix(): sha for path, sha in zip(found, digests, strict=True)}
    files = {name: [(folder / name).stat().st_size, sha] for name, sha in shas.items()}
    body = {**fields, "files": files, "digest": content_digest(shas)}
    (folder / MANIFEST).write_bytes(_sealed(body))
    failpoint("manifest")
    for path in [folder / MANIFEST, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
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
