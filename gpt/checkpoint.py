"""Checkpoints that are whole or absent: written aside, synced, named by a rename, believed only if every byte is right.

In: a model, its optimiser, a JSON state. Out: `step-00000100/` with weights, optimiser and torch's RNG as safetensors,
config.json, state.json and a manifest of sha256 digests; at the end the same files in the Checkpoint artifact itself.
The manifest is no luxury: safetensors and torch.load both take a flipped bit in silence.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gpt.config import ModelConfig
from gpt.errors import UserError
from gpt.failpoints import failpoint
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

PAYLOAD = ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "config.json", "state.json")
State = dict[str, Any]
"""task, step, tokens (targets learned from), train settings, digests of tokenizer and data, the trainings before."""


def save(root: Path, model: GPT, optimizer: torch.optim.Optimizer, state: State, keep: int) -> None:
    """Add the checkpoint of `state["step"]` to the folder `root` and drop all but the newest `keep`."""
    failpoint("checkpoint: begin")
    work = root / "work"
    shutil.rmtree(work, ignore_errors=True)  # its writer was killed
    work.mkdir(parents=True)
    slots = [(name, optimizer.state[parameter]) for name, parameter in model.named_parameters()]
    moments = {f"{name}/{key}": value for name, slot in slots for key, value in slot.items()}
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    for name, tensors in {"model": model.state_dict(), "optimizer": moments, "rng": random}.items():
        save_file(tensors, work / f"{name}.safetensors")
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
    for old in sorted(root.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def newest(root: Path) -> Path | None:
    """The newest checkpoint whose every byte is right; damaged newer ones are named and removed."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        manifest = folder / "manifest.json"
        if manifest.exists() and manifest.read_bytes() == _manifest(folder):
            return folder
        print(f"checkpoint {folder.name} is damaged; trying the one before", flush=True)
        shutil.rmtree(folder)
    return None


def restore(folder: Path, model: GPT, optimizer: torch.optim.Optimizer, expect: State) -> State:
    """Put weights, optimiser and RNG back in place; the state, which must differ from `expect` in its progress only."""
    state, device = read_state(folder), str(model.wte.weight.device)
    for key in sorted(expect.keys() - {"step", "tokens"}):
        if state[key] != expect[key]:
            raise UserError(f"{folder} is from a run with another {key}; give this run a new folder")
    model.load_state_dict(load_file(folder / "model.safetensors", device))
    parameters = dict(model.named_parameters())
    for name, value in load_file(folder / "optimizer.safetensors", device).items():
        parameter, slot = name.rsplit("/", 1)
        optimizer.state[parameters[parameter]][slot] = value
    random = load_file(folder / "rng.safetensors")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    return state


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


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _manifest(folder: Path) -> bytes:
    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    return _canonical({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode() + b"\n"
