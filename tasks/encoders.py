"""Batches of text to token ids: tiktoken is the reference; a faster engine serves while its ids are the same.

In: a tokenizer's folder, texts. Out: the ids of all texts in one array, and how many each text has.
`gptloom[fast]` brings gigatoken. It must pass a self-test of adversarial texts when it is loaded, and then on its way
the first 64 documents of a shard and one in a thousand; a difference raises `Differs`, and tiktoken does the work.
Special tokens inside a text are text, whatever they spell.
"""

import ctypes
import importlib.metadata
import random
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import tiktoken

from gpt.tokenizer import Tokenizer as Loaded

Ids = tuple[np.ndarray, np.ndarray]
"""All ids, one text after the other (uint32), and how many each text has (int64)."""
SCHEMES = {"gpt2": "gpt2", "cl100k_base": "gpt4", "o200k_base": "o200k"}
"""Our name of a pattern: gigatoken's."""
RENEW_BYTES = 256 << 20
"""Of text: then gigatoken forgets the words it has seen, which else grow to 512 MiB."""
HEAD, ONE_IN = 64, 1000


class Differs(Exception):
    """The fast engine's ids are not tiktoken's."""


class Engine(Protocol):
    """What turns texts into ids, and its name and version."""

    name: str

    def encode_batch(self, texts: list[bytes]) -> Ids:
        """The ids of all texts, and how many each has; good until this thread's next call."""


def narrowest(vocab_size: int) -> np.dtype:
    """The dtype of ids: two bytes where they are enough."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


class Desk(threading.local):
    """Where a thread puts the ids of a batch together, time and again: new memory for each took 0.3 s in 300 MB."""

    def __init__(self, dtype: np.dtype):
        self._flat: np.ndarray = np.empty(0, dtype)

    def join(self, texts: list[bytes], encode: Callable[[bytes], np.ndarray]) -> Ids:
        """The ids of all texts; each array is copied at once, while it is in the CPU's cache."""
        if (most := sum(map(len, texts))) > len(self._flat):  # a token has a byte or more
            self._flat = np.empty(most, self._flat.dtype)
        lengths, end = np.empty(len(texts), np.int64), 0
        for row, text in enumerate(texts):
            ids = encode(text)
            start, end = end, end + len(ids)
            self._flat[start:end] = ids
            lengths[row] = len(ids)
        return self._flat[:end], lengths


class Tiktoken:
    """The reference. `encode_to_numpy` spares a list of Python integers for each text: 5 to 10 % of the time."""

    name = f"tiktoken {tiktoken.__version__}"

    def __init__(self, made: Loaded):
        self._made, self._desk = made, Desk(narrowest(made.vocab_size))

    def encode_batch(self, texts: list[bytes]) -> Ids:
        """The ids of all texts, and how many each has."""
        return self._desk.join(texts, self._encode)

    def _encode(self, raw: bytes) -> np.ndarray:
        text = raw.decode()
        try:
            return self._made.bpe.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # a million blanks
            return np.array(self._made.encode(text), np.uint32)


class Gigatoken:
    """Ranks and a pattern by its name, without special tokens: with them it would honour those that a text spells."""

    def __init__(self, folder: Path, made: Loaded):
        from gigatoken import Tokenizer

        self.name = f"gigatoken {importlib.metadata.version('gigatoken')}"
        self._desk, self._size = Desk(narrowest(made.vocab_size)), 0
        self._new = partial(Tokenizer.from_tiktoken, folder / "ranks.tiktoken", pretokenizer=SCHEMES[made.pattern])
        self._encode, self._renewing = self._new().backend.encode, threading.Lock()

    def encode_batch(self, texts: list[bytes]) -> Ids:
        """The ids of all texts, and how many each has. Text by text: its own batches import awkward, half a second."""
        with self._renewing:
            self._size += sum(map(len, texts))
            if self._size > RENEW_BYTES:
                del self._encode  # its memory first: 20 MB at the peak
                give_memory_back()
                self._size, self._encode = 0, self._new().backend.encode
            encode = self._encode
        return self._desk.join(texts, encode)


class Watched:
    """A fast engine under the eyes of the reference."""

    def __init__(self, engine: Engine, reference: Engine):
        self.name, self._engine, self._reference = engine.name, engine, reference
        self._seen = 0

    def watch(self, head: bool) -> "Watched":
        """Begin with the head of a shard, or somewhere inside it. Threads may each have one."""
        fresh = Watched(self._engine, self._reference)
        fresh._seen = 0 if head else HEAD
        return fresh

    def encode_batch(self, texts: list[bytes]) -> Ids:
        """The ids of all texts, and how many each has; Differs when a text looked at has others."""
        flat, lengths = self._engine.encode_batch(texts)
        ends = np.cumsum(lengths)
        for place, text in enumerate(texts, self._seen):
            if place < HEAD or place % ONE_IN == 0:
                row = place - self._seen
                if not np.array_equal(
                    self._reference.encode_batch([text])[0], flat[ends[row] - lengths[row] : ends[row]]
                ):
                    raise Differs(f"{self.name} has other ids than {self._reference.name} for {text.decode()[:40]!r}")
        self._seen += len(texts)
        return flat, lengths


def give_memory_back() -> None:
    """To the system, what is free: some 50 MB after encoding, as texts and ids went through several threads."""
    pa.default_memory_pool().release_unused()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc
        trim(0)


@lru_cache(1)
def loaded(folder: Path) -> Loaded:
    """A tokenizer, read once by a process."""
    return Loaded.load(folder)


@lru_cache(1)
def engines(folder: Path, fast: bool) -> tuple[Tiktoken, Watched | None, str]:
    """The reference, the fast engine if it is to be had, and why it is not. Loaded once by a process."""
    made = loaded(folder)
    reference = Tiktoken(made)
    if not fast:
        return reference, None, ""
    if made.pattern not in SCHEMES:
        return reference, None, f"gigatoken has no pattern for {made.pattern}"
    try:
        engine = Gigatoken(folder, made)
        self_test(engine, reference)
    except ImportError:
        return reference, None, 'pip install "gptloom[fast]" encodes several times faster'
    except Exception as error:  # whatever ails it, there is another way
        return reference, None, f"gigatoken fails its self-test ({error})"
    return reference, Watched(engine, reference), ""


def self_test(engine: Engine, reference: Engine) -> None:
    """Differs when the engine's ids of an adversarial text are others."""
    texts = [text.encode() for text in adversarial()]
    flat, lengths = engine.encode_batch(texts)
    for text, ids in zip(texts, np.split(flat, np.cumsum(lengths)[:-1]), strict=True):
        if not np.array_equal(ids, reference.encode_batch([text])[0]):
            raise Differs(f"{text.decode()[:40]!r} has other ids")


def adversarial(count: int = 200) -> list[str]:
    """What tells tokenizers apart: blanks, line ends, scripts, digits, contractions, emoji, runs, spelled specials."""
    digits = ["0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "𝟘𝟙𝟚𝟛𝟜𝟝", "½²Ⅷ"]
    words = [
        "it's",
        "IT'S WE'LL",
        "don’t",
        "ǅungla",
        "naïve",
        "e\u0301a",
        "İi\u0307ßſ",
        "日本語",
        "한국어",
        "ไทย",
        "عربى",
    ]
    signs = ["👩‍👩‍👧‍👦 🏳️‍🌈", "\u200d\ufeff\u00a0\u2028\u0085", "\x00\x01\x7f", "--->", "://", "\ufffd", "…"]
    blanks = ["", " ", "\n", "\r\n", " \r\n\r\n ", "\t \t", "a  b", " \n a", "\u3000", "  \n"]
    spelled = ["<|endoftext|>", "<|user|>x<|end|>", "<|fim_prefix|>", "<|reserved_7|>"]
    atoms = [*digits, *words, *signs, *blanks, *spelled]
    runs = [letter * 3000 for letter in ("a", " ", "\n", "9", "=", "é", "字", "\r\n", "ab ")]
    letters = [chr(code) for code in range(1, 0x1FB00, 17) if not 0xD800 <= code < 0xE000]
    every = ["".join(letters[at : at + 200]) for at in range(0, len(letters), 200)]
    draw = random.Random(1)
    mixed = ["".join(draw.choices(atoms + letters[:600], k=12)) for _ in range(count)]
    return [*atoms, *runs, *every, *mixed]
