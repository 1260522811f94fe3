"""Our models as Hugging Face folders and back: gpt2 as GPT2LMHeadModel, modern as Qwen3ForCausalLM.

In: a config and a state, or a folder in their format. Out: the same numbers under the other names, bit for bit.
Method: tables of names, read both ways; Conv1D matrices are transposed, fused rows (qkv, gate and up) split.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt.config import ModelConfig
from gpt.errors import UserError
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
NAMES = {  # our tensor, theirs; where there are several, they are our tensor's rows in this order
    "gpt2": """
        wte transformer.wte, wpe transformer.wpe, ln_f transformer.ln_f, lm_head lm_head,
        h.*.ln1 transformer.h.*.ln_1, h.*.ln2 transformer.h.*.ln_2,
        h.*.attn.qkv transformer.h.*.attn.c_attn, h.*.attn.proj transformer.h.*.attn.c_proj,
        h.*.mlp.up transformer.h.*.mlp.c_fc, h.*.mlp.down transformer.h.*.mlp.c_proj""",
    "modern": """
        wte model.embed_tokens, ln_f model.norm, lm_head lm_head,
        h.*.ln1 model.layers.*.input_layernorm, h.*.ln2 model.layers.*.post_attention_layernorm,
        h.*.attn.qkv model.layers.*.self_attn.q_proj model.layers.*.self_attn.k_proj model.layers.*.self_attn.v_proj,
        h.*.attn.q_norm model.layers.*.self_attn.q_norm, h.*.attn.k_norm model.layers.*.self_attn.k_norm,
        h.*.attn.proj model.layers.*.self_attn.o_proj, h.*.mlp.down model.layers.*.mlp.down_proj,
        h.*.mlp.up model.layers.*.mlp.gate_proj model.layers.*.mlp.up_proj""",
}
CLASSES = {"gpt2": "GPT2LMHeadModel", "modern": "Qwen3ForCausalLM"}


def write_release(folder: Path, checkpoint: Path) -> None:
    """Write a checkpoint folder as a Hugging Face folder: configs, weights, tokenizer files. Same input, same bytes.

    Generation stops at `<|end|>` (a chat model's turn) and at `<|endoftext|>` (a base model's document).
    """
    saved = json.loads((checkpoint / "config.json").read_text())
    model, tokenizer = ModelConfig(**saved["model"]), Tokenizer.load(checkpoint / "tokenizer")
    config, tensors = to_hf(model, saved["vocab_size"], load_file(checkpoint / "model.safetensors"))
    begin, ends = {"bos_token_id": tokenizer.eot}, {"eos_token_id": [tokenizer.end, tokenizer.eot]}
    _write_json(folder / "config.json", config | begin | {"eos_token_id": tokenizer.eot})
    # Without a length of its own, transformers' generate() would stop after 20 tokens.
    length = {"pad_token_id": tokenizer.eot, "max_new_tokens": model.context // 2}
    _write_json(folder / "generation_config.json", begin | ends | length)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for file in sorted((checkpoint / "tokenizer").iterdir()):
        shutil.copyfile(file, folder / file.name)


def to_hf(config: ModelConfig, vocab_size: int, state: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Our state under transformers' names and layout, with the config.json that makes AutoModelForCausalLM load it."""
    tensors, kv = {}, config.kv_heads * config.head_dim
    for ours, theirs in _names(config):
        rows = {1: len(state[ours]), 2: config.hidden, 3: [config.width, kv, kv]}[len(theirs)]
        for name, part in zip(theirs, state[ours].split(rows), strict=True):
            tensors[name] = _conv1d(config, ours, part).clone(memory_format=torch.contiguous_format)
    dtype = str(state["wte.weight"].dtype).removeprefix("torch.")
    return {"architectures": [CLASSES[config.family]], "dtype": dtype} | _config(config, vocab_size), tensors


def from_hf(folder: Path) -> tuple[ModelConfig, int, dict[str, Tensor]]:
    """Read a GPT-2 or Qwen3 folder: (config, vocabulary size, state).

    UserError when it asks for a computation that neither family has: an approximation would be a broken model.
    """
    given = json.loads((folder / "config.json").read_text())
    family = next((family for family, fixed in FIXED.items() if fixed["model_type"] == given["model_type"]), None)
    if family is None:
        raise UserError(f"{folder}: model_type {given['model_type']!r} cannot be read; gpt2 and qwen3 can")
    given = (given.get("rope_parameters") or {}) | given  # rope_theta is on top before transformers 5, inside since
    sizes = {ours: given[theirs] for theirs, ours in _rows(SIZES[family]) if given.get(theirs) is not None}
    settings: dict[str, Any] = {name: sizes[name] for name in ModelConfig.__dataclass_fields__.keys() & sizes}
    settings |= {"family": family, "tied": given.get("tie_word_embeddings", family == "gpt2")}
    config = ModelConfig(**settings)
    for key, ours in _config(config, given["vocab_size"]).items():
        if given.get(key) not in (None, ours):
            raise UserError(f"{folder}/config.json: {key} is {given[key]!r}; only {ours!r} can be read for {family}")
    return config, given["vocab_size"], _state(folder, config)


def _state(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    if "wte.weight" in found:  # OpenAI's GPT-2 files name the body's tensors without the prefix
        found = {f"transformer.{name}": tensor for name, tensor in found.items()}
    state = {}
    for ours, theirs in _names(config):
        if missing := set(theirs) - found.keys():
            raise UserError(f"{folder}: no *.safetensors file holds {min(missing)}; is the download whole?")
        state[ours] = torch.cat([_conv1d(config, ours, found[name]) for name in theirs]).contiguous()
    return state


def _names(config: ModelConfig) -> Iterator[tuple[str, list[str]]]:
    """Each of our tensors with theirs."""
    for row in _rows(NAMES[config.family]):
        if config.tied and row[0] == "lm_head":
            continue
        biased = config.family == "gpt2" and row[0] not in ("wte", "wpe", "lm_head")
        for layer in range(config.depth) if "*" in row[0] else [0]:
            for kind in ("weight", "bias") if biased else ("weight",):
                ours, *theirs = (f"{name.replace('*', str(layer))}.{kind}" for name in row)
                yield ours, theirs


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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
