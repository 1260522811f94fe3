"""Text to token ids and back: byte-level BPE, run by tiktoken, and the Hugging Face files that mean the same.

In: a folder with `ranks.tiktoken` and `tokenizer.json`, or a released model's with the latter alone. Out: `Tokenizer`;
its `save` writes the former kind.
Method: GPT-2's byte-level BPE; a merge's priority is the id it makes, so ranks and merges tell the same (tiktoken).
"""

import hashlib
import json
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Collection, Iterable
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HuggingFace

from gpt.chat import TEMPLATE
from gpt.errors import UserError

EOT, END = "<|endoftext|>", "<|end|>"
SPECIALS = (EOT, "<|system|>", "<|user|>", "<|assistant|>", END)

_UP, _LOW, _TAIL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# How text is cut before BPE. Each pattern has two spellings, possessive and plain, tested to cut alike. tokenizer.json
# needs the plain one: oniguruma reads a possessive `{1,3}+` as a repeat and glues digits, and its `$` ends any line.
# gpt2's plain one is built into Hugging Face, so here is OpenAI's. tiktoken gets a third, made by `grouped`.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_base": _TAIL + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k_base": rf"[^\r\n\p{{L}}\p{{N}}]?{_UP}*{_LOW}+{_TAIL}?|[^\r\n\p{{L}}\p{{N}}]?{_UP}+{_LOW}*{_TAIL}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Qwen2 and Qwen3, read but not trained: digits one by one
    "qwen2": _TAIL + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "characters": r"[\s\S]",
}

_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
# GPT-2's letter for each byte, printable ones first; this is also the order of the byte ids in our own vocabularies.
LETTERS = dict(zip([*_PLAIN, *sorted({*range(256)} - {*_PLAIN})], map(chr, [*_PLAIN, *range(256, 324)]), strict=True))


class Tokenizer:
    """Ranks (bytes to id), a split pattern by name, and special tokens; every id below `vocab_size` is taken."""

    def __init__(self, ranks: dict[bytes, int], pattern: str, specials: dict[str, int]):
        self.ranks, self.pattern = dict(sorted(ranks.items(), key=itemgetter(1))), pattern
        self.specials = dict(sorted(specials.items(), key=itemgetter(1)))
        self.vocab_size = len(ranks) + len(specials)
        assert {*ranks.values(), *specials.values()} == set(range(self.vocab_size)), "ids have gaps or meet"
        self.eot, self.end = self.stops = specials[EOT], specials[END]
        self._lines = b"".join(b2a_base64(token, newline=False) + b" %d\n" % rank for token, rank in self.ranks.items())
        # The name of the content: equal digests, equal meaning of every id.
        self.digest = hashlib.sha256(json.dumps([PATTERNS[pattern], self.specials]).encode() + self._lines).hexdigest()
        cut = grouped(PATTERNS[pattern])
        self.bpe = tiktoken.Encoding("own", pat_str=cut, mergeable_ranks=ranks, special_tokens=specials)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read what `save` wrote, or GPT-2's or Qwen's file as released, to which our special tokens are added."""
        try:
            if (own := folder / "ranks.tiktoken").exists() or not (folder / "tokenizer.json").exists():
                lines = map(bytes.split, own.read_bytes().splitlines())
                ranks = {a2b_base64(token): int(rank) for token, rank in lines}
            else:
                ranks = {}
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
            head, model, _ = text.partition(',"model":{')  # which says once more what the ranks say, in 60 ms
            saved = json.loads(head + "}" if ranks and model else text)
            steps = saved["pre_tokenizer"].get("pretokenizers")
            spelling = steps[0]["pattern"]["Regex"] if steps else PATTERNS["gpt2"]
            pattern = {known: name for name, known in PATTERNS.items()}[spelling]
            specials = {token["content"]: token["id"] for token in saved["added_tokens"]}
            ranks = ranks or _released(saved, specials)
        except (OSError, KeyError, ValueError, TypeError) as error:
            known = "name a folder that gptloom wrote, or a GPT-2's or Qwen3's"
            raise UserError(f"{folder} is no tokenizer that can be read ({error}); {known}") from error
        return cls(ranks, pattern, reserve(ranks, specials))

    def encode(self, text: str) -> list[int]:
        """Token ids of ordinary text: `<|endoftext|>` inside it stays text; lone surrogates become U+FFFD."""
        try:
            return self.bpe.encode_ordinary(text)
        except BaseException as error:  # pyo3's PanicException: tiktoken's regex engine gives up at a million blanks
            if type(error).__name__ != "PanicException":
                raise
            return [token for piece in re.split(r"(\s{100000})", text) for token in self.bpe.encode_ordinary(piece)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens by name; bytes that are no UTF-8 become U+FFFD."""
        return self.bpe.decode([int(token) for token in ids])

    def bytes_of(self, token: int) -> bytes:
        """What one id stands for, a special token by name: a character's bytes may lie in several tokens."""
        return self.bpe.decode_single_token_bytes(token)

    def bytes_per_token(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for: int64 [vocab_size], 0 for specials (bits per byte divide by this)."""
        lengths = np.zeros(self.vocab_size, np.int64)
        lengths[list(self.ranks.values())] = [len(token) for token in self.ranks]
        return lengths

    def save(self, folder: Path) -> None:
        """Write ranks.tiktoken, chat_template.jinja and the five files of a Hugging Face tokenizer.

        eos is `<|endoftext|>`, as a base model needs; a chat model stops at `<|end|>` by its generation_config.json.
        """
        letters = {token: "".join(LETTERS[byte] for byte in token) for token in self.ranks}
        vocab = {letters[token]: rank for token, rank in self.ranks.items()}
        merges = [(letters[left], letters[right]) for left, right in ranks_to_merges(self.ranks)]
        others = [token for token in self.specials if token != EOT]
        names = {"bos_token": EOT, "eos_token": EOT, "unk_token": EOT, "additional_special_tokens": others}
        # transformers 5 ignores tokenizer.json's split under GPT2Tokenizer: only the pattern it implies may name it.
        kind = "GPT2Tokenizer" if self.pattern == "gpt2" else "PreTrainedTokenizerFast"
        config = {"tokenizer_class": kind, "add_prefix_space": False, "clean_up_tokenization_spaces": False}
        inner = {token: n for token, n in self.specials.items() if n < max(vocab.values())}  # else they are renumbered
        self._hugging_face(vocab | inner, merges).save(str(folder / "tokenizer.json"), pretty=False)
        (folder / "vocab.json").write_text(json.dumps(vocab | self.specials))
        (folder / "merges.txt").write_bytes("\n".join(["#version: 0.2", *map(" ".join, merges), ""]).encode())
        (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2))
        (folder / "tokenizer_config.json").write_text(json.dumps(config | names, indent=2))
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        (folder / "ranks.tiktoken").write_bytes(self._lines)

    def _hugging_face(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> HuggingFace:
        saved = HuggingFace(models.BPE(vocab=vocab, merges=merges))
        saved.pre_tokenizer = splitter(self.pattern)
        saved.decoder = decoders.ByteLevel()
        saved.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in self.specials])
        assert all(saved.token_to_id(token) == n for token, n in self.specials.items()), "tokenizers renumbered them"
        return saved


def grouped(pattern: str) -> str:
    """A pattern that cuts alike and that tiktoken is up to 1.3 times as fast with as with OpenAI's (docs/results).

    All that needs no look-ahead is one plain group, which its engine (fancy-regex) leaves to a DFA as a whole; else it
    backtracks through the alternatives one by one. Greedy is possessive where an alternative ends, so `++` may go.
    """
    easy, blanks, rest = pattern.partition(r"|\s+")
    return f"(?:{easy.replace('++', '+')}){blanks}{rest}" if rest else pattern


def splitter(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Hugging Face's cut of a text by one of the PATTERNS, bytes as letters."""
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def reserve(ranks: dict[bytes, int], borrowed: dict[str, int] | None = None) -> dict[str, int]:
    """Special tokens for some ranks: borrowed ones keep their ids, ours follow, each gap becomes `<|reserved_N|>`."""
    specials = dict(borrowed or {})
    for token in SPECIALS:
        specials.setdefault(token, max(*ranks.values(), *specials.values()) + 1)
    gaps = set(range(max(specials.values()))) - {*ranks.values(), *specials.values()}
    return specials | {f"<|reserved_{gap}|>": gap for gap in gaps}


def _released(saved: Any, specials: Collection[str]) -> dict[bytes, int]:
    """The ranks in a tokenizer.json that is byte-level BPE, merged in the order of its ids; ValueError for others.

    Qwen's first makes text NFC; ours takes text as it is, so that what is decoded is what was encoded.
    """
    model, steps = saved["model"], saved["pre_tokenizer"]
    last = steps["pretokenizers"][-1] if "pretokenizers" in steps else steps
    kinds = {"model": model["type"], "last step": last["type"], "normalizer": (saved["normalizer"] or {}).get("type")}
    if kinds not in [{"model": "BPE", "last step": "ByteLevel", "normalizer": name} for name in (None, "NFC")]:
        raise ValueError(f"not byte-level BPE: {kinds}")
    cuts = last is steps or (len(steps["pretokenizers"]) == 2 and steps["pretokenizers"][0]["behavior"] == "Isolated")
    if last["add_prefix_space"] or not cuts or last.get("use_regex", True) != (last is steps):
        raise ValueError(f"it cuts text in another way: {steps}")
    bytes_of = {letter: byte for byte, letter in LETTERS.items()}
    named = {token: n for token, n in model["vocab"].items() if token not in specials}
    ranks = {bytes(bytes_of[letter] for letter in token): n for token, n in named.items()}
    given = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    made = [["".join(LETTERS[byte] for byte in part) for part in pair] for pair in ranks_to_merges(ranks)]
    if given != made:
        raise ValueError("its merges are in another order than its ids")
    return ranks


def ranks_to_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that makes each token, in rank order; UserError when the ranks are no BPE vocabulary."""
    merges = []
    for token, rank in sorted(ranks.items(), key=itemgetter(1)):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            best, at = min((ranks.get(left + right, rank), n) for n, (left, right) in enumerate(pairwise(parts)))
            if best >= rank:
                raise UserError(f"token {token!r} (rank {rank}) has no merge of lower ranks: not a BPE vocabulary")
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges
