"""Text from a model: batched generation with a key-value cache, and nanoGPT's sample.py from any checkpoint.

In: prompts as token ids, or a checkpoint folder and a start text. Out: new token ids, or samples as text.
When a row fills the context, its last half is kept and read again: one prefill for every half window.
"""

import argparse
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gpt.checkpoint import load_model
from gpt.hf import from_hf
from gpt.model import GPT, Cache
from gpt.tokenizer import Tokenizer

# B batch, T time, C channels, V vocabulary


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    stop: Collection[int] = (),
    heard: Callable[[int, int], object] = lambda row, token: None,
) -> list[list[int]]:
    """Continue each prompt by up to `max_new_tokens` ids; a row ends with the first id in `stop`, which is kept.

    Temperature 0 takes the likeliest token; top_k 0 and top_p 1 keep all. A row's tokens depend on its own prompt and
    seed (default: its number), not on its neighbours; training's random numbers are not touched. `heard` is told each
    token of each row as it comes.
    """
    assert all(prompts), "a prompt needs at least one token, such as <|endoftext|>"
    rows, going = [list(prompt) for prompt in prompts], [True] * len(prompts)
    cache = Cache(model.config, len(rows), model.wte.weight.device)
    dice = [torch.Generator().manual_seed(seed) for seed in seeds or range(len(rows))]
    draws_BT = 1 - torch.stack([torch.rand(max_new_tokens, generator=own, dtype=torch.float64) for own in dice])
    for draw_B in draws_BT.T:  # each from (0, 1]
        logits_BV = _read(model.eval(), rows, cache)
        chosen_B = _choose(logits_BV, draw_B.to(logits_BV.device), temperature, top_k, top_p)
        for number, token in enumerate(chosen_B.tolist()):
            if going[number]:
                rows[number].append(token)
                heard(number, token)
                going[number] = token not in stop
        if not any(going):
            break
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def window_start(length: int, context: int) -> int:
    """Where the window of a row of `length` tokens begins: it moves on by half a context each time it is full."""
    stride = context + 1 - context // 2
    return -(-max(0, length - context) // stride) * stride


def _read(model: GPT, rows: list[list[int]], cache: Cache) -> Tensor:
    """Logits_BV after each row's last token: read it alone where the cache holds the rest, else the whole window."""
    windows = [row[window_start(len(row), model.config.context) :] for row in rows]
    full_B = torch.tensor([len(window) for window in windows], device=cache.length_B.device)
    if bool(((cache.length_B <= full_B) & (full_B <= cache.length_B + 1)).all()):
        windows, cache.length_B = [window[-1:] for window in windows], full_B - 1
    else:
        cache.length_B = torch.zeros_like(full_B)
    time = max(map(len, windows))
    ids_BT = torch.tensor([window + [0] * (time - len(window)) for window in windows], device=full_B.device)
    stream_BTC, last_B = model.stream(ids_BT, cache), full_B - cache.length_B - 1
    cache.length_B = full_B
    return model.logits(stream_BTC[torch.arange(len(rows), device=full_B.device), last_B])


def _choose(logits_BV: Tensor, draw_B: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """One token a row: the first whose cumulative probability reaches the row's draw."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    if top_k:
        least_B1 = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    p_BV = (logits_BV / temperature).softmax(-1)
    if top_p < 1:  # keep the likeliest tokens until they hold top_p together (Holtzman 2019)
        sorted_BV, order_BV = p_BV.sort(descending=True)
        beyond_BV = sorted_BV.cumsum(-1) - sorted_BV >= top_p
        p_BV = p_BV.masked_fill(beyond_BV.scatter(1, order_BV, beyond_BV), 0.0)
    reach_BV = p_BV.cumsum(-1, dtype=torch.float64)
    return (reach_BV < draw_B[:, None] * reach_BV[:, -1:]).sum(-1)


def sample(
    checkpoint: Path,
    start: str = "\n",
    num_samples: int = 10,
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int = 200,
    top_p: float = 1.0,
    seed: int = 1337,
    device: str = "auto",
) -> Iterator[str]:
    """Start and completion of each sample; an empty start means a new document. Up to 16 samples run as one batch."""
    model, tokenizer = load(checkpoint, pick_device(device))
    prompt = tokenizer.encode(start) or [tokenizer.eot]
    for begin in range(0, num_samples, 16):
        seeds = range(seed + begin, seed + min(begin + 16, num_samples))
        prompts = [prompt] * len(seeds)
        rows = generate(model, prompts, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seeds=seeds)
        yield from (start + tokenizer.decode(row) for row in rows)


def load(folder: Path, device: str) -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of a Checkpoint, or of a Hugging Face folder that `gpt.hf` reads."""
    if (folder / "tokenizer").is_dir():
        return load_model(folder, device), Tokenizer.load(folder / "tokenizer")
    return from_hf(folder).to(device), Tokenizer.load(folder)


def pick_device(device: str) -> str:
    """auto is the GPU where torch sees one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def main() -> None:
    """`python -m gpt.generate CHECKPOINT --start ROMEO:`: nanoGPT's sample.py, in its output form."""
    parser = argparse.ArgumentParser(prog="python -m gpt.generate", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path)
    for name, knob in list(inspect.signature(sample).parameters.items())[1:]:
        parser.add_argument("--" + name.replace("_", "-"), type=type(knob.default), default=knob.default)
    for text in sample(**vars(parser.parse_args())):
        print(text, "-" * 15, sep="\n", flush=True)


if __name__ == "__main__":
    main()
