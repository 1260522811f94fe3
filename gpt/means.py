"""What this machine offers a training: bfloat16, a compiler, memory, and how many FLOP/s its matrix products reach.

In: a device, a model, its `TrainConfig`. Out: precision, whether to compile, micro-batch, ceilings, exactness.
"""

import os
import resource
import shutil
import statistics
import time
from pathlib import Path

import torch

from gpt import dist
from gpt.config import CPU_TOKENS, PEAK_TFLOPS, TrainConfig
from gpt.errors import UserError
from gpt.model import GPT

WORTH_COMPILING = {"cpu": 3e14, "cuda": 1e16}
"""FLOPs from which compiling pays: on a CPU it takes some 20 s and makes a step 1.0 to 1.4 times as fast."""


def precision(device: str) -> str:
    """bfloat16 where the hardware multiplies in it; elsewhere it is emulated, and slower than float32."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def repeatable(device: str, wanted: bool) -> None:
    """From here on the same bits each time, on a GPU too, if that is wanted; a CPU gives them anyway."""
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read with the first product
        torch.use_deterministic_algorithms(wanted)


def compiles(model: GPT, config: TrainConfig) -> bool:
    """Whether blocks are compiled: as the config says, or where it saves more time than it takes."""
    kind = model.wte.weight.device.type
    able = kind == "cuda" or bool(shutil.which(os.environ.get("CXX", "g++")))
    if config.compile == "on" and not able:
        raise UserError(
            "compile=on needs a C++ compiler on a CPU, and g++ is not there; install it, or leave compile out"
        )
    work = model.config.flops(model.vocab_size) * config.steps * config.batch * model.config.context
    return config.compile == "on" or (config.compile == "auto" and able and work > WORTH_COMPILING[kind])


def micro_batch(model: GPT, config: TrainConfig, precise: str) -> int:
    """The largest divisor of the batch whose activations should fit into half of what memory is free now."""
    cuda, each = model.wte.weight.is_cuda, config.rows_each
    row = each * model.config.activations(2 if precise == "bfloat16" else 4, scores=not cuda)
    row += each * 12 * model.vocab_size * model.config.context * (each > 1)  # log-probabilities take whole logits
    free = torch.cuda.mem_get_info()[0] if cuda else available_bytes() // dist.local()
    states = 12 * sum(dist.own(p).numel() for p in model.parameters())  # gradients and two moments are still to come
    fits = max(1, int((free - states) / 2 / row))
    fits = fits if cuda else min(fits, max(1, CPU_TOKENS // (each * model.config.context)))
    return max(rows for rows in range(1, config.batch + 1) if config.batch % rows == 0 and rows <= fits)


def peak_flops(device: str) -> float:
    """The data sheet's, for the GPUs that are known; else 0."""
    name = torch.cuda.get_device_name().replace(" ", "") if device.startswith("cuda") else ""
    return next((tflops * 1e12 for known, tflops in PEAK_TFLOPS.items() if known in name), 0.0)


def gemm_flops(device: str, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of a large square matrix product as it is: what no training exceeds."""
    cuda, taken = device.startswith("cuda"), list[float]()
    side = 8192 if cuda else 1024
    dice = torch.Generator(device).manual_seed(0)  # a GPU multiplies ones faster than numbers: they draw less power
    a, b = (torch.randn(side, side, device=device, generator=dice).to(dtype) for _ in range(2))
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(each := 10 if cuda else 1):
            a @ b
        if cuda:
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - begin) / each)
    return 2 * side**3 / statistics.median(taken[1:])


def device_bytes(device: str) -> int:
    """What the GPU has, or this machine for each rank on it, used or not."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // dist.local()


def available_bytes() -> int:
    """What the kernel could give without swapping, to this container; where it does not say, half of all there is."""
    if (told := Path("/proc/meminfo")).exists():
        free = int(told.read_text().partition("MemAvailable:")[2].split()[0]) * 1024
        most, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        limit = most.read_text().strip() if most.exists() else "max"
        return free if limit == "max" else min(free, int(limit) - int(used.read_text()))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def memory_bytes(device: str) -> int:
    """The most that this process has had so far, on the GPU where it has one."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    if (told := Path("/proc/self/status")).exists():  # ru_maxrss counts what the parent had when it forked
        return int(told.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
