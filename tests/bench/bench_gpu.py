"""Training on one GPU: tokens a second, their share of what the GPU can do, memory; beside nanoGPT's own train.py.

`PYTHONPATH=. python tests/bench/bench_gpu.py [--nanogpt DIR] [--only NAME ...] [--attention flash] [--out FILE]`

Needs torch 2.11 or later and numpy, and of this project `gpt/` alone. Every model is trained in a process of its own on
random tokens, by the parts that gpt/loop.py trains with: bfloat16 over float32 weights, compiled blocks, cross-entropy
in parts, clipping, guard, AdamW (gpt2) or Muon. Prints a JSON line for each; times go from the 20th step to the last,
with one wait for the GPU at either end. `mfu` is of the data sheet's peak, `mfu_gemm` of a bfloat16 matrix product
measured in the same process, both with the FLOPs of PaLM's appendix B. `host_syncs`: how often a step, without its
update's report, waited for the GPU (wanted: 0); `graphs`, `graph_breaks`: what was compiled (a block and the cost).
nanoGPT: its train.py as it is, GPT-2's shape, compiled, 32 sequences at a time or as many as fit, on a file of random
tokens, timed by when its lines come.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt.config import ModelConfig, PretrainConfig
from gpt.guard import Guard
from gpt.means import gemm_flops, memory_bytes, micro_batch, peak_flops
from gpt.model import GPT
from gpt.optim import course, groups, optimizers, update

VOCAB = 50_257
GPT2, MODERN = {"family": "gpt2", "context": 1024}, {"family": "modern", "context": 2048}
MODELS = {  # shape, and tokens a step: fewer for larger models, so that a run takes minutes
    "gpt2-124m": (GPT2 | {"depth": 12}, 2**19),
    "modern-d12": (MODERN | {"depth": 12}, 2**19),
    "modern-350m": (MODERN | {"depth": 24, "width": 1024, "heads": 8}, 2**18),
    "modern-1.5b": (MODERN | {"depth": 28, "width": 2048, "heads": 16, "hidden": 5504}, 2**17),
    "gpt2-350m": (GPT2 | {"depth": 24, "width": 1024, "heads": 16}, 2**18),
    "gpt2-1558m": (GPT2 | {"depth": 48, "width": 1600, "heads": 25}, 2**17),
    "tiny": ({"family": "modern", "depth": 2, "width": 32, "heads": 2, "context": 32}, 2**8),  # for trials on a CPU
    "tiny-gpt2": ({"family": "gpt2", "depth": 2, "width": 32, "heads": 2, "context": 32}, 2**8),
}
DEFAULT = ("gpt2-124m", "modern-d12", "modern-350m", "modern-1.5b")


class Bench:
    """A model and all that trains it, on random tokens."""

    def __init__(self, name: str, asked: argparse.Namespace) -> None:
        shape, tokens = MODELS[name]
        model = ModelConfig(**shape)
        rows, kind = (asked.tokens or tokens) // model.context, "adamw" if model.family == "gpt2" else "muon"
        config = PretrainConfig(steps=10_000, batch=rows, micro_batch=asked.rows, optimizer=kind)
        attend_by(asked.attention)
        torch.manual_seed(0)
        with torch.device(asked.device):
            self.model = GPT(model, VOCAB).train()
        self.model.compute, self.device = torch.bfloat16, asked.device
        config = config.fitted(model, VOCAB)
        self.config = replace(config, micro_batch=asked.rows or micro_batch(self.model, config, "bfloat16"))
        self.optimizers, self.guard = optimizers(self.model, self.config), Guard(asked.device)
        dice = np.random.default_rng(0)
        self.pool = [dice.integers(0, VOCAB, (rows, model.context + 1), np.uint16) for _ in range(8)]
        for block in self.model.h if asked.compile else ():
            block.compile()

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y of a step, sent as two bytes a token (gpt/objectives.py)."""
        ids = torch.from_numpy(self.pool[step % len(self.pool)])
        ids = (ids.pin_memory().to(self.device, non_blocking=True) if self.device != "cpu" else ids).long()
        return ids[:, :-1], ids[:, 1:]

    def step(self, step: int) -> torch.Tensor:
        """One update as gpt/loop.py makes it; the loss, still on the GPU."""
        for group in groups(self.optimizers):
            group["lr"] = group["peak"] * course(step, self.config)
        (x_BT, y_BT), total = self.batch(step), torch.zeros((), device=self.device)
        for x, y in zip(x_BT.split(self.config.micro_batch), y_BT.split(self.config.micro_batch), strict=True):
            mean = self.model(x, target_BT=y) / y_BT.numel()
            mean.backward()
            total += mean.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        update(self.optimizers, self.guard.judge(total, norm))
        return total

    def wait(self) -> float:
        """The time when all is done that was asked of the GPU."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


def attend_by(wanted: str) -> None:
    """Leave torch one kernel of attention, unless it is to choose: on a Hopper GPU it takes a recent cuDNN's."""
    if wanted != "auto":
        torch.backends.cuda.enable_flash_sdp(wanted == "flash")
        torch.backends.cuda.enable_cudnn_sdp(wanted == "cudnn")
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_math_sdp(False)


def ours(name: str, asked: argparse.Namespace) -> dict[str, object]:
    """Train one of MODELS and say how fast that went."""
    began = time.perf_counter()
    bench = Bench(name, asked)
    first = bench.step(0)
    ready_s = bench.wait() - began
    for step in range(1, asked.warmup):
        bench.step(step)
    begin, end = bench.wait(), asked.warmup + asked.steps
    for step in range(asked.warmup, end):
        last = bench.step(step)
    step_s = (bench.wait() - begin) / asked.steps
    c, config = bench.config, bench.model.config
    rate, flops = c.batch * config.context / step_s, config.flops(VOCAB)
    gemm, peak = gemm_flops(asked.device, torch.bfloat16), peak_flops(asked.device)
    found: dict[str, object] = {"model": name, "side": "gptloom", "tokens_per_s": round(rate)}
    found |= {"mfu": round(rate * flops / peak, 4) if peak else None, "mfu_gemm": round(rate * flops / gemm, 4)}
    found |= {"peak_tflops": peak / 1e12, "gemm_tflops": round(gemm / 1e12, 1), "flops_per_token": flops}
    found |= {"memory_gb": round(memory_bytes(asked.device) / 1e9, 2), "step_ms": round(1e3 * step_s, 2)}
    found |= {"parameters": sum(p.numel() for p in bench.model.parameters()), "batch": c.batch, "rows": c.micro_batch}
    found |= {
        "optimizer": c.optimizer,
        "attention": asked.attention,
        "first_step_s": round(ready_s, 1),
        "steps": asked.steps,
    }
    found |= {"loss": [round(float(first), 3), round(float(last), 3)], "skipped": int(bench.guard.skipped)}
    counted = torch._dynamo.utils.counters
    found |= {"graphs": counted["stats"]["unique_graphs"], "graph_breaks": sum(counted["graph_break"].values())}
    found |= {"host_syncs": host_syncs(bench, end), "shape": asdict(config)}
    return found | machine(asked.device)


def host_syncs(bench: Bench, step: int) -> int | None:
    """How often one step waited for the GPU; torch tells."""
    if bench.device == "cpu":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        bench.step(step)
    torch.cuda.set_sync_debug_mode("default")
    for warning in (waits := [w for w in said if "synchroniz" in str(w.message)]):
        print(f"waited: {warning.filename}:{warning.lineno}", file=sys.stderr)
    return len(waits)


def machine(device: str) -> dict[str, str]:
    """What this ran on."""
    gpu = torch.cuda.get_device_name() if device != "cpu" else "cpu"
    return {"device": gpu, "torch": torch.__version__, "cuda": torch.version.cuda or ""}


# -- nanoGPT ----------------------------------------------------------------------------------------------------------


def theirs(name: str, asked: argparse.Namespace) -> dict[str, object]:
    """nanoGPT's train.py on the same shape; half as many sequences at a time until they fit."""
    shape, tokens = MODELS[name]
    config, total = ModelConfig(**shape), asked.tokens or tokens
    rows = min(asked.rows or 32, total // config.context)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanogpt"
        shutil.copytree(asked.nanogpt, copy, ignore=shutil.ignore_patterns(".git", "assets"))
        (copy / "data" / "random").mkdir()
        for part in ("train.bin", "val.bin"):
            np.random.default_rng(1).integers(0, VOCAB, 2**22, np.uint16).tofile(copy / "data" / "random" / part)
        while True:
            ran = lines_of(copy, config, rows, total, asked)
            if (step_s := ran.pop("step_s")) or rows == 1 or "out of memory" not in ran["said"]:
                break
            rows //= 2
    if not step_s:
        return {"model": name, "side": "nanogpt", "error": ran["said"][-300:]}
    rate, flops, peak = total / step_s, config.flops(VOCAB), peak_flops(asked.device)
    found = {"model": name, "side": "nanogpt", "tokens_per_s": round(rate), "step_ms": round(1e3 * step_s, 2)}
    found |= {"mfu": round(rate * flops / peak, 4) if peak else None, "batch": total // config.context, "rows": rows}
    return found | {"losses": ran["losses"]} | machine(asked.device)


def lines_of(copy: Path, config: ModelConfig, rows: int, tokens: int, asked: argparse.Namespace) -> dict[str, object]:
    """Run it; seconds a step between its line at the end of the warm-up and its last one, None if it did not come."""
    last, gpu = asked.warmup + asked.steps, asked.device != "cpu"
    sizes = {"n_layer": config.depth, "n_head": config.heads, "n_embd": config.width, "block_size": config.context}
    how = {"dataset": "random", "batch_size": rows, "gradient_accumulation_steps": tokens // (rows * config.context)}
    how |= {"max_iters": last, "log_interval": asked.warmup, "eval_interval": 10**9, "eval_iters": 1, **sizes}
    how |= {"device": asked.device, "compile": gpu, "dtype": "bfloat16" if gpu else "float32", "dropout": 0.0}
    command = [sys.executable, "-u", "train.py", *(f"--{key}={value}" for key, value in how.items())]
    seen, said, losses = dict[int, float](), "", list[float]()
    with subprocess.Popen(command, cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout
        for line in run.stdout:
            said += line
            if found := re.match(r"iter (\d+): loss ([\d.]+|nan)", line):
                seen[int(found[1])], losses = time.perf_counter(), [*losses, float(found[2])]
    begin, end = asked.warmup, max(seen, default=0)  # a line waits for the GPU, so that its time is its step's
    step_s = (seen[end] - seen[begin]) / (end - begin) if begin in seen and end > begin else None
    return {"step_s": step_s, "said": said, "losses": losses}


# -- all --------------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout; then its train.py runs too, for the gpt2 models")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=DEFAULT)
    parser.add_argument("--steps", type=int, default=100, help="steps that are timed")
    parser.add_argument("--warmup", type=int, default=20, help="steps before these")
    parser.add_argument("--tokens", type=int, default=0, help="tokens a step; 0: as listed")
    parser.add_argument("--rows", type=int, default=0, help="sequences at a time; 0: estimated (nanoGPT: 32)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--attention", choices=("auto", "flash", "cudnn"), default="auto")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--out", type=Path, help="also write all as one JSON list")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def alone(name: str, side: str) -> dict[str, Any]:
    """One side of one model in a process of its own: its memory is its own, and what fails there fails alone."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--side", side]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    print(ran.stderr, end="", file=sys.stderr)
    lines = ran.stdout.strip().splitlines()
    return json.loads(lines[-1]) if ran.returncode == 0 else {"model": name, "side": side, "error": ran.stderr[-300:]}


def main() -> None:
    """Each model, ours and then nanoGPT's."""
    asked, results = arguments(), []
    if asked.side:
        return print(json.dumps((theirs if asked.side == "nanogpt" else ours)(asked.only[0], asked)))
    for name in asked.only:
        pair = [alone(name, "gptloom")]
        if asked.nanogpt and MODELS[name][0]["family"] == "gpt2":
            pair.append(alone(name, "nanogpt"))
            if not any("error" in side for side in pair):
                pair[0]["times_nanogpt"] = round(pair[0]["tokens_per_s"] / pair[1]["tokens_per_s"], 2)
        results += pair
        for result in pair:
            print(json.dumps(result), flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
