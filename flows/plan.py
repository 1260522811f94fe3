"""What a recipe will cost, before anything runs: tokens, parameters, FLOPs, time by stage, memory, disk.

In: a recipe, and hardware by name or this machine. Out: lines of text. Method: FLOPs per token = 6 x matrix parameters
+ 12 x layers x width x context (PaLM, appendix B). On this machine seconds per token are measured (gpt/perf.py, some
ten seconds); for named GPUs they are FLOPs over the data sheet's peak x the share that training reaches.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from flows.pipeline import Recipe
from gpt.config import CPU_TOKENS, PEAK_TFLOPS, ModelConfig, PretrainConfig, too_large
from gpt.errors import UserError
from tasks.chats import Conversations
from tasks.pairs import Preferences
from tasks.prefer import Prefer
from tasks.prompts import Problems
from tasks.rl import Rl
from tasks.runtime import running, say
from tasks.sft import Sft
from tasks.sources import find, from_hub
from tasks.trainer import ENVIRONMENT, gpus, ranks

MEMORY_GB = {"A100": 80, "L40S": 48, "H100": 80, "H200": 141, "B200": 180, "RTX4090": 24}
"""Of the GPUs in PEAK_TFLOPS, in their larger form."""
MACHINE = 8
"""GPUs of a machine; between them a model is sharded, if that is enough."""
GPU_SHARE = 0.4
"""Share of the peak that training reaches: nanochat 0.41 to 0.50, llm.c 0.40 (124M) to 0.50 (1558M) on H100."""
FLOAT32 = 6
"""How much longer a GPU takes in float32: 67 TFLOP/s of an H100's data sheet, nearly all of which matrices reach."""
BYTES_PER_TOKEN = {"bpe": 3.4, "gpt2": 3.2, "cl100k_base": 3.9, "o200k_base": 3.9, "characters": 1.0}
"""English prose and code; other scripts take more tokens."""
VOCABULARY = {"gpt2": 50_261, "cl100k_base": 100_281, "o200k_base": 200_023, "characters": 400}
PACKED = 4
"""Bytes of JSON lines by those of their .gz or .zst, roughly."""
PER_MB_S = {"ingest": 0.7, "filter": 0.15, "dedup": 0.15, "tokenizer": 0.15, "shard": 0.07}
"""Seconds a MB of source text, on two cores, as measured on the demo's 8 MB, processes' start included."""
LOGITS_BYTES = 3 * 2**31
"""A part of the logits, their slopes, and room to work on a GPU (gpt/crossentropy.py)."""
TALK_S, START_S, EXPORT_S, FLOW_BYTES = 3.0, 4.0, 4.5, 400_000_000
"""Making the built-in talk; a child's imports; a release's check; what the flow holds beside its child."""
ROW, REPLY, AGAIN = 0.5, 0.6, 1.3
"""Of the built-in talk, as measured: a batch's longest row by the longest that is allowed, its longest reply likewise;
how many prompts are sampled for each that teaches. Sampling itself goes on until the last row of a batch has ended."""
PAIRS = 2540
HELD_OUT = {"questions": 200, "replies": 210, "pairs": 366, "problems": 588}
"""Pairs, and held-out rows of each kind, that the built-in talk has; own data may have more."""


@dataclass(frozen=True)
class Work:
    """Seconds whatever the machine, tokens to train on, to read, and to sample; all GPUs together, or in float32."""

    fixed_s: float
    train: float = 0
    read: float = 0
    sample: float = 0
    together: bool = False
    exact: bool = False


@dataclass(frozen=True)
class Rates:
    """Seconds per token of each kind of work on one device, how many there are, where that is, and its memory."""

    train_s: float
    read_s: float
    exact_train_s: float
    exact_read_s: float
    sample_s: float
    devices: int
    where: str
    memory: str

    def seconds(self, work: Work) -> float:
        """How long a stage takes."""
        train_s, read_s = (self.exact_train_s, self.exact_read_s) if work.exact else (self.train_s, self.read_s)
        busy_s = work.train * train_s + work.read * read_s + work.sample * self.sample_s
        return work.fixed_s + busy_s / (self.devices if work.together else 1)


def plan(recipe: Recipe, hardware: str) -> Iterator[str]:
    """The lines of `gptloom plan`."""
    trained = recipe.pretrain.model_copy(update={"model": recipe.pretrain.sizes()})
    recipe = recipe.model_copy(update={"pretrain": trained})
    hub = [entry for entry in recipe.ingest.sources if from_hub(entry)]
    sources = find(here) if (here := [e for e in recipe.ingest.sources if e not in hub]) or not hub else []
    size = sum(s.size_bytes * (PACKED if s.format.endswith((".gz", ".zst")) else 1) for s in sources)
    size += sum(recipe.ingest.max_mb * 1e6 for s in sources if s.kind == "pydocs")
    tokens = size / BYTES_PER_TOKEN[recipe.tokenizer.name]
    model, vocab = recipe.pretrain.model, VOCABULARY.get(recipe.tokenizer.name, recipe.tokenizer.vocab_size)
    vocab = recipe.tokenizer.referred().vocab_size if recipe.tokenizer.ref else vocab
    p = PretrainConfig(**recipe.pretrain.settings()).fitted(model, vocab)
    rates = datasheet(p, model, vocab, hardware) if hardware else measured(recipe, p, vocab)
    size_of = model.products(vocab) + model.lookups(vocab)
    known = [f"{size / 1e6:,.1f} MB in {len(sources)} source(s), about {tokens / 1e6:,.2f} M tokens"] * bool(sources)
    unknown = [f"of {entry} the size is unknown, so is the time to prepare it" for entry in hub]
    yield f"corpus     {'; '.join(known + unknown)}"
    about = f"{model.family}, depth {model.depth}, width {model.width}"
    yield f"model      {size_of / 1e6:,.2f} M parameters ({about})"
    todo = {stage: work for stage, work in works(recipe, p, size).items() if not (hub and stage in PER_MB_S)}
    for stage, work in todo.items():
        told = training(recipe, p, stage, work.train, model.flops(vocab), 0 if hub else tokens)
        yield f"{stage:<10} {span(rates.seconds(work)):>8}{told}"
    yield f"total      {span(sum(map(rates.seconds, todo.values()))):>8}  on {rates.where}"
    yield f"memory     {rates.memory}"
    weights = size_of * 4
    trained = sum(getattr(recipe, stage) is not None for stage in ("pretrain", "sft", "prefer", "rl"))
    kept = size + 2 * tokens + weights * (3 * trained + 1)  # weights and AdamW's two moments; the release
    working = weights * 3 * p.keep
    beside = " besides the hub's text" if hub else ""
    yield f"disk       {kept / 1e9:,.2f} GB in the store{beside}, {working / 1e9:,.2f} GB more while training"


def training(recipe: Recipe, p: PretrainConfig, stage: str, trained: float, per_token: float, corpus: float) -> str:
    """What a training stage does in its time; nothing of another one."""
    epochs = f" ({trained / corpus:.1f} times the corpus)" if stage == "pretrain" and corpus else ""
    told = f"{trained / 1e6:,.2f} M tokens{epochs}, {per_token * trained:.1e} FLOPs"
    steps = p.steps if stage == "pretrain" else getattr(recipe, stage).steps if trained else 0
    return f"  {steps:,} steps, {told}" if trained else ""


def works(recipe: Recipe, p: PretrainConfig, size: float) -> dict[str, Work]:
    """What each stage of the recipe does, in order; talk is taken to be like the built-in kind."""
    context, r = recipe.pretrain.model.context, recipe
    sft, prefer, rl = r.sft or Sft(), r.prefer or Prefer(), r.rl or Rl()
    talk = ROW * min(context, (r.chats or Conversations()).max_tokens)
    pair = ROW * min(context, (r.pairs or Preferences()).max_tokens)
    answer = ROW / 2 * min(context, (r.prompts or Problems()).max_tokens) + REPLY * rl.max_new_tokens
    answers = rl.steps * rl.batch * rl.group
    sampled = AGAIN * answers * rl.max_new_tokens
    held_out = (p.steps // p.eval_every + 2) * p.eval_windows
    every = {stage: Work(per_mb * size / 1e6) for stage, per_mb in PER_MB_S.items()} | {
        "pretrain": Work(START_S, p.steps * p.batch * context, held_out * context, together=True),
        "chats": Work(TALK_S),
        "sft": Work(START_S, sft.steps * sft.batch * talk, together=True),
        "pairs": Work(TALK_S),
        "prefer": Work(START_S, 2 * prefer.steps * prefer.batch * pair, 2 * PAIRS * pair, exact=True),  # reads each
        "prompts": Work(0.0),
        "rl": Work(START_S, answers * answer, answers * answer * bool(rl.beta), sampled, exact=True),
        "evaluate": examination(recipe, talk, pair),
        "export": Work(EXPORT_S),
    }
    return {stage: work for stage, work in every.items() if getattr(recipe, stage)}


def examination(recipe: Recipe, talk: float, pair: float) -> Work:
    """The exams of every model; an untrained one reads too."""
    e, models = (
        recipe.evaluate,
        sum(stage is not None for stage in (recipe.pretrain, recipe.sft, recipe.prefer, recipe.rl)),
    )
    n = {kind: min(getattr(e, kind, count), count) for kind, count in HELD_OUT.items()}
    chats, pairs, problems = bool(recipe.chats), bool(recipe.pairs), bool(recipe.prompts)
    read = e.tokens * (1 + 1 / models) + chats * 4 * n["questions"] * talk + pairs * 2 * n["pairs"] * pair
    said = chats * n["replies"] * e.reply_tokens + problems * n["problems"] * e.answer_tokens
    return Work(START_S, 0, models * read, models * said, exact=True)


def measured(recipe: Recipe, p: PretrainConfig, vocab: int) -> Rates:
    """This machine's rates, by a child: this process never imports torch."""
    say("measuring this machine for some seconds")
    model = recipe.pretrain.model
    rows = p.micro_batch or (p.batch if gpus() else min(p.batch, max(1, CPU_TOKENS // model.context)))
    need, free = 16 * (model.products(vocab) + model.lookups(vocab)), psutil.virtual_memory().available
    if need > free:
        what = f"the model wants {need / 1e9:,.1f} GB before any activations, {free / 1e9:,.1f} GB are free here"
        raise UserError(f"{what}; name the hardware that shall train it, as in --gpus 1xH100")
    means = {"device": recipe.runtime.device, "threads": recipe.runtime.threads}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        what = {"model": asdict(model), "vocab_size": vocab, "rows": rows}
        file.write_text(json.dumps(what | {"optimizer": p.optimizer, "precision": p.precision, **means}))
        command = [sys.executable, "-m", "gpt.perf", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | os.environ, check=False)
    if done.returncode:
        problem = (done.stderr.splitlines() or ["killed"])[-1]
        raise UserError(f"the model cannot be tried on this machine: {problem}; name hardware, as in --gpus 1xH100")
    found = json.loads(done.stdout)
    memory = f"{(found.pop('peak_bytes') + FLOW_BYTES) / 1e9:,.2f} GB"
    with running("plan", recipe.runtime):
        devices = max(1, min(gpus(), ranks("pretrain")))
    return Rates(**found, devices=devices, where="this machine, as measured just now", memory=memory)


def datasheet(p: PretrainConfig, model: ModelConfig, vocab: int, named: str) -> Rates:
    """The rates of named GPUs."""
    count, _, kind = named.rpartition("x")
    if kind not in PEAK_TFLOPS or not re.fullmatch("[1-9][0-9]*", count or "1"):
        raise UserError(f"--gpus {named}: must read like 8xH100; known are {', '.join(PEAK_TFLOPS)}")
    train_s = model.flops(vocab) / (PEAK_TFLOPS[kind] * 1e12 * GPU_SHARE)
    memory = shares(p, model, vocab, int(count or 1), kind)
    exact_s, where = train_s * FLOAT32, f"{named} at {GPU_SHARE:.0%} of the peak"
    return Rates(train_s, train_s / 3, exact_s, exact_s / 3, train_s, int(count or 1), where, memory)


def shares(p: PretrainConfig, model: ModelConfig, vocab: int, number: int, kind: str) -> str:
    """What each GPU has in memory, whether all of the weights or a part, and how many rows it reads at once."""
    size, has = model.products(vocab) + model.lookups(vocab), MEMORY_GB[kind] * 1e9
    cut = number > 1 and too_large(size, has)
    parts = min(number, MACHINE) if not too_large(size // min(number, MACHINE), has) else number
    states, row, most = 16 * size / (parts if cut else 1), model.activations(2, scores=False), p.batch // number
    fits = int((has - states) / 2 / row)
    rows = p.micro_batch or max([n for n in range(1, most + 1) if most % n == 0 and n <= fits], default=1)
    # beside these are the head's logits, or, when held-out data are read, the whole model in bfloat16
    peak = states + max(rows * row + LOGITS_BYTES, 2 * size * cut)
    how = f"1/{parts} of weights and optimiser each (FSDP2)" if cut else "all of weights and optimiser each (DDP)"
    told = f"{peak / 1e9:,.1f} of {MEMORY_GB[kind]} GB" + (f" on each of {number} GPUs, {how}" if number > 1 else "")
    told += f", {rows} rows of {model.context:,} at once"
    if peak > has:
        way_out = "a shorter pretrain.model.context" if rows * row > has / 2 else "more GPUs"
        told += f"; that does not fit: take {way_out}, or larger GPUs"
    if cut and p.optimizer == "muon":
        told += "; muon needs whole matrices: set pretrain.optimizer=adamw and a rate for it"
    if p.batch % number:
        told += f"; pretrain.batch={p.batch} is no multiple of {number}: try {-(-p.batch // number) * number}"
    return told


def span(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds > 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"
