"""What a recipe will cost, before anything runs: tokens, parameters, FLOPs, time, memory, disk.

In: a recipe and the hardware's name. Out: lines of text. Method: FLOPs per token = 6 x matrix parameters + 12 x layers
x width x context (PaLM, appendix B); time = FLOPs over peak x utilisation, a CPU's peak measured by a matrix product.
"""

import timeit
from collections.abc import Iterator

import numpy as np

from flows.pipeline import Recipe
from gpt.config import ModelConfig
from gpt.errors import UserError
from tasks.sources import find

PEAK_TFLOPS = {"A100": 312, "L40S": 362, "H100": 989, "H200": 989, "B200": 2250, "RTX4090": 165}
"""Dense bf16 peaks from the makers' data sheets."""
GPU_SHARE = 0.4
"""Share of the peak that training reaches: nanochat 0.41 to 0.50, llm.c 0.40 (124M) to 0.50 (1558M) on H100."""
CPU_SHARE = 0.45
"""Share of the measured matrix-product rate that our loop reaches on two Zen 4 cores at the demo's size."""
BYTES_PER_TOKEN = {"bpe": 3.4, "gpt2": 3.2, "cl100k_base": 3.9, "o200k_base": 3.9, "characters": 1.0}
"""English prose and code; other scripts take more tokens."""
VOCABULARY = {"gpt2": 50_261, "cl100k_base": 100_281, "o200k_base": 200_023, "characters": 400}


def plan(recipe: Recipe, gpus: str) -> Iterator[str]:
    """The lines of `gptloom plan`."""
    sources = find(recipe.ingest.sources)
    size = sum(s.size_bytes for s in sources) or recipe.ingest.max_mb * 1_000_000
    name = recipe.tokenizer.name
    tokens = size / BYTES_PER_TOKEN[name]
    model, vocab = recipe.pretrain.model, VOCABULARY.get(name, recipe.tokenizer.vocab_size)
    matrices, vectors = parameters(model, vocab)
    per_token = 6 * matrices + 12 * model.depth * model.width * model.context  # forward and backward
    # Sequences that one of a batch stands for: a pair has two answers, a prompt a group of completions.
    each = {"pretrain": 1, "sft": 1, "prefer": 2, "rl": recipe.rl.group if recipe.rl else 1}
    steps = [(stage, config) for stage in each if (config := getattr(recipe, stage))]
    tflops, where = rate(gpus)
    yield f"corpus     {size / 1e6:,.1f} MB in {len(sources)} source(s), about {tokens / 1e6:,.2f} M tokens ({name})"
    count, disk = matrices + vectors, size * 2 + tokens * 2
    yield f"model      {count / 1e6:,.2f} M parameters ({model.family}, depth {model.depth}, width {model.width})"
    for stage, config in steps:
        rows = config.batch * each[stage]
        trained = config.steps * rows * model.context
        flops = per_token * trained
        epochs = f" ({trained / tokens:.1f} times the corpus)" if stage == "pretrain" else " at most"
        total = f"{config.steps:,} steps x {rows} x {model.context} = {trained / 1e6:,.2f} M tokens{epochs}"
        yield f"{stage:<10} {total}, {flops:.2e} FLOPs, about {span(flops / (tflops * 1e12))} on {where}"
    rows = (recipe.pretrain.micro_batch or recipe.pretrain.batch) * model.context
    activations = 4 * rows * (34 * model.depth * model.width + 3 * vocab)
    yield f"memory     {(count * 16 + activations) / 1e9:,.2f} GB (weights, gradients, AdamW, activations)"
    yield f"disk       {(disk + count * 12 * (len(steps) * 3 + 1)) / 1e9:,.2f} GB in the store"


def parameters(model: ModelConfig, vocab: int) -> tuple[int, int]:
    """(parameters in matrix products, the others): the head counts as a product, tied or not, a lookup does not."""
    kv = model.kv_heads * model.head_dim
    mlp = (3 if model.family == "modern" else 2) * model.width * model.hidden
    blocks = model.depth * (model.width * (2 * model.width + 2 * kv) + mlp)
    head = vocab * model.width
    positions = model.context * model.width if model.family == "gpt2" else 0
    return blocks + head, positions + (0 if model.tied else head)


def rate(gpus: str) -> tuple[float, str]:
    """(TFLOP/s that training will reach, where): of the named GPUs, or of this machine's CPU."""
    if not gpus:
        peak = cpu_tflops()
        return peak * CPU_SHARE, f"this CPU ({peak * 1000:,.0f} GFLOP/s in a matrix product)"
    count, _, kind = gpus.rpartition("x")
    if kind not in PEAK_TFLOPS or not (count or "1").isdigit():
        raise UserError(f"--gpus {gpus}: must read like 8xH100; known are {', '.join(PEAK_TFLOPS)}")
    return int(count or 1) * PEAK_TFLOPS[kind] * GPU_SHARE, f"{gpus} at {GPU_SHARE:.0%} of the peak"


def cpu_tflops() -> float:
    """The best of a few fp32 matrix products of the size a small model has."""
    a, b = np.ones((4096, 512), np.float32), np.ones((512, 2048), np.float32)
    return 2 * 4096 * 512 * 2048 / min(timeit.repeat(lambda: a @ b, number=1)) / 1e12


def span(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds > 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"
