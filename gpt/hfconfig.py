"""The config.json of our families as transformers knows them, GPT2LMHeadModel and Qwen3ForCausalLM, both ways.

In: a ModelConfig and a vocabulary size, or a folder. Out: their settings, or ours; torch is not needed. Whatever asks
for a computation that neither family has is refused: an approximation would be a broken model.
"""

import json
from pathlib import Path
from typing import Any

from gpt.config import ModelConfig
from gpt.errors import UserError

CLASSES = {"gpt2": "GPT2LMHeadModel", "modern": "Qwen3ForCausalLM"}
FIXED: dict[str, dict[str, Any]] = {  # what each family always computes
    "gpt2": {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    },
    "modern": {"model_type": "qwen3", "attention_bias": False, "rope_scaling": None, "use_sliding_window": False},
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


def rows(table: str) -> list[list[str]]:
    """The pairs of a table of names."""
    return [row.split() for row in table.split(",")]


def to_json(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """The settings by which transformers makes the same model."""
    sizes: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in rows(SIZES[config.family])}
    if config.family == "modern":  # relu2 is relu(up) * up: a gated MLP whose gate is up once more
        sizes["hidden_act"] = "relu" if config.act == "relu2" else "silu"
        sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    return FIXED[config.family] | sizes | {"vocab_size": vocab_size, "tie_word_embeddings": config.tied}


def from_json(folder: Path) -> tuple[ModelConfig, int]:
    """The config and the vocabulary size of a GPT-2 or Qwen3 folder; UserError for what neither family computes."""
    given = json.loads((folder / "config.json").read_text())
    kind = given.get("model_type")
    family = next((family for family, fixed in FIXED.items() if fixed["model_type"] == kind), None)
    if family is None:
        raise UserError(f"{folder}: model_type {kind!r} cannot be read; gpt2 and qwen3 can")
    given = (given.get("rope_parameters") or {}) | given  # rope_theta is on top before transformers 5, inside since
    sizes = {ours: given[theirs] for theirs, ours in rows(SIZES[family]) if given.get(theirs) is not None}
    settings: dict[str, Any] = {name: sizes[name] for name in ModelConfig.__dataclass_fields__.keys() & sizes}
    settings |= {"family": family, "tied": given.get("tie_word_embeddings", family == "gpt2")}
    settings["act"] = "relu2" if given.get("hidden_act") == "relu" else "auto"
    config = ModelConfig(**settings)
    for key, ours in to_json(config, given["vocab_size"]).items():
        if given.get(key) not in (None, ours):
            raise UserError(f"{folder}/config.json: {key} is {given[key]!r}; only {ours!r} can be read for {family}")
    return config, given["vocab_size"]


def config_in(folder: Path) -> tuple[ModelConfig, int]:
    """The same of any folder with a model: a Checkpoint of ours, or Hugging Face's."""
    try:
        own = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no model ({error}); name a checkpoint or a Hugging Face folder") from error
    return (ModelConfig(**own["model"]), own["vocab_size"]) if "model" in own else from_json(folder)
