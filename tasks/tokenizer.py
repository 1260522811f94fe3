"""Make the vocabulary: train a byte-level BPE, or take a known one, every character of the corpus, or an earlier one.

In: Corpus. Out: Tokenizer, a Hugging Face tokenizer folder plus `ranks.tiktoken` (gpt/tokenizer.py writes it).
Method: HF `tokenizers`' BPE trainer on GPT-2's split; special and chat tokens follow the last rank.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
from pydantic import Field, model_validator
from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS
from tokenizers import Tokenizer as HuggingFace
from tokenizers import models, pre_tokenizers, trainers

from gpt.errors import UserError
from gpt.tokenizer import LETTERS, SPECIALS, reserve
from gpt.tokenizer import Tokenizer as Loaded
from tasks.artifacts import Config, Corpus, Metrics, Tokenizer
from tasks.corpus import documents
from tasks.runtime import progress, say
from tasks.shard import FEW, lot
from tasks.stage import stage
from tasks.store import folder_of


class Vocabulary(Config):
    """Which tokens the model reads and writes."""

    name: Literal["bpe", "gpt2", "cl100k_base", "o200k_base", "characters"] = "bpe"
    """bpe trains on the corpus; gpt2, cl100k_base and o200k_base are OpenAI's; characters makes each one a token."""
    vocab_size: int = Field(4096, ge=256 + len(SPECIALS))
    """Tokens of a trained bpe, special ones included; a small corpus may yield fewer."""
    sample_mb: int = Field(100, ge=1)
    """Train the bpe on about this many MB, spread evenly over the corpus."""
    ref: str | None = None
    """Take the tokenizer of this artifact (tokenizer:KEY) or folder instead, ids and all."""

    @model_validator(mode="after")
    def _every_setting_counts(self) -> "Vocabulary":
        if (self.ref or self.name != "bpe") and (self.vocab_size, self.sample_mb) != (4096, 100):
            raise ValueError("vocab_size and sample_mb are for a bpe trained here; drop them, or drop name and ref")
        return self

    def refs(self) -> dict[str, str]:
        """The tokenizer that this one repeats."""
        return {"ref": self.ref} if self.ref else {}

    def outside(self) -> dict[str, str]:
        """The content of the tokenizer that `ref` names (what OpenAI's names mean, tiktoken checks by sha256)."""
        return {"ref": Loaded.load(_folder(self.ref)).digest} if self.ref else {}


@stage(Tokenizer, version="1")
def tokenizer(out: Path, config: Vocabulary, corpus: Corpus) -> Metrics:
    """Train a byte-level BPE on the corpus, or take gpt2, cl100k_base, o200k_base, characters, or an earlier one."""
    made = _make(config, corpus)
    made.save(out)
    texts = list(sample(corpus, 2))
    seen = Counter(token for text in texts for token in made.encode(text))
    each, unseen = sum(len(text.encode()) for text in texts) / max(1, seen.total()), len(made.ranks) - len(seen)
    return {"data/bytes_per_token": each, "data/vocab_size": made.vocab_size, "data/never_seen_tokens": unseen}


def _make(config: Vocabulary, corpus: Corpus) -> Loaded:
    if config.ref:
        return Loaded.load(_folder(config.ref))
    if config.name == "bpe":
        ranks = train_bpe(sample(corpus, config.sample_mb), config.vocab_size - len(SPECIALS))
        return Loaded(ranks, "gpt2", reserve(ranks))
    if config.name == "characters":
        ranks = character_ranks(text for _, text, _ in documents(corpus.parts))
        return Loaded(ranks, "characters", reserve(ranks))
    known = _openai(config.name)
    return Loaded(known["mergeable_ranks"], config.name, reserve(known["mergeable_ranks"], known["special_tokens"]))


def sample(corpus: Corpus, megabytes: float) -> Iterator[str]:
    """About so many MB of texts: all of them, or the documents of the highest lots (validation has the lowest)."""
    files = [pq.read_metadata(path) for path in corpus.parts]
    columns = [f.row_group(g).column(c) for f in files for g in range(f.num_row_groups) for c in range(f.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")
    share = min(1.0, megabytes * 1e6 / max(1, size))
    few = sum(f.num_rows for f in files) < FEW  # then the head of each document, for there may be just one
    for name, text, _ in documents(corpus.parts):
        if few or lot(name) >= 1 - share:
            yield text[: int(len(text) * share)] if few else text


def train_bpe(texts: Iterable[str], size: int) -> dict[bytes, int]:
    """Ranks of a BPE with `size` tokens (fewer when no pair occurs twice); the same texts give the same ranks."""
    model = HuggingFace(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # No special tokens for the trainer: it would give them the first ids, which in GPT-2's order are the bytes'.
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False, initial_alphabet=letters)
    model.train_from_iterator(progress(texts, "documents"), trainer)
    byte_of = {letter: byte for byte, letter in LETTERS.items()}
    ranks = {bytes(byte_of[letter] for letter in token): rank for token, rank in model.get_vocab().items()}
    if len(ranks) < size:
        say(f"the corpus is too small for {size + len(SPECIALS):,} tokens: {len(ranks) + len(SPECIALS):,} made")
    return ranks


def character_ranks(texts: Iterable[str]) -> dict[bytes, int]:
    """The 256 bytes, then every character of the texts after the prefixes that BPE builds it from."""
    spelled = [letter.encode() for letter in sorted(set().union(*progress(texts, "documents")))]
    tokens = [bytes([byte]) for byte in LETTERS] + [word[:n] for word in spelled for n in range(2, len(word) + 1)]
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}


def _openai(name: str) -> dict:
    """Ranks and special tokens from tiktoken's cache folder or the network, checked by sha256."""
    file = "r50k_base" if name == "gpt2" else name  # the same ranks as gpt2's two files
    url = f"https://openaipublic.blob.core.windows.net/encodings/{file}.tiktoken"
    say(f"looking for {file} in tiktoken's cache, then on the network")
    try:
        return ENCODING_CONSTRUCTORS[file]()
    except (OSError, ValueError) as error:
        what = f"tokenizer.name={name}: no way to {url} ({type(error).__name__})"
        place = f"$TIKTOKEN_CACHE_DIR/{hashlib.sha1(url.encode()).hexdigest()}"
        raise UserError(f"{what}; save it as {place}") from error


def _folder(ref: str) -> Path:
    """The tokenizer folder that a REF or path names, be it an artifact of its own or inside a checkpoint."""
    folder = folder_of(ref)
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
