"""What a recipe will cost, before anything runs: tokens, parameters, FLOPs, time by stage, memory, disk.

In: a recipe, and hardware by name or this machine. Out: lines of text. Method: FLOPs per token = 6 x matrix parameters
+ 12 x layers x width x context (PaLM, appendix B). On this machine seconds per token are measured (gpt/perf.py, some
ten seconds); for named GPUs they are FLOPs over the data sheet's peak x the share that training reaches.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from flows.pipeline import Recipe
from gpt.config import ModelConfig
from gpt.errors import UserError
from tasks.runtime import say
from tasks.sources import find

PEAK_TFLOPS = {"A100": 312, "L40S": 362, "H100": 989, "H200": 989, "B200": 2250, "RTX4090": 165}
"""Dense bf16 peaks from the makers' data sheets."""
GPU_SHARE = 0.4
"""Share of the peak that training reaches: nanochat 0.41 to 0.50, llm.c 0.40 (124M) to 0.50 (1558M) on H100."""
BYTES_PER_TOKEN = {"bpe": 3.4, "gpt2": 3.2, "cl100k_base": 3.9, "o200k_base": 3.9, "characters": 1.0}
"""English prose and code; other scripts take more tokens."""
VOCABULARY = {"gpt2": 50_261, "cl100k_base": 100_281, "o200k_base": 200_023, "characters": 400}
SECONDS_PER_MB = {"ingest": 0.7, "filter": 0.15, "dedup": 0.2, "tokenizer": 0.15, "shard": 0.07}
"""Of source text, on two cores, measured on the demo's 8 MB, processes' start included."""
TALK_S = {"chats": 3.0, "pairs": 3.0, "prompts": 0.1}
"""Of the built-in talk."""
START_S, EXPORT_S, FLOW_BYTES = 4.0, 4.5, 400_000_000
"""A child's imports; a release's check with transformers; what the flow itself holds beside its child."""
PAIRS = 2540
HELD_OUT = {"questions": 200, "replies": 210, "pairs": 366, "problems": 588}
"""Pairs, and held-out rows of each kind, that the built-in talk has; own data may have more."""
ROW, PAIR, REPLY = 0.5, 0.6, 0.4
"""How long talk is, as measured on the built-in kind: a batch's longest conversation and its longest answer to a pair
by the most that are allowed, a reply by the most tokens that it may have."""


@dataclass(frozen=True)
class Rates:
    """Seconds per token of three kinds of work, bytes of the largest process, and where that is."""

    train_s: float
    read_s: float
    sample_s: float
    peak_bytes: float
    where: str


def plan(recipe: Recipe, gpus: str) -> Iterator[str]:
    """The lines of `gptloom plan`."""
    sources = find(recipe.ingest.sources)
    size = sum(s.size_bytes for s in sources) or recipe.ingest.max_mb * 1_000_000
    tokens = size / BYTES_PER_TOKEN[recipe.tokenizer.name]
    model, vocab = recipe.pretrain.model, VOCABULARY.get(recipe.tokenizer.name, recipe.tokenizer.vocab_size)
    matrices, vectors = parameters(model, vocab)
    rates = datasheet(recipe, matrices, vectors, vocab, gpus) if gpus else measured(recipe, vocab)
    yield f"corpus     {size / 1e6:,.1f} MB in {len(sources)} source(s), about {tokens / 1e6:,.2f} M tokens"
    about = f"{model.family}, depth {model.depth}, width {model.width}"
    yield f"model      {(matrices + vectors) / 1e6:,.2f} M parameters ({about})"
    per_token = 6 * matrices + 12 * model.depth * model.width * model.context  # forward and backward
    seconds = dict(stages(recipe, size, rates))
    for stage, cost in seconds.items():
        yield f"{stage:<10} {span(cost):>9}{training(recipe, stage, tokens, per_token)}"
    yield f"total      {span(sum(seconds.values())):>9}  on {rates.where}"
    yield f"memory     {(rates.peak_bytes + FLOW_BYTES) / 1e9:,.2f} GB"
    weights = (matrices + vectors) * 4
    trained = sum(getattr(recipe, stage) is not None for stage in ("pretrain", "sft", "prefer", "rl"))
    kept = size + 2 * tokens + weights * (3 * trained + 1)  # weights and AdamW's two moments; the release
    working = weights * 3 * recipe.pretrain.keep
    yield f"disk       {kept / 1e9:,.2f} GB in the store, {working / 1e9:,.2f} GB more while training"


def training(recipe: Recipe, stage: str, tokens: float, per_token: float) -> str:
    """What the training stages do in that time."""
    if stage not in ("pretrain", "sft", "prefer", "rl"):
        return ""
    config, context = getattr(recipe, stage), recipe.pretrain.model.context
    rows = config.batch * {"prefer": 2, "rl": recipe.rl.group if recipe.rl else 1}.get(stage, 1)
    trained = config.steps * rows * context
    epochs = f" ({trained / tokens:.1f} times the corpus)" if stage == "pretrain" else " at most"
    told = f"{config.steps:,} steps x {rows} x {context} = {trained / 1e6:,.2f} M tokens{epochs}"
    return f"  {told}, {per_token * trained:.2e} FLOPs"


def stages(recipe: Recipe, size: float, rates: Rates) -> Iterator[tuple[str, float]]:
    """(stage, seconds) of every stage of the recipe, in order."""
    r, context = recipe, recipe.pretrain.model.context
    for stage, per_mb in SECONDS_PER_MB.items():
        if getattr(r, stage):
            yield stage, per_mb * size / 1e6
    p = r.pretrain
    measures = p.steps // p.eval_every + 2
    tokens = context * (p.steps * p.batch * rates.train_s + measures * p.eval_windows * rates.read_s)
    yield "pretrain", START_S + tokens
    talk = ROW * min(context, r.chats.max_tokens if r.chats else context)
    pair = PAIR * min(context, r.pairs.max_tokens if r.pairs else context)
    if r.chats:
        yield "chats", TALK_S["chats"]
    if r.sft:
        yield "sft", START_S + talk * r.sft.steps * r.sft.batch * rates.train_s
    if r.pairs:
        yield "pairs", TALK_S["pairs"]
    if r.prefer:
        learn = 2 * r.prefer.steps * r.prefer.batch * rates.train_s
        yield "prefer", START_S + pair * (learn + 2 * PAIRS * rates.read_s)  # the reference reads every pair once
    if r.prompts:
        yield "prompts", TALK_S["prompts"]
    if r.rl:
        asked = ROW / 2 * min(context, r.prompts.max_tokens if r.prompts else context)
        said, rows = REPLY * r.rl.max_new_tokens, r.rl.steps * r.rl.batch * r.rl.group
        learn = (asked + said) * (rates.train_s + (rates.read_s if r.rl.beta else 0))
        yield "rl", START_S + rows * (said * rates.sample_s + learn)
    yield "evaluate", START_S + evaluation(recipe, talk, pair, rates)
    yield "export", EXPORT_S


def evaluation(recipe: Recipe, talk: float, pair: float, rates: Rates) -> float:
    """Seconds of the exams of every model, and of the untrained one's reading."""
    e, models = recipe.evaluate, 1 + sum(stage is not None for stage in (recipe.sft, recipe.prefer, recipe.rl))
    read = e.tokens * (1 + 1 / models)
    asked = {kind: min(getattr(e, kind, count), count) for kind, count in HELD_OUT.items()}
    read += 4 * asked["questions"] * talk if recipe.chats else 0  # four answers to choose from
    read += 2 * asked["pairs"] * pair if recipe.pairs else 0
    said = REPLY * asked["replies"] * e.reply_tokens if recipe.chats else 0
    said += REPLY * asked["problems"] * e.answer_tokens if recipe.prompts else 0
    return models * (read * rates.read_s + said * rates.sample_s)


def measured(recipe: Recipe, vocab: int) -> Rates:
    """This machine's rates, by a child: this process never imports torch."""
    say("measuring this machine for some seconds")
    model, rows = recipe.pretrain.model, recipe.pretrain.micro_batch or recipe.pretrain.batch
    need, free = 16 * sum(parameters(model, vocab)), psutil.virtual_memory().available
    if need > free:
        what = f"the model wants {need / 1e9:,.1f} GB before any activations, {free / 1e9:,.1f} GB are free here"
        raise UserError(f"{what}; name the hardware that shall train it, as in --gpus 1xH100")
    means = {"device": recipe.runtime.device, "threads": recipe.runtime.threads}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        file.write_text(json.dumps({"model": asdict(model), "vocab_size": vocab, "rows": rows, **means}))
        command, env = [sys.executable, "-m", "gpt.perf", str(file)], {"GOMP_SPINCOUNT": "3000", **os.environ}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        problem = (done.stderr.splitlines() or ["killed"])[-1]
        raise UserError(f"the model cannot be tried on this machine: {problem}; name hardware, as in --gpus 1xH100")
    return Rates(**json.loads(done.stdout), where="this machine, as measured just now")


def datasheet(recipe: Recipe, matrices: int, vectors: int, vocab: int, gpus: str) -> Rates:
    """The rates of named GPUs."""
    count, _, kind = gpus.rpartition("x")
    if kind not in PEAK_TFLOPS or not (count or "1").isdigit():
        raise UserError(f"--gpus {gpus}: must read like 8xH100; known are {', '.join(PEAK_TFLOPS)}")
    model, number = recipe.pretrain.model, int(count or 1)
    flops = 6 * matrices + 12 * model.depth * model.width * model.context
    train_s = flops / (number * PEAK_TFLOPS[kind] * 1e12 * GPU_SHARE)
    rows = (recipe.pretrain.micro_batch or recipe.pretrain.batch) / number
    activations = 4 * rows * model.context * (34 * model.depth * model.width + 3 * vocab)
    peak = (matrices + vectors) * 16 + activations  # weights, gradients, AdamW
    return Rates(train_s, train_s / 3, train_s, peak, f"{gpus} at {GPU_SHARE:.0%} of the peak")


def parameters(model: ModelConfig, vocab: int) -> tuple[int, int]:
    """(parameters in matrix products, the others): the head counts as a product, tied or not, a lookup does not."""
    kv = model.kv_heads * model.head_dim
    mlp = (3 if model.family == "modern" else 2) * model.width * model.hidden
    blocks = model.depth * (model.width * (2 * model.width + 2 * kv) + mlp)
    head = vocab * model.width
    positions = model.context * model.width if model.family == "gpt2" else 0
    return blocks + head, positions + (0 if model.tied else head)


def span(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds > 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"
