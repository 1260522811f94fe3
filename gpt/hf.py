"""Our models as Hugging Face folders and back: gpt2 as GPT2LMHeadModel, modern as Qwen3ForCausalLM; and warm starts.

In: a config and a state, or a folder in their format. Out: the same numbers under the other names, bit for bit.
Method: tables of names, read both ways; Conv1D matrices are transposed, fused rows (qkv, gate and up) split, and the
rows that pad the vocabulary inside the model stay here. gpt/hfconfig.py has the settings.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt.checkpoint import load_model, read_state
from gpt.config import ModelConfig
from gpt.errors import UserError
from gpt.hfconfig import CLASSES, from_json, rows, to_json
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

NAMES = {  # what becomes of our tensors' names, rule by rule; {a/b}: several tensors hold our tensor's rows in turn
    "gpt2": """
        wte transformer.wte, wpe transformer.wpe, ln_f transformer.ln_f, h. transformer.h., ln1 ln_1, ln2 ln_2,
        attn.qkv attn.c_attn, attn.proj attn.c_proj, mlp.up mlp.c_fc, mlp.down mlp.c_proj""",
    "modern": """
        wte model.embed_tokens, ln_f model.norm, h. model.layers., ln1 input_layernorm, ln2 post_attention_layernorm,
        attn. self_attn., attn.qkv attn.{q/k/v}_proj, attn.proj attn.o_proj, mlp.up mlp.{gate/up}_proj,
        mlp.down mlp.down_proj""",
}
EMBEDDINGS = ("wte.weight", "lm_head.weight")


# -- out --------------------------------------------------------------------------------------------------------------


def write_release(folder: Path, checkpoint: Path) -> None:
    """Write a checkpoint folder as a Hugging Face folder: configs, weights, tokenizer files. Same input, same bytes.

    Generation stops at `<|end|>` (a chat model's turn) and at `<|endoftext|>` (a base model's document).
    """
    model, tokenizer = load_model(checkpoint), Tokenizer.load(checkpoint / "tokenizer")
    config, tensors = to_hf(model)
    eot, ends = tokenizer.eot, [tokenizer.end, tokenizer.eot]
    room = model.config.context // 2  # without a length of its own, transformers' generate() stops after 20 tokens
    generation = {"bos_token_id": eot, "eos_token_id": ends, "pad_token_id": eot, "max_new_tokens": room}
    written = {"config": config | {"bos_token_id": eot, "eos_token_id": eot}, "generation_config": generation}
    for name, value in written.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes files for their owner alone
    for file in sorted((checkpoint / "tokenizer").iterdir()):
        shutil.copyfile(file, folder / file.name)


def to_hf(model: GPT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model as transformers wants it: the config.json by which AutoModelForCausalLM loads it, and its tensors."""
    config, tensors = model.config, {}
    for ours, tensor in model.state_dict().items():
        real = tensor[: model.vocab_size] if ours in EMBEDDINGS else tensor
        for name, part in zip(_theirs(config, ours), _split(config, ours, real), strict=True):
            tensors[name] = _conv1d(config, ours, part).clone(memory_format=torch.contiguous_format)
    dtype = str(model.wte.weight.dtype).removeprefix("torch.")
    return {"architectures": [CLASSES[config.family]], "dtype": dtype} | to_json(config, model.vocab_size), tensors


def _split(config: ModelConfig, ours: str, tensor: Tensor) -> list[Tensor]:
    """The tensors that hold one of ours over there."""
    if config.family == "modern" and "attn.qkv" in ours:
        return [*tensor.split([heads * config.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads)])]
    if config.family == "modern" and "mlp.up" in ours:
        return [*tensor.chunk(2)] if config.act == "swiglu" else [tensor, tensor]
    return [tensor]


# -- in ---------------------------------------------------------------------------------------------------------------


def from_hf(folder: Path) -> GPT:
    """Read a GPT-2 or Qwen3 folder of any precision: the model in float32, in evaluation mode."""
    config, vocab_size = from_json(folder)
    with torch.device("meta"):  # no time and no random numbers for weights that are about to be replaced
        model = GPT(config, vocab_size).to_empty(device="cpu")
    wanted, found = {ours: _theirs(config, ours) for ours in model.state_dict()}, _tensors(folder)
    if missing := {name for theirs in wanted.values() for name in theirs} - found.keys():
        raise UserError(f"{folder}: no model*.safetensors holds {min(missing)}; is the download whole?")
    state = {ours: _joined(config, ours, [found[name] for name in theirs]) for ours, theirs in wanted.items()}
    for name in state.keys() & {*EMBEDDINGS}:
        state[name] = padded(state[name], model.wte.num_embeddings)
    odd = [ours for ours, mine in model.state_dict().items() if state[ours].shape != mine.shape]
    if odd:
        told = f"{wanted[odd[0]][0]} gives {[*state[odd[0]].shape]}, config.json {[*model.state_dict()[odd[0]].shape]}"
        raise UserError(f"{folder}: {told}; are both from one model?")
    model.load_state_dict(state)
    return model.eval()


def padded(tensor: Tensor, size: int) -> Tensor:
    """With rows of zeros up to a size."""
    return F.pad(tensor, (0, 0, 0, size - len(tensor)))


def _tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    if "wte.weight" in found:  # OpenAI's GPT-2 files name the body's tensors without the prefix
        found = {f"transformer.{name}": tensor for name, tensor in found.items()}
    return found


def _joined(config: ModelConfig, ours: str, parts: list[Tensor]) -> Tensor:
    if config.act == "relu2" and len(parts) == 2:
        if not torch.equal(*parts):
            raise UserError("hidden_act is 'relu' and gate_proj differs from up_proj; only relu2, where they are one")
        parts = parts[:1]
    return torch.cat([_conv1d(config, ours, part) for part in parts])


def _theirs(config: ModelConfig, ours: str) -> list[str]:
    for here, there in rows(NAMES[config.family]):
        ours = ours.replace(here, there)
    head, _, tail = ours.partition("{")
    choices, _, end = tail.partition("}")
    return [head + choice + end for choice in choices.split("/")]


def _conv1d(config: ModelConfig, ours: str, tensor: Tensor) -> Tensor:
    """GPT-2's blocks keep their matrices as [in, out]; this turns one layout into the other, both ways."""
    return tensor.t() if config.family == "gpt2" and ours.startswith("h.") and tensor.dim() == 2 else tensor


# -- warm starts ------------------------------------------------------------------------------------------------------


def start_from(folder: Path, wanted: ModelConfig, vocab_size: int) -> GPT:
    """The model of a Checkpoint or a Hugging Face folder, with the context, dropout and vocabulary that are wanted.

    Ids keep their rows. Those that the model lacks, as a released one our chat tokens, start as the mean of all rows
    (Hewitt 2021): zeros would stand far above the logits of GPT-2, which lie far below.
    """
    model = load_model(folder) if (folder / "state.json").exists() else from_hf(folder)
    with torch.device("meta"):
        started = GPT(replace(model.config, context=wanted.context, dropout=wanted.dropout), vocab_size)
    state = model.state_dict()
    for name in state.keys() & {*EMBEDDINGS}:
        known = state[name][: min(model.vocab_size, vocab_size)]
        mean = state[name][: model.vocab_size].mean(0, keepdim=True)
        state[name] = padded(torch.cat([known, mean.expand(vocab_size - len(known), -1)]), started.wte.num_embeddings)
    if started.wpe is not None:
        state["wpe.weight"] = state["wpe.weight"][: wanted.context].clone()
    started.load_state_dict(state, assign=True)
    return started.eval()


def origin(folder: Path) -> dict[str, Any]:
    """What a training notes of the model that it goes on from; of a released one not much is known."""
    if (folder / "state.json").exists():
        return read_state(folder)
    return {"tokenizer": Tokenizer.load(folder).digest, "parents": [], "task": "released", "step": 0, "tokens": 0}


def fingerprint(folder: Path | None) -> str:
    """The sha256 of a folder's weights, one file after the other; of nothing where there is no folder."""
    weights = hashlib.sha256()
    for path in sorted(folder.glob("model*.safetensors")) if folder else ():
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: weights)
    return weights.hexdigest()
