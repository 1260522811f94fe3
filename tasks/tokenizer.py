"""Make the vocabulary: train a byte-level BPE, or take a known one, every character of the corpus, or an earlier one.

In: Corpus. Out: Tokenizer, a Hugging Face tokenizer folder plus `ranks.tiktoken` (gpt/tokenizer.py writes it).
Method: tasks/bpe.py trains, tasks/openai.py has OpenAI's; special and chat tokens follow the last rank.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
from pydantic import Field, model_validator

from gpt.tokenizer import LETTERS, SPECIALS, reserve
from gpt.tokenizer import Tokenizer as Loaded
from tasks.artifacts import Config, Corpus, Metrics, Tokenizer
from tasks.bpe import train_bpe
from tasks.corpus import documents
from tasks.fertility import fertility
from tasks.openai import vocabulary
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
    pattern: Literal["gpt2", "cl100k_base", "o200k_base"] = "gpt2"
    """How a trained bpe cuts text into words: gpt2 loads everywhere and trains fastest; the others keep at most three
    digits together, and o200k_base also cuts before a capital and keeps the marks of many scripts with the letters."""
    sample_mb: int = Field(100, ge=1)
    """Train the bpe on about this many MB, spread evenly over the corpus."""
    ref: str | None = None
    """Take the tokenizer of this artifact (tokenizer:KEY) or folder, ours or a released model's, ids and all."""

    @model_validator(mode="after")
    def _every_setting_counts(self) -> "Vocabulary":
        if (self.ref or self.name != "bpe") and (self.vocab_size, self.pattern, self.sample_mb) != (4096, "gpt2", 100):
            raise ValueError("vocab_size, pattern and sample_mb are for a bpe trained here; drop them, or name and ref")
        return self

    def refs(self) -> dict[str, str]:
        """The tokenizer that this one repeats."""
        return {"ref": self.ref} if self.ref else {}

    def outside(self) -> dict[str, str]:
        """The content of the tokenizer that `ref` names (what OpenAI's names mean, tiktoken checks by sha256)."""
        return {"ref": self.referred().digest} if self.ref else {}

    def referred(self) -> Loaded:
        """The tokenizer in the folder that `ref` names, an artifact's own or inside a checkpoint."""
        folder = folder_of(self.ref or "")
        return Loaded.load(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)


@stage(Tokenizer, version="2")
def tokenizer(out: Path, config: Vocabulary, corpus: Corpus) -> Metrics:
    """Train a byte-level BPE on the corpus, or take gpt2, cl100k_base, o200k_base, characters, or an earlier one."""
    made = _make(config, corpus)
    made.save(out)
    return fertility(out, made, sample(corpus, 2, unseen=True))


def _make(config: Vocabulary, corpus: Corpus) -> Loaded:
    if config.ref:
        return config.referred()
    if config.name == "bpe":
        return _trained(config, sample(corpus, config.sample_mb))
    if config.name == "characters":
        ranks = character_ranks(text for _, text, _ in documents(corpus.parts))
        return Loaded(ranks, "characters", reserve(ranks))
    known = vocabulary(config.name)
    return Loaded(known["mergeable_ranks"], config.name, reserve(known["mergeable_ranks"], known["special_tokens"]))


def _trained(config: Vocabulary, texts: Iterable[str]) -> Loaded:
    ranks = train_bpe(texts, config.vocab_size - len(SPECIALS), config.pattern)
    if (made := len(ranks) + len(SPECIALS)) < config.vocab_size:
        say(f"the corpus is too small for {config.vocab_size:,} tokens: {made:,} made")
    return Loaded(ranks, config.pattern, reserve(ranks))


def sample(corpus: Corpus, megabytes: float, unseen: bool = False) -> Iterator[str]:
    """About so many MB of texts: all of them, or the documents of the highest lots (validation has the lowest).

    `unseen` takes the lowest instead: text that a capped sample had no part of.
    """
    files = [pq.read_metadata(path) for path in corpus.parts]
    columns = [f.row_group(g).column(c) for f in files for g in range(f.num_row_groups) for c in range(f.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")
    share = min(1.0, megabytes * 1e6 / max(1, size))
    few = sum(f.num_rows for f in files) < FEW  # then one end of each document, for there may be just one
    for name, text, _ in documents(corpus.parts):
        if few:
            cut = int(len(text) * share)
            yield text[len(text) - cut :] if unseen else text[:cut]
        elif lot(name) < share if unseen else lot(name) >= 1 - share:
            yield text


def character_ranks(texts: Iterable[str]) -> dict[bytes, int]:
    """The 256 bytes, then every character of the texts after the prefixes that BPE builds it from."""
    spelled = [letter.encode() for letter in sorted(set().union(*progress(texts, "documents")))]
    tokens = [bytes([byte]) for byte in LETTERS] + [word[:n] for word in spelled for n in range(2, len(word) + 1)]
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}
