"""Our models as Hugging Face folders and back: gpt2 as GPT2LMHeadModel, modern as Qwen3ForCausalLM.

In: a config and a state, or a folder in their format. Out: the same numbers under the other names, bit for bit.
Method: tables of names, read both ways; Conv1D matrices are transposed, fused rows (qkv, gate and up) split.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt.checkpoint import load_model
from gpt.config import ModelConfig
from gpt.errors import UserError
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

# What each family always computes; a folder that asks for something else is refused.
FIXED: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "activation_function": "gelu_new", "scale_attn_by_inverse_layer_idx": False},
    "modern": {"model_type": "qwen3", "hidden_act": "silu", "attention_bias": False, "rope_scaling": None},
}
SIZES = {  # their name for a size, ours
    "gpt2": """
        n_embd width, n_layer depth, n_head heads, n_inner hidden, n_positions context, layer_norm_epsilon eps,
        resid_pdrop dropout, embd_pdrop dropout, attn_pdrop dropout""",
    "modern": """
        hidden_size width, intermediate_size hidden, num_hidden_layers depth, max_position_embeddings context,
        num_attention_heads heads, num_key_value_heads kv_heads, head_dim head_dim, rope_theta rope_theta,
        attention_dropout dropout, rms_norm_eps eps""",
}
NAMES = {  # what becomes of our tensors' names, rule by rule; {a/b}: several tensors hold our tensor's rows in turn
    "gpt2": """
        wte transformer.wte, wpe transformer.wpe, ln_f transformer.ln_f, h. transformer.h., ln1 ln_1, ln2 ln_2,
        attn.qkv attn.c_attn, attn.proj attn.c_proj, mlp.up mlp.c_fc, mlp.down mlp.c_proj""",
    "modern": """
        wte model.embed_tokens, ln_f model.norm, h. model.layers., ln1 input_layernorm, ln2 post_attention_layernorm,
        attn. self_attn., attn.qkv attn.{q/k/v}_proj, attn.proj attn.o_proj, mlp.up mlp.{gate/up}_proj,
        mlp.down mlp.down_proj""",
}
CLASSES = {"gpt2": "GPT2LMHeadModel", "modern": "Qwen3ForCausalLM"}


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
    config, tensors, kv = model.config, {}, model.config.kv_heads * model.config.head_dim
    for ours, tensor in model.state_dict().items():
        theirs = _theirs(config, ours)
        rows = {1: len(tensor), 2: config.hidden, 3: [config.width, kv, kv]}[len(theirs)]
        for name, part in zip(theirs, tensor.split(rows), strict=True):
            tensors[name] = _conv1d(config, ours, part).clone(memory_format=torch.contiguous_format)
    dtype = str(model.wte.weight.dtype).removeprefix("torch.")
    return {"architectures": [CLASSES[config.family]], "dtype": dtype} | _config(config, model.vocab_size), tensors


def from_hf(folder: Path) -> GPT:
    """Read a GPT-2 or Qwen3 folder of any precision: the model in float32, in evaluation mode.

    UserError when it asks for a computation that neither family has: an approximation would be a broken model.
    """
    given = json.loads((folder / "config.json").read_text())
    kind = given.get("model_type")
    family = next((family for family, fixed in FIXED.items() if fixed["model_type"] == kind), None)
    if family is None:
        raise UserError(f"{folder}: model_type {kind!r} cannot be read; gpt2 and qwen3 can")
    given = (given.get("rope_parameters") or {}) | given  # rope_theta is on top before transformers 5, inside since
    sizes = {ours: given[theirs] for theirs, ours in _rows(SIZES[family]) if given.get(theirs) is not None}
    settings: dict[str, Any] = {name: sizes[name] for name in ModelConfig.__dataclass_fields__.keys() & sizes}
    settings |= {"family": family, "tied": given.get("tie_word_embeddings", family == "gpt2")}
    config = ModelConfig(**settings)
    for key, ours in _config(config, given["vocab_size"]).items():
        if given.get(key) not in (None, ours):
            raise UserError(f"{folder}/config.json: {key} is {given[key]!r}; only {ours!r} can be read for {family}")
    model = GPT(config, given["vocab_size"])
    model.load_state_dict(_state(folder, model))
    return model.eval()


def _state(folder: Path, model: GPT) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    if "wte.weight" in found:  # OpenAI's GPT-2 files name the body's tensors without the prefix
        found = {f"transformer.{name}": tensor for name, tensor in found.items()}
    wanted = {ours: _theirs(model.config, ours) for ours in model.state_dict()}
    if missing := {name for theirs in wanted.values() for name in theirs} - found.keys():
        raise UserError(f"{folder}: no *.safetensors file holds {min(missing)}; is the download whole?")
    return {ours: torch.cat([_conv1d(model.config, ours, found[name]) for name in wanted[ours]]) for ours in wanted}


def _theirs(config: ModelConfig, ours: str) -> list[str]:
    for here, there in _rows(NAMES[config.family]):
        ours = ours.replace(here, there)
    head, _, tail = ours.partition("{")
    choices, _, end = tail.partition("}")
    return [head + choice + end for choice in choices.split("/")]


def _rows(table: str) -> list[list[str]]:
    return [row.split() for row in table.split(",")]


def _conv1d(config: ModelConfig, ours: str, tensor: Tensor) -> Tensor:
    """GPT-2's blocks keep their matrices as [in, out]; this turns one layout into the other, both ways."""
    return tensor.t() if config.family == "gpt2" and ours.startswith("h.") and tensor.dim() == 2 else tensor


def _config(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    sizes: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in _rows(SIZES[config.family])}
    if config.family == "modern":
        sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    return FIXED[config.family] | sizes | {"vocab_size": vocab_size, "tie_word_embeddings": config.tied}
