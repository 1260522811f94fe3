"""Text from a model: the engine behind sample, chat, evaluation and reinforcement, and nanoGPT's sample.py.

In: prompts as token ids, or a checkpoint folder and a start text. Out: new token ids, or samples as text.
Rows of any length run as one batch (gpt/decode.py) and leave it when they end. When a row fills the context, its last
half is kept and read again: one reading for every half window. Top-p after Holtzman 2019, min-p after Nguyen 2024, the
penalty after Keskar 2019, all as transformers has them.
"""

import argparse
import codecs
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.checkpoint import load_model
from gpt.decode import Decoder
from gpt.errors import UserError
from gpt.hf import start_from
from gpt.hfconfig import config_in
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

# B batch, V vocabulary, T time


class Knobs(NamedTuple):
    """How tokens are drawn; the defaults draw from the model's own probabilities."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@torch.inference_mode()
def generate(
    model: GPT | Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seeds: Sequence[int] | None = None,
    stop: Collection[int] = (),
    heard: Callable[[int, int], object] = lambda row, token: None,
) -> list[list[int]]:
    """Continue each prompt by up to `max_new_tokens` ids; a row ends with the first id in `stop`, which is kept.

    Temperature 0 takes the likeliest token; top_k 0, top_p 1 and min_p 0 keep all; a penalty above 1 makes the tokens
    of the row, prompt included, less likely. A row's tokens depend on its own prompt and seed (default: its number),
    not on its neighbours; training's random numbers are not touched. `heard` is told each token of each row as it
    comes, and ends the row by answering True.
    """
    assert all(prompts), "a prompt needs at least one token, such as <|endoftext|>"
    knobs = Knobs(temperature, top_k, top_p, min_p, repetition_penalty)
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    rows, live, device = [list(prompt) for prompt in prompts], list(range(len(prompts))), decoder.wte.device
    context, dice = decoder.config.context, seeds or range(len(rows))
    draws_TB = _draws(dice, max_new_tokens).to(device)
    cache = decoder.cache(len(rows), min(context, max(map(len, rows), default=0) + max_new_tokens))
    ids_B = seen_BV = None
    for number in range(max_new_tokens if rows else 0):
        if ids_B is None or cache.used == cache.slots:
            windows = [rows[row][window_start(len(rows[row]), context) :] for row in live]
            decoder.read([window[:-1] for window in windows], cache)
            ids_B = torch.tensor([window[-1] for window in windows], device=device)
        if repetition_penalty != 1:
            seen_BV = _seen(rows, decoder) if seen_BV is None else seen_BV.scatter_(1, ids_B[:, None], True)
        ids_B = choose(decoder.step(ids_B, cache), draws_TB[number], knobs, seen_BV)
        ended = []
        for place, (row, token) in enumerate(zip(live, ids_B.tolist(), strict=True)):
            rows[row].append(token)
            if heard(row, token) is True or token in stop:
                ended.append(place)
        if ended:
            if len(ended) == len(live):
                break
            stay = _close_up(len(live), ended)
            live, ids_B, draws_TB = [live[place] for place in stay], ids_B[stay], draws_TB[:, stay]
            seen_BV = None if seen_BV is None else seen_BV[stay]
            cache.keep(stay)
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def window_start(length: int, context: int) -> int:
    """Where the window of a row of `length` tokens begins: it moves on by half a context each time it is full."""
    stride = context + 1 - context // 2
    return -(-max(0, length - context) // stride) * stride


def _draws(seeds: Sequence[int], count: int) -> Tensor:
    """Each row's random numbers, from (0, 1]: float64 [T, B]."""
    dice = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = [torch.rand(count, generator=own, dtype=torch.float64) for own in dice]
    return 1 - torch.stack(drawn, 1) if drawn else torch.empty(count, 0)


def _seen(rows: list[list[int]], decoder: Decoder) -> Tensor:
    seen_BV = torch.zeros(len(rows), decoder.vocab_size, dtype=torch.bool)
    for row, ids in enumerate(rows):
        seen_BV[row, ids] = True
    return seen_BV.to(decoder.wte.device)


def _close_up(count: int, ended: list[int]) -> list[int]:
    """Which place each place takes over, so that those that ended are gone and few move: the last fill the gaps."""
    stay = list(range(count))
    for place in reversed(ended):
        stay[place] = stay[-1]
        stay.pop()
    return stay


def choose(logits_BV: Tensor, draw_B: Tensor, knobs: Knobs, seen_BV: Tensor | None = None) -> Tensor:
    """One token a row: the first, in the order of ids, whose cumulative probability reaches the row's draw."""
    temperature, top_k, top_p, min_p, penalty = knobs
    if seen_BV is not None:
        lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
        logits_BV = torch.where(seen_BV, lowered_BV, logits_BV)
    if temperature == 0:
        return logits_BV.argmax(-1)
    if 0 < top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    p_BV = (logits_BV if temperature == 1 else logits_BV / temperature).softmax(-1)
    if top_p < 1:
        p_BV = _nucleus(p_BV, top_p)
    if min_p > 0:
        p_BV = p_BV.masked_fill(p_BV < min_p * p_BV.amax(-1, keepdim=True), 0.0)
    if p_BV.shape[-1] <= 2 * BLOCK:
        return _reach(p_BV.cumsum(-1, dtype=torch.float64), draw_B[:, None])
    blocks_BNV = F.pad(p_BV, (0, -p_BV.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    sums_BN, rows_B = blocks_BNV.sum(-1, dtype=torch.float64).cumsum(-1), torch.arange(len(p_BV), device=p_BV.device)
    block_B = _reach(sums_BN, draw_B[:, None])
    inside_BV = blocks_BNV[rows_B, block_B].cumsum(-1, dtype=torch.float64)
    left_B = inside_BV[:, -1] - (sums_BN[rows_B, block_B] - draw_B * sums_BN[:, -1])
    return block_B * BLOCK + _reach(inside_BV, (left_B / inside_BV[:, -1]).clamp(1e-30, 1)[:, None])


BLOCK = 256
"""Large vocabularies are searched block by block: one cumulative sum over 50,000 numbers is a seventh of a token."""


def _nucleus(p_BV: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens until they hold top_p together; all are sorted only if the first thousand do not."""
    for count in (1024, p_BV.shape[-1]):
        ranked_BK, order_BK = p_BV.topk(min(count, p_BV.shape[-1]))
        before_BK = ranked_BK.cumsum(-1) - ranked_BK
        if bool((before_BK[:, -1] >= top_p).all()):
            break
    return torch.zeros_like(p_BV).scatter(1, order_BK, ranked_BK * (before_BK < top_p))


def _reach(sums_BV: Tensor, share_B1: Tensor) -> Tensor:
    """The first place where a cumulative sum reaches its share, from (0, 1], of all; it adds something, always."""
    return (sums_BV < share_B1 * sums_BV[:, -1:]).sum(-1)


class Speech:
    """The text of one row as its tokens come: whole characters, and nothing of a stop string.

    `hear` takes a token and answers whether the row has said a stop string; `told` is the text up to there. `piece` is
    told it in pieces, held back while they may still become a stop string or lack bytes of a character.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), piece: Callable[[str], object] = lambda text: None
    ) -> None:
        self.tokenizer, self.stop, self.piece = tokenizer, [text for text in stop if text], piece
        self.told, self.held, self.utf8 = "", "", codecs.getincrementaldecoder("utf-8")("replace")

    def hear(self, token: int) -> bool:
        """Take the next token."""
        self.held += self.utf8.decode(self.tokenizer.bytes_of(token))
        found = [at for at in map(self.held.find, self.stop) if at >= 0]
        if found:
            self.held = self.held[: min(found)]
            self.end()
            return True
        self._tell(len(self.held) - max((_begun(self.held, text) for text in self.stop), default=0))
        return False

    def end(self) -> str:
        """Tell what was held back; the whole text, without a last character that lacks bytes."""
        self._tell(len(self.held))
        return self.told

    def _tell(self, count: int) -> None:
        if count:
            self.piece(self.held[:count])
        self.told, self.held = self.told + self.held[:count], self.held[count:]


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def sample(
    checkpoint: Path,
    start: str = "\n",
    num_samples: int = 10,
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int = 200,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 1337,
    device: str = "auto",
    weights: str = "float32",
) -> Iterator[str]:
    """Start and completion of each sample, up to 16 of them as one batch; `FILE:path` starts with a file's text.

    An empty start means a new document. As in nanoGPT a sample goes on after the end of a document, unless one of the
    `stop` strings is `<|endoftext|>`; it ends before the first of them.
    """
    decoder, tokenizer = laid_out(checkpoint, device, weights)
    start = Path(start[5:]).read_text(encoding="utf-8") if start.startswith("FILE:") else start
    prompt = tokenizer.encode(start) or [tokenizer.eot]
    for begin in range(0, num_samples, 16):
        seeds = range(seed + begin, seed + min(begin + 16, num_samples))
        said = [Speech(tokenizer, stop) for _ in seeds]
        generate(decoder, [prompt] * len(seeds), max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                 min_p=min_p, repetition_penalty=repetition_penalty, seeds=seeds,
                 heard=lambda row, token, said=said: said[row].hear(token))  # fmt: skip
        yield from (start + one.end() for one in said)


def laid_out(folder: Path, device: str, weights: str) -> tuple[Decoder, Tokenizer]:
    """A folder's model ready to write, and its tokenizer."""
    model, tokenizer = load(folder, pick_device(device))
    return Decoder(model, weights), tokenizer


def load(folder: Path, device: str) -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of a Checkpoint, or of a Hugging Face folder that `gpt.hf` reads."""
    if (folder / "tokenizer").is_dir():
        return load_model(folder, device), Tokenizer.load(folder / "tokenizer")
    words = Tokenizer.load(folder)
    return start_from(folder, config_in(folder)[0], words.vocab_size).to(device), words


def pick_device(device: str) -> str:
    """auto is the GPU where torch sees one."""
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UserError("device is cuda, but torch sees no GPU here; leave it out to take what is there")
    return ("cuda" if there else "cpu") if device == "auto" else device


def main() -> None:
    """`python -m gpt.generate CHECKPOINT --start ROMEO:`: nanoGPT's sample.py, in its output form."""
    parser = argparse.ArgumentParser(prog="python -m gpt.generate", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path)
    for name, knob in list(inspect.signature(sample).parameters.items())[1:]:
        many: dict[str, Any] = {"nargs": "*"} if name == "stop" else {"type": type(knob.default)}
        parser.add_argument("--" + name, "--" + name.replace("_", "-"), default=knob.default, **many)
    for text in sample(**vars(parser.parse_args())):
        print(text, "-" * 15, sep="\n", flush=True)


if __name__ == "__main__":
    main()
