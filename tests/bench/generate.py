"""Generated tokens a CPU second: gpt/generate.py beside nanoGPT's model.generate and transformers' generate.

`python tests/bench/generate.py [--nanogpt DIR] [--rounds N] [--large]`: DIR is a checkout of nanoGPT, whose model.py
itself is run, with all rows at once and, as its sample.py does, one after the other. All sides have the same random
weights, one thread, prompts of one token, and take turns; the table has tokens a CPU second, medians of rounds.
`--large` adds GPT-2 124M (a minute a round, nanoGPT's side once), in float32 and bfloat16. nanoGPT and we write 200
tokens (100 at 124M), past the context if need be; transformers as many as GPT-2's positions allow, and we as many then.
Greedy tokens are compared.
`--quality CHECKPOINT SHARDS` prints held-out bits per byte of a checkpoint as float32, bfloat16 and int8 weights.
"""

import argparse
import functools
import importlib.util
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from gpt import decode
from gpt.config import ModelConfig
from gpt.decode import Decoder
from gpt.generate import generate, load
from gpt.heldout import HeldOut
from gpt.hf import to_hf
from gpt.model import GPT
from gpt.windows import Windows

SMALL = {"family": "gpt2", "depth": 4, "width": 128, "heads": 4}
LARGE = {"family": "gpt2", "depth": 12, "width": 768, "heads": 12, "context": 1024}
Side = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--quality", type=Path, nargs=2, metavar=("CHECKPOINT", "SHARDS"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.quality:
        return quality(*args.quality)
    print(f"{'tokens a CPU second':66}{'peer':>10}{'ours':>10}{'ratio':>8}")
    for context in (64, 256):
        model = random_model(ModelConfig(context=context, **SMALL), 65)
        for rows in (1, 10):
            compare(f"0.8M, context {context}, batch {rows}", model, rows, 200, args)
    if args.large:
        compare("124M, context 1024, batch 1", random_model(ModelConfig(**LARGE), 50257), 1, 100, args)


def random_model(config: ModelConfig, vocab_size: int) -> GPT:
    """Weights so large that greedy text is no mere repetition."""
    model = GPT(config, vocab_size).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.08)
    return model


def compare(case: str, model: GPT, rows: int, count: int, args: argparse.Namespace) -> None:
    """The lines of one case."""
    prompts, start = [[1]] * rows, torch.ones(rows, 1, dtype=torch.long)
    large, inside = model.config.width > 256, min(count, model.config.context - 1)
    draw: dict[str, Any] = {"temperature": 0.8, "top_k": 50}
    float32 = Decoder(model)

    def write(decoder: Decoder, tokens: int, **how: Any) -> Side:
        return lambda: generate(decoder, prompts, tokens, **how)

    if args.nanogpt:
        nano = nano_model(args.nanogpt, model)
        theirs = {"nanoGPT": lambda: nano.generate(start, count, **draw)}
        if rows > 1:  # its sample.py writes one sample after the other
            theirs["sample.py"] = lambda: [nano.generate(start[:1], count, **draw) for _ in range(rows)]
        forms = ("float32",) if large else ("float32", "int8")
        sides = [*theirs.values(), write(float32, count, **draw)]
        sides += [write(Decoder(model, form), count, **draw) for form in forms[1:]]
        taken_s, _ = timed(sides, 1 if large else args.rounds)
        for peer, theirs_s in zip(theirs, taken_s, strict=False):
            for form, ours_s in zip(forms, taken_s[len(theirs) :], strict=True):
                line(f"{case}, top-k: {peer}, ours {form}", rows * count, theirs_s, ours_s)
    for weights in ("float32", "bfloat16") if large else ("float32",):
        judge, ours = hugging_face(model).to(getattr(torch, weights)), Decoder(model, weights)

        def ask(judge: Any = judge, **how: Any) -> Any:
            tokens = {"max_new_tokens": inside, "min_new_tokens": inside}
            return judge.generate(start, attention_mask=torch.ones_like(start), **tokens, **how)[:, 1:].tolist()

        drawn = [functools.partial(ask, do_sample=True, **draw), write(ours, inside, **draw)]
        line(f"{case}, top-k: transformers {weights}", rows * inside, *timed(drawn, args.rounds)[0])
        greedy = [functools.partial(ask, do_sample=False), write(ours, inside, temperature=0)]
        seconds, said = timed(greedy, args.rounds)
        line(f"{case}, greedy: transformers {weights}", rows * inside, *seconds)
        right = write(float32, inside, temperature=0)()
        kept = [sum(map(common, rows_said, right)) for rows_said in said]
        print(f"    as our float32's greedy up to a row's first difference: theirs {kept[0]}, ours {kept[1]}"
              f" of {rows * inside} tokens")  # fmt: skip
    if large:
        sides = [greedy[1], write(Decoder(model, "int8"), inside, temperature=0)]
        line(f"{case}, greedy: our bfloat16, our int8", rows * inside, *timed(sides, args.rounds)[0])


def common(one: list[int], other: list[int]) -> int:
    """How many tokens two rows begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def timed(sides: list[Side], rounds: int) -> tuple[list[float], list[Any]]:
    """Median CPU seconds of each side, in turns, and what each said last."""
    taken: list[list[float]] = [[] for _ in sides]
    said: list[Any] = [None] * len(sides)
    for _ in range(rounds):
        for n, side in enumerate(sides):
            begin = time.process_time()
            said[n] = side()
            taken[n].append(time.process_time() - begin)
    return [statistics.median(times) for times in taken], said


def line(what: str, tokens: int, peer_s: float, ours_s: float) -> None:
    """One line of the table."""
    print(f"{what:66}{tokens / peer_s:>10,.1f}{tokens / ours_s:>10,.1f}{peer_s / ours_s:>8.2f}", flush=True)


def hugging_face(model: GPT) -> Any:
    """The same model as GPT2LMHeadModel."""
    from transformers import AutoConfig, GPT2LMHeadModel, logging

    logging.set_verbosity_error()
    config, tensors = to_hf(model)
    there = GPT2LMHeadModel(AutoConfig.for_model(**config)).eval()
    there.load_state_dict(tensors, strict=False)
    there.tie_weights()
    there.generation_config.eos_token_id, there.generation_config.pad_token_id = None, 0
    return there


def nano_model(folder: Path, model: GPT) -> Any:
    """The same model as nanoGPT's."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = model.config
    config = module.GPTConfig(
        block_size=c.context, vocab_size=model.vocab_size, n_layer=c.depth, n_head=c.heads, n_embd=c.width, dropout=0.0
    )
    there = module.GPT(config).eval()
    conv1d = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    tensors = {name: t.t() if name.endswith(conv1d) else t for name, t in to_hf(model)[1].items()}
    there.load_state_dict(tensors, strict=False)
    return there


@torch.inference_mode()
def quality(checkpoint: Path, shards: Path, rows: int = 32) -> None:
    """Bits per byte of held-out windows read token by token, every matrix in the form asked for, however small."""
    model, tokenizer = load(checkpoint, "cpu")
    decode.SMALL = 0
    text = HeldOut(Windows(shards, model.config.context).held_out(rows), tokenizer.bytes_per_token())
    x_BT, y_BT = torch.from_numpy(text.x_BT), torch.from_numpy(text.y_BT)
    for weights in ("float32", "bfloat16", "int8"):
        decoder = Decoder(model, weights)
        cache = decoder.cache(len(x_BT), model.config.context)
        decoder.read([[]] * len(x_BT), cache)
        logits = [decoder.step(ids_B, cache) for ids_B in x_BT.T]
        nats = [
            torch.nn.functional.cross_entropy(one, y_B, reduction="none")
            for one, y_B in zip(logits, y_BT.T, strict=True)
        ]
        scores = {name: value for name, value, _ in text.scores(torch.stack(nats, 1).double().numpy())}
        print(
            f"{weights:10}{scores['bpb']:.4f} bits per byte, loss {scores['loss']:.4f} ({math.e ** scores['loss']:.2f})"
        )


if __name__ == "__main__":
    main()
