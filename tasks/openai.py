"""OpenAI's vocabularies: in tiktoken's cache folder, or fetched into it, always checked by sha256.

In: gpt2, cl100k_base or o200k_base. Out: ranks and special tokens; the file in the cache, whole or not at all.
tiktoken reads the same folder ($TIKTOKEN_CACHE_DIR, else a temporary one), where a file's name is the sha1 of its URL.
It deletes a file with another sha256 and goes to the network: here files are checked before it sees them.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

from gpt.errors import UserError
from tasks.files import hash_file, sync
from tasks.runtime import say


class File(NamedTuple):
    """A vocabulary as OpenAI publishes it."""

    encoding: str
    size_bytes: int
    sha256: str

    @property
    def url(self) -> str:
        """Where it is published."""
        return f"https://openaipublic.blob.core.windows.net/encodings/{self.encoding}.tiktoken"


FILES = {
    # the same ranks as gpt2's own two files, in one
    "gpt2": File("r50k_base", 835_554, "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
    "cl100k_base": File("cl100k_base", 1_681_126, "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
    "o200k_base": File("o200k_base", 3_613_922, "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
}


def vocabulary(name: str) -> dict[str, Any]:
    """`mergeable_ranks` and `special_tokens`, fetched first where the cache does not have them."""
    if not cached(name):
        fetch(name)
    return ENCODING_CONSTRUCTORS[FILES[name].encoding]()


def place(name: str) -> Path:
    """Where tiktoken looks for the file."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":
        raise UserError("TIKTOKEN_CACHE_DIR is empty, which turns tiktoken's cache off; name a folder, or unset it")
    named = Path(folder) if folder else Path(tempfile.gettempdir()) / "data-gym-cache"
    return named.absolute() / hashlib.sha1(FILES[name].url.encode()).hexdigest()


def cached(name: str) -> bool:
    """Whether the cache has the right file."""
    return place(name).is_file() and hash_file(place(name)) == FILES[name].sha256


def fetch(name: str) -> Path:
    """Download the file into the cache, unless it is there; one line that says what to put where when that fails."""
    if name not in FILES:
        raise UserError(f"no vocabulary {name!r} is known; one of {', '.join(FILES)}")
    file, target = FILES[name], place(name)
    if cached(name):
        return target
    wrong = f"{target} has another sha256; " if target.exists() else ""
    say(f"{wrong}downloading {name} from {file.url}")
    by_hand = f"download it elsewhere and save it as {target} ({file.size_bytes:,} bytes, sha256 {file.sha256})"
    try:
        content = _download(file.url)
    except OSError as error:  # requests' errors are OSErrors
        raise UserError(f"{wrong}{name}: no way to {file.url} ({type(error).__name__}); {by_hand}") from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise UserError(f"{wrong}{name}: what {file.url} sent is not OpenAI's file ({len(content):,} bytes); {by_hand}")
    try:
        _write(target, content)
    except OSError as error:
        raise UserError(f"{target}: {error.strerror}; set TIKTOKEN_CACHE_DIR to a folder of your own") from error
    return target


def _download(url: str) -> bytes:
    import requests

    answer = requests.get(url, timeout=60)
    answer.raise_for_status()
    return answer.content


def _write(target: Path, content: bytes) -> None:
    """All of it or nothing, whoever else writes at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        whole = Path(folder) / target.name
        whole.write_bytes(content)
        sync(whole)
        os.replace(whole, target)
