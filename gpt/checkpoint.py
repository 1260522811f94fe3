"""Checkpoints that are whole or absent: written aside, synced, named by a rename, believed only if every byte is right.

In: a model, its optimiser, a JSON state. Out: `step-00000100/` with weights, optimiser and torch's RNG as safetensors,
config.json, state.json and a manifest of sha256 digests; at the end the same files in the Checkpoint artifact itself.
The manifest is no luxury: safetensors and torch.load both take a flipped bit in silence.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt import dist
from gpt.config import ModelConfig
from gpt.errors import UserError
from gpt.failpoints import failpoint
from gpt.guard import Guard
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

PAYLOAD = ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "config.json", "state.json")
State = dict[str, Any]
"""task, step, tokens (targets learned from), train settings, digests of tokenizer and data, the trainings before."""
PROGRESS = {"step", "tokens", "detour"}


@dataclass
class Training:
    """All that changes from step to step and that a resume needs, but for torch's random numbers."""

    model: GPT
    optimizers: list[torch.optim.Optimizer]
    guard: Guard
    state: State

    def moments(self) -> dict[str, Tensor]:
        """What optimisers and guard remember, by the parameter's name."""
        slots = {parameter: slot for optimizer in self.optimizers for parameter, slot in optimizer.state.items()}
        named = [(name, slots.get(parameter, {})) for name, parameter in self.model.named_parameters()]
        return {f"{name}/{key}": value for name, slot in named for key, value in slot.items()} | self.guard.tensors()


def save(root: Path, training: Training, keep: int, every: int = 1) -> None:
    """Add the checkpoint of the state's step to the folder `root`; of those every so many steps leave `keep`."""
    failpoint("checkpoint: begin")
    parts = {"model": training.model.state_dict(), "optimizer": training.moments()}
    whole = {name: _whole(tensors) for name, tensors in parts.items()} | {"rng": random()}
    if dist.lead():
        _write(root, training, whole)
        there = sorted(root.glob("step-*"))
        regular = [folder for folder in there if int(folder.name[5:]) % every == 0]
        for old in {*there[:-1]} - {*regular[-keep:]}:
            shutil.rmtree(old)


def _write(root: Path, training: Training, whole: dict[str, dict[str, Tensor]]) -> None:
    work, model, state = root / "work", training.model, training.state
    shutil.rmtree(work, ignore_errors=True)  # its writer was killed
    work.mkdir(parents=True)
    _check_space(root, model)
    for name, tensors in whole.items():
        _save_file(tensors, work / f"{name}.safetensors")
    (work / "config.json").write_bytes(_canonical({"model": asdict(model.config), "vocab_size": model.vocab_size}))
    (work / "state.json").write_bytes(_canonical(state))
    failpoint("checkpoint: files")
    (work / "manifest.json").write_bytes(_manifest(work))
    for path in (*work.iterdir(), work):
        _sync(path)
    failpoint("checkpoint: before rename")
    work.rename(root / f"step-{state['step']:08d}")
    failpoint("checkpoint: renamed")
    _sync(root)


def _whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of what is sharded rank 0 gets all, one after the other, in its main memory; the others only send."""
    found = {}
    for name, tensor in tensors.items():
        full = dist.plain(tensor)
        found[name] = full if full is tensor else full.cpu() if dist.lead() else full.new_empty(0)
    return found


def random() -> dict[str, Tensor]:
    """Every rank's state of torch's random numbers; the first's under the plain name."""
    states = {"cpu": torch.get_rng_state()} | (
        {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    )
    every = {name: dist.gathered(state) for name, state in states.items()}
    return {f"{name}/{n}" if n else name: state for name, each in every.items() for n, state in enumerate(each)}


def set_random(states: dict[str, Tensor]) -> None:
    """Go on from what `random` gave; a rank that there was not goes on with the numbers of its seed."""
    mine = f"/{dist.rank()}" if dist.rank() else ""
    if f"cpu{mine}" in states:
        torch.set_rng_state(states[f"cpu{mine}"])
    if f"cuda{mine}" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"cuda{mine}"])


def newest(root: Path, every: int = 1) -> Path | None:
    """The newest checkpoint, at a multiple of `every`, whose every byte is right; newer ones are removed."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        manifest = folder / "manifest.json"
        if int(folder.name[5:]) % every:
            shutil.rmtree(folder)
            continue
        if manifest.exists() and manifest.read_bytes() == _manifest(folder):
            return folder
        print(f"checkpoint {folder.name} is damaged; trying the one before", flush=True)
        shutil.rmtree(folder)
    return None


def restore(folder: Path, training: Training) -> None:
    """Put everything back in place. The state may differ from the one found in its progress only."""
    model, state = training.model, read_state(folder)
    for key in sorted(training.state.keys() - PROGRESS):
        if state[key] != training.state[key]:
            raise UserError(f"{folder} is from a run with another {key}; give this run a new folder")
    device = "cpu" if dist.sharded(model) else str(model.wte.weight.device)
    kept, weights = model.state_dict(), load_file(folder / "model.safetensors", device)
    model.load_state_dict({name: dist.placed(value, kept[name]) for name, value in weights.items()})
    owners = {p: optimizer for optimizer in training.optimizers for g in optimizer.param_groups for p in g["params"]}
    parameters, guard = dict(model.named_parameters()), training.guard.tensors()
    for name, value in load_file(folder / "optimizer.safetensors", device).items():
        if name in guard:
            guard[name].copy_(value)
        else:
            owner, slot = name.rsplit("/", 1)
            parameter = parameters[owner]
            owners[parameter].state[parameter][slot] = dist.placed(value, parameter)
    set_random(load_file(folder / "rng.safetensors"))
    training.state.update(state)


def publish(checkpoint: Path, tokenizer: Tokenizer, out: Path) -> None:
    """Make `out` a Checkpoint artifact; killed anywhere and called again it ends the same. state.json comes last."""
    (out / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(out / "tokenizer")
    for name in PAYLOAD:
        failpoint("publish: file")
        (out / name).unlink(missing_ok=True)
        os.link(checkpoint / name, out / name)


def load_model(folder: Path, device: str = "cpu") -> GPT:
    """The model of a checkpoint folder, in evaluation mode."""
    try:
        config = json.loads((folder / "config.json").read_text())
        with torch.device("meta"):  # no time and no random numbers for weights that are about to be replaced
            model = GPT(ModelConfig(**config["model"]), config["vocab_size"]).to_empty(device=device)
    except (OSError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no checkpoint of gptloom ({error!r}); give the folder of one") from error
    model.load_state_dict(load_file(folder / "model.safetensors", device))
    return model.eval()


def read_state(folder: Path) -> State:
    """state.json of a checkpoint or a Checkpoint."""
    return json.loads((folder / "state.json").read_text())


def _check_space(root: Path, model: GPT) -> None:
    """OSError before anything is written, if it would not fit: weights, two moments, and some."""
    need, free = sum(p.numel() * p.element_size() for p in model.parameters()) * 3.1, shutil.disk_usage(root).free
    if free < need:
        what = f"a checkpoint takes {need / 1e6:,.0f} MB, {root} has {free / 1e6:,.0f} MB left"
        raise OSError(errno.ENOSPC, f"{what}; free some")


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):  # a full disk, say; it deserves its own kind of error
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _manifest(folder: Path) -> bytes:
    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    return _canonical({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode() + b"\n"
