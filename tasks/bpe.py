"""Train a byte-level BPE: Hugging Face's trainer, or gigatoken's where it is installed and makes the same merges.

In: texts, how many tokens, the pattern that cuts them. Out: ranks (bytes to id), the same whichever trainer made them.
Method: Sennrich et al. (2016) on bytes, as GPT-2; equal pairs go by Hugging Face's order, which gigatoken follows.
gigatoken (`gptloom[fast]`) must first make Hugging Face's merges of the head of the corpus, and its last merge must
have joined at least two pairs, as Hugging Face's trainer is told; otherwise that one does the work, and it is said why.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import tiktoken
from tokenizers import Tokenizer as HuggingFace
from tokenizers import models, pre_tokenizers, trainers

from gpt.errors import UserError
from gpt.tokenizer import LETTERS, PATTERNS, grouped, splitter
from tasks.gigabpe import SEPARATOR
from tasks.runtime import progress, runtime, say
from tasks.trainer import launch

Ranks = dict[bytes, int]
HEAD_BYTES, HEAD_SIZE = 1_000_000, 1_000
"""The head of the corpus on which the fast trainer must equal the other, and how many tokens it makes of it."""
WORTH_BYTES = 4_000_000
"""Below this Hugging Face's takes two seconds."""


def train_bpe(texts: Iterable[str], size: int, pattern: str = "gpt2") -> Ranks:
    """Ranks of a BPE with `size` tokens (fewer when no pair occurs twice); the same texts give the same ranks."""
    texts = progress(texts, "documents")
    if pattern != "gpt2" or not runtime().fast or not find_spec("gigatoken"):
        return plain(texts, size, pattern)
    with TemporaryDirectory(prefix="gptloom-bpe-") as folder:
        file = Path(folder) / "texts"
        with file.open("wb") as sink:
            sink.writelines(SEPARATOR * (n > 0) + text.encode() for n, text in enumerate(texts))
        try:
            if file.stat().st_size >= WORTH_BYTES:
                return fast(file, size)
        except (Unfit, RuntimeError, UserError) as error:
            say(f"Hugging Face's trainer does it: {str(error).splitlines()[0]}")
        return plain(progress(saved(file), "documents"), size, pattern)


class Unfit(Exception):
    """Why the fast trainer's merges would not be, or are not, those of Hugging Face's."""


def plain(texts: Iterable[str], size: int, pattern: str) -> Ranks:
    """By Hugging Face's trainer."""
    model = HuggingFace(models.BPE())
    model.pre_tokenizer = splitter(pattern)
    # No special tokens for the trainer: it would give them the first ids, which in GPT-2's order are the bytes'.
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False, initial_alphabet=letters)
    model.train_from_iterator(texts, trainer)
    byte_of = {letter: byte for byte, letter in LETTERS.items()}
    return {bytes(byte_of[letter] for letter in token): rank for token, rank in model.get_vocab().items()}


def fast(file: Path, size: int) -> Ranks:
    """By gigatoken, for GPT-2's pattern; Unfit when it is not, or cannot be shown to be, what `plain` would make."""
    head = file.with_name("head")
    with file.open("rb") as source:
        begin = source.read(HEAD_BYTES)
    head.write_bytes(begin.rpartition(SEPARATOR)[0] or begin.decode(errors="ignore").encode())
    few = min(size, HEAD_SIZE)
    if by_gigatoken(head, few) != plain(saved(head), few, "gpt2"):
        raise Unfit("gigatoken makes other merges of the head of the corpus")
    say(f"gigatoken makes Hugging Face's merges of the head; it trains on all {file.stat().st_size / 1e6:,.0f} MB")
    ranks = by_gigatoken(file, size)
    if len(ranks) < size or not twice(list(ranks)[-1], ranks, saved(file)):
        raise Unfit("the corpus is so small that pairs which occur once would be merged")
    return ranks


def by_gigatoken(file: Path, size: int) -> Ranks:
    """Bytes in GPT-2's order, then gigatoken's merges."""
    merges, limit_s = file.with_name("merges.json"), 60 + file.stat().st_size // 1_000_000
    launch([sys.executable, "-m", "tasks.gigabpe", str(file), str(size), str(limit_s), str(merges)])
    joined = (bytes(left) + bytes(right) for left, right in json.loads(merges.read_text()))
    return {token: rank for rank, token in enumerate(dict.fromkeys([*(bytes([byte]) for byte in LETTERS), *joined]))}


def twice(token: bytes, ranks: Ranks, texts: Iterable[str]) -> bool:
    """Whether a token occurs at least twice; merges come with falling counts, so if the last does, all do."""
    bpe = tiktoken.Encoding("new", pat_str=grouped(PATTERNS["gpt2"]), mergeable_ranks=ranks, special_tokens={})
    near = (text for text in texts if token in text.encode())
    found = (1 for text in near for made in bpe.encode_ordinary(text) if made == ranks[token])
    return sum(islice(found, 2)) == 2


def saved(file: Path) -> Iterator[str]:
    """The texts of a file, a few MB in memory at a time."""
    rest = b""
    with file.open("rb") as source:
        while block := source.read(1 << 22):
            *whole, rest = (rest + block).split(SEPARATOR)
            yield from map(bytes.decode, whole)
    yield rest.decode()
