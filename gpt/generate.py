"""Text from a model: batched generation with a key-value cache, and nanoGPT's sample.py from any checkpoint.

In: prompts as token ids, or a checkpoint folder and a start text. Out: new token ids, or samples as text.
When a row fills the context, its last half is kept and read again: one prefill per half window (pretrain notes).
"""

import argparse
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gpt.checkpoint import load_model
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
    top_k: int | None = None,
    top_p: float | None = None,
    seeds: Sequence[int] | None = None,
    stop: Collection[int] = (),
) -> list[list[int]]:
    """Continue each prompt by up to `max_new_tokens`; a row ends with the first id in `stop`, which is kept.

    Temperature 0 takes the most likely token. A row's tokens depend on its own prompt and seed, not on its neighbours.
    """
    model.eval()
    rows = [list(prompt) for prompt in prompts]
    assert all(rows), "a prompt needs at least one token, such as <|endoftext|>"
    draw_BT = torch.stack([_uniform(seed, max_new_tokens) for seed in seeds or range(len(rows))])
    open_rows = [max_new_tokens > 0] * len(rows)
    cache = Cache(model.config, len(rows), model.wte.weight.device)
    for t in range(max_new_tokens):
        logits_BV = _read(model, rows, cache)
        chosen = _choose(logits_BV, draw_BT[:, t].to(logits_BV.device), temperature, top_k, top_p).tolist()
        for row, token in enumerate(chosen):
            if open_rows[row]:
                rows[row].append(token)
                open_rows[row] = token not in stop
        if not any(open_rows):
            break
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def window_start(length: int, context: int) -> int:
    """Where the window of a row of `length` tokens begins: it moves on by half a context each time it is full."""
    stride = context + 1 - context // 2
    return -(-max(0, length - context) // stride) * stride


def _read(model: GPT, rows: list[list[int]], cache: Cache) -> Tensor:
    """Logits_BV after each row's last token: read it alone where the cache holds the rest, else the whole window."""
    context, device = model.config.context, model.wte.weight.device
    starts = [window_start(len(row), context) for row in rows]
    full_B = torch.tensor([len(row) - start for row, start in zip(rows, starts, strict=True)], device=device)
    if bool((cache.length_B + 1 >= full_B).all() & (cache.length_B <= full_B).all()):
        cache.length_B = full_B - 1
        ids_B1 = torch.tensor([row[-1:] for row in rows], device=device)
        last_BC = model.stream(ids_B1, cache)[:, -1]
    else:
        windows = [row[start:] for row, start in zip(rows, starts, strict=True)]
        longest = max(map(len, windows))
        cache.length_B = torch.zeros_like(full_B)
        ids_BT = torch.tensor([window + [0] * (longest - len(window)) for window in windows], device=device)
        last_BC = model.stream(ids_BT, cache)[torch.arange(len(rows), device=device), full_B - 1]
    cache.length_B = full_B
    return model.logits(last_BC)


def _choose(logits_BV: Tensor, draw_B: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """One token a row: the first whose cumulative probability reaches the row's draw from (0, 1]."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV / temperature
    if top_k is not None:
        least_B1 = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    p_BV = logits_BV.softmax(-1)
    if top_p is not None:  # keep the likeliest tokens until they hold top_p together (Holtzman 2019)
        sorted_BV, order_BV = p_BV.sort(descending=True)
        beyond_BV = sorted_BV.cumsum(-1) - sorted_BV >= top_p
        p_BV = p_BV.masked_fill(beyond_BV.scatter(1, order_BV, beyond_BV), 0.0)
    reach_BV = p_BV.cumsum(-1, dtype=torch.float64)
    return (reach_BV < draw_B[:, None] * reach_BV[:, -1:]).sum(-1)


def _uniform(seed: int, count: int) -> Tensor:
    """Draws from (0, 1] of the row's own generator: training's random numbers are not touched."""
    return 1 - torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample(
    checkpoint: Path,
    start: str = "\n",
    num_samples: int = 10,
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = 200,
    top_p: float | None = None,
    seed: int = 1337,
    device: str = "auto",
) -> Iterator[str]:
    """Start and completion of each sample; an empty start means a new document. Up to 16 samples run as one batch."""
    device = pick_device(device)
    tokenizer, model = Tokenizer.load(checkpoint / "tokenizer"), load_model(checkpoint, device)
    prompt = tokenizer.encode(start) or [tokenizer.eot]
    for begin in range(0, num_samples, 16):
        seeds = range(seed + begin, seed + min(begin + 16, num_samples))
        rows = generate(
            model, [prompt] * len(seeds), max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seeds=seeds
        )
        yield from (start + tokenizer.decode(row) for row in rows)


def pick_device(device: str) -> str:
    """auto is the GPU where torch sees one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def main() -> None:
    """`python -m gpt.generate CHECKPOINT --start ROMEO:`: nanoGPT's sample.py, in its output form."""
    parser = argparse.ArgumentParser(prog="python -m gpt.generate", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path)
    kinds = {"start": str, "num_samples": int, "max_new_tokens": int, "top_k": int, "seed": int, "device": str}
    for name, kind in (kinds | {"temperature": float, "top_p": float}).items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=argparse.SUPPRESS)
    for text in sample(**vars(parser.parse_args())):
        print(text, "-" * 15, sep="\n", flush=True)


if __name__ == "__main__":
    main()
