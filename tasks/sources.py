"""Find sources and name each by its content, so that a path never enters a key.

In: what a recipe lists: files, folders, globs, URLs, `pydocs`, `hf:NAME[:CONFIG][:SPLIT]` (hub), `hf:BUILDER:FILES`.
Out: `Source` records in a fixed order (the recipe's, then by name); files of equal content count once.
"""

import glob
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt.errors import UserError
from tasks import pydocs
from tasks.files import file_digest
from tasks.manifest import canonical
from tasks.remote import ANY, Limits, fetched, is_url

ENDINGS = {".parquet": "parquet", ".txt": "text", ".md": "text"}
ENDINGS |= {end + packed: f"jsonl{packed}" for end in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst")}
BUILDERS = ("arrow", "csv", "json", "parquet", "text")
KNOWN = f"known are {', '.join(ENDINGS)}, and hf:{'|'.join(BUILDERS)}:FILE"


class Source(NamedTuple):
    """One thing to read. `path` is for messages and provenance; `identity` (JSON) is what enters the key."""

    kind: str
    """file, url, hub or pydocs."""
    path: str
    format: str
    """What ENDINGS says, hub, pydocs, or `hf:` and a builder of Hugging Face datasets."""
    digest: str
    """sha256 of the file, or of the identity of what is no file."""
    size_bytes: int
    """On disk; 0 where that is unknown."""
    identity: dict[str, Any]
    file: str = ""
    """Where it lies on this machine; empty where it is no file."""


def find(
    sources: Sequence[str], max_mb: float = 8.0, note: Callable[[str], object] = str, limits: Limits = ANY
) -> list[Source]:
    """Resolve each entry, the built-in corpus capped at `max_mb`, URLs fetched; `note` hears of twins.

    Raises UserError for what is missing, empty, unreadable or of an unknown ending.
    """
    found: dict[str, Source] = {}
    for source in (source for entry in sources for source in _resolve(entry, max_mb, limits)):
        if (twin := found.setdefault(source.digest, source)) is not source:
            note(f"{source.path} has the content of {twin.path} and counts once")
    if not found:
        raise UserError("sources=[] names nothing to read; list files, folders, globs, hf:NAME or pydocs")
    return list(found.values())


def _resolve(entry: str, max_mb: float, limits: Limits) -> Iterator[Source]:
    if is_url(entry):
        yield from _urls(entry, "", limits)
        return
    match entry.split(":"):
        case ["pydocs"]:
            yield _abstract("pydocs", entry, {"pydocs": pydocs.fingerprint(max_mb)})
        case ["hf", builder, *url] if builder in BUILDERS and is_url(":".join(url)):
            yield from _urls(":".join(url), f"hf:{builder}", limits)
        case ["hf", builder, *files] if builder in BUILDERS:
            yield from (_file(path, f"hf:{builder}") for path in _files(":".join(files), any_ending=True))
        case ["hf", name, *options] if len(options) <= 2:
            yield _abstract("hub", entry, _hub(entry, name, *options))
        case _:
            yield from (_file(path, file_format(path)) for path in _files(entry, any_ending=False))


def from_hub(entry: str) -> bool:
    """Whether an entry is on the hub or another server, so that no size is known before it is here."""
    kind, name, *rest = [*entry.split(":"), ""]
    return is_url(entry) or is_url(":".join(rest)) or (kind == "hf" and name not in BUILDERS)


def file_format(path: Path) -> str:
    """What the ending promises; empty where it is unknown."""
    return next((kind for ending, kind in ENDINGS.items() if path.name.lower().endswith(ending)), "")


def _files(entry: str, any_ending: bool) -> list[Path]:
    """The files of one entry by name; in a folder those of known endings, hidden ones left out."""
    path = Path(entry).expanduser()
    if path.is_dir():
        shown = (p for p in sorted(path.rglob("*")) if "/." not in f"/{p.relative_to(path)}")
        named = [p for p in shown if any_ending or file_format(p)]
    else:
        named = [path] if path.exists() else map(Path, sorted(glob.glob(str(path), recursive=True)))
    if not (files := [p for p in named if p.is_file()]):
        raise UserError(f"source {entry!r} names no file that can be read; endings {KNOWN}; mend the path")
    for odd in (p for p in files if not any_ending and not file_format(p)):
        raise UserError(f"source {str(odd)!r} has the ending {odd.suffix!r}; {KNOWN}; convert it or leave it out")
    return files


def _urls(entry: str, kind: str, limits: Limits) -> Iterator[Source]:
    """The files of a URL; the path stays the URL, for messages and provenance."""
    for url, path in fetched(entry, limits, lambda name: file_format(Path(name))):
        if not (form := kind or file_format(path)):
            what = f"source {url!r} has an ending that tells nothing; {KNOWN}"
            raise UserError(f"{what}; say what it is by hf:BUILDER:URL, or leave it out")
        yield _file(path, form)._replace(kind="url", path=url)


def _file(path: Path, kind: str) -> Source:
    if (shown := str(path).encode(errors="replace").decode()) != str(path):
        raise UserError(f"source {shown!r} has a name that is no UTF-8; rename it")
    try:
        digest = file_digest(path)
    except OSError as error:
        raise UserError(f"source {str(path)!r} cannot be read ({error.strerror}); mend it or leave it out") from error
    identity = {"sha256": digest, "format": kind}
    return Source("file", str(path), kind, digest, path.stat().st_size, identity, str(path))


def _hub(entry: str, name: str, config: str = "", split: str = "") -> dict[str, Any]:
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name).sha
    except Exception as error:  # whatever a network and its client can raise
        way_out = "check the name and the network, or give files"
        raise UserError(f"source {entry!r}: the Hugging Face hub gave {type(error).__name__}; {way_out}") from error
    return {"hub": name, "config": config or None, "split": split or "train", "commit": commit}


def _abstract(kind: str, path: str, identity: dict[str, Any]) -> Source:
    return Source(kind, path, kind, hashlib.sha256(canonical(identity)).hexdigest(), 0, identity)
