"""The ranks of one training: processes that torchrun started, each with a device of its own, or one process alone.

In: torchrun's environment, or none. Out: who we are, sums that all ranks agree on, and a model whose gradients are
those of the whole batch. Method: DDP (Li et al. 2020) for what fits on a device, else FSDP2 (Zhao et al. 2023).
`python -m gpt.dist` is torchrun with its ranks' own exit code, and without a restart where that cannot help.
"""

import copy
import os
import signal
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from functools import cache
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gpt.model import GPT

if TYPE_CHECKING:  # they take two thirds of a second, which one process alone is spared
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

FINAL = (2, 143)
"""Exit codes that no restart mends: the user's mistake, and that someone wanted an end."""


@contextmanager
def together(device: str) -> Generator[str]:
    """Join the ranks that torchrun started, if it did; gives this one's device. Only rank 0 is heard on stdout."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    # torchrun 2.13 leaves the addresses of an earlier start in its store (pytorch#135712); between machines its count
    # of starts may differ, so there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 must help (docs/scaling.md)
    alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    store, number, count = next(distributed.rendezvous("env://"))
    store = distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "all", store)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, store=store, rank=number, world_size=count)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if rank() else nullcontext():
        yield device
    distributed.destroy_process_group()  # not after an error: it would wait for ranks that are gone


def rank() -> int:
    """Our number."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many we are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def lead() -> bool:
    """Whether this is rank 0, which alone writes and speaks."""
    return rank() == 0


def summed(tensor: Tensor) -> Tensor:
    """The sum of all ranks' tensors, in the place of this one's."""
    if world() > 1:
        distributed.all_reduce(tensor)
    return tensor


def total(count: int) -> int:
    """The sum of all ranks' numbers; they go from CPU to CPU, so that no GPU is waited for."""
    return int(summed(torch.tensor(count))) if world() > 1 else count


def gathered(tensor: Tensor) -> list[Tensor]:
    """Every rank's CPU tensor of this size."""
    tensors = [torch.empty_like(tensor) for _ in range(world())]
    if world() > 1:
        distributed.all_gather(tensors, tensor)
    return tensors if world() > 1 else [tensor]


def sharded(model: nn.Module) -> "TypeGuard[FSDPModule]":
    """Whether each rank holds only its part of the weights."""
    return hasattr(model, "unshard")


def cut(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this rank holds only its part of the tensor."""
    return hasattr(tensor, "full_tensor")


def local() -> int:
    """How many ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def shard(model: GPT, device: str, compute: torch.dtype | None, parts: int) -> None:
    """Cut all weights, by rows, into parts for so many ranks: a block is put together where it is used.

    Blocks travel in the dtype of the computation. The embeddings, of which a sum of many gradients is taken, do not.
    Fewer parts than ranks, those of a machine, are there several times: then only gradients go between machines.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    shape = (world(),) if parts == world() else (world() // parts, parts)
    mesh = init_device_mesh(device.partition(":")[0], shape, mesh_dim_names=("copies", "parts")[-len(shape) :])
    travels = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32) if compute else None
    for block in model.h:
        fully_shard(block, mesh=mesh, mp_policy=travels or MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh)


def learner(model: GPT) -> nn.Module:
    """What to call for a loss whose gradient becomes the mean over all ranks."""
    return model if world() == 1 or sharded(model) else _replica(model)


@cache
def _replica(model: GPT) -> nn.Module:
    ids = [model.wte.weight.device] if model.wte.weight.is_cuda else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def syncing(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Around forward and backward of a micro-batch: whether the ranks' gradients are brought together after it.

    A sharded model's always are within the machine: whole gradients would take four bytes a parameter on every GPU.
    """
    if sharded(model):
        model.set_requires_all_reduce(now)
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not now else nullcontext()


@contextmanager
def whole(model: nn.Module) -> Generator[None]:
    """While it lasts a sharded model is there as a whole on every rank, in its dtype of computation."""
    parts = [module for module in model.modules() if sharded(module)]
    for part in parts:
        part.unshard()
    yield
    for part in parts:
        part.reshard()


def plain(tensor: Tensor) -> Tensor:
    """All of a tensor, of which ranks may hold parts; all must ask."""
    return tensor.full_tensor() if cut(tensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """What this rank holds of it."""
    return tensor.to_local() if cut(tensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a tensor that every rank has, the part that this rank holds of `like`."""
    if not cut(like) or tensor.shape != like.shape:
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def main() -> int:
    """torchrun on one machine: the same arguments."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    asked = run.parse_args(sys.argv[1:])
    restarts, asked.max_restarts = asked.max_restarts, 0
    for left in range(restarts, -1, -1):
        try:
            run.run(copy.copy(asked))
            return 0
        except SignalException as error:
            return 128 + error.sigval
        except ChildFailedError as error:
            codes = {failure.exitcode for failure in error.failures.values()}
            codes = codes - {-signal.SIGTERM} or codes  # which is how torchrun ended the others
            code = next((code for code in FINAL if code in codes), min(codes))
            if code in FINAL or not left:
                return code if code > 0 else 128 - code
            print(f"a rank ended with {code}: all start again from the last checkpoint, {left} times more", flush=True)
    raise AssertionError


if __name__ == "__main__":
    sys.exit(main())
