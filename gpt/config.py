"""What a model is and how it is trained: two frozen records with every default, checked once, where they are made.

In: the recipe's numbers. Out: `ModelConfig` with every derived size filled in, `TrainConfig` that `gpt.train` obeys.
`depth` is the one dial (after nanochat): width 64 x depth, heads of 64. A contradiction is a UserError.
"""

from dataclasses import dataclass
from typing import Literal

from gpt.errors import UserError

PYDANTIC = {"use_attribute_docstrings": True, "extra": "forbid"}  # for recipes; this file does not need pydantic


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One of two families; a size left at 0 is derived, and after construction every size holds its final number."""

    __pydantic_config__ = PYDANTIC
    family: Literal["gpt2", "modern"] = "modern"
    """gpt2: LayerNorm, learned positions, GELU. modern: RMSNorm, RoPE, QK-norm, SwiGLU (Qwen3's shape)."""
    depth: int = 4
    """Number of blocks; the sizes below follow from it."""
    width: int = 0
    """Channels of the residual stream; 0 takes 64 x depth."""
    heads: int = 0
    """Attention heads; 0 takes width / 64, at least one."""
    kv_heads: int = 0
    """Key and value heads shared by groups of heads (modern only); 0 takes as many as heads."""
    hidden: int = 0
    """Channels inside the MLP; 0 takes 4 x width (gpt2), or 8/3 x width rounded up to 64 (modern)."""
    context: int = 256
    """Tokens the model can look back on; also the length of a training window."""
    tied: bool = True
    """Input and output embeddings are one matrix."""
    dropout: float = 0.0
    """Share of activations dropped in training; useful when a small corpus is read many times."""
    rope_theta: float = 10000.0
    """Base of the rotary angles (modern only)."""

    def __post_init__(self) -> None:
        _at_least("model.", self, depth=1, context=2, width=0, heads=0, kv_heads=0, hidden=0)
        self._derive("width", 64 * self.depth)
        self._derive("heads", max(1, self.width // 64))
        self._derive("kv_heads", self.heads)
        self._derive("hidden", 4 * self.width if self.family == "gpt2" else -(-8 * self.width // 192) * 64)
        _multiple("model.", self, "width", "heads")
        _multiple("model.", self, "heads", "kv_heads")
        _check(self.head_dim % 2 == 0, f"model.width / model.heads is {self.head_dim}, must be even; try other heads")
        plain = self.family == "modern" or (self.kv_heads == self.heads and self.rope_theta == 10000.0)
        _check(plain, "model.kv_heads and model.rope_theta need model.family=modern; leave them out for gpt2")
        _check(0 <= self.dropout < 1, f"model.dropout={self.dropout} must lie in [0, 1); try 0.1")

    def _derive(self, name: str, value: int) -> None:
        object.__setattr__(self, name, getattr(self, name) or value)

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def eps(self) -> float:
        """What the norms add to the variance, as GPT2LMHeadModel and Qwen3ForCausalLM do."""
        return 1e-5 if self.family == "gpt2" else 1e-6


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained; pretraining and fine-tuning share these."""

    __pydantic_config__ = PYDANTIC
    steps: int = 1000
    """Optimiser steps."""
    batch: int = 16
    """Sequences per optimiser step."""
    micro_batch: int = 0
    """Sequences per forward pass; gradients add up to the batch's. Saves memory; 0 takes the whole batch at once."""
    lr: float = 2e-3
    """Highest learning rate; larger models want less (GPT-2 124M: 6e-4)."""
    min_lr_ratio: float = 0.1
    """The cosine ends at this share of lr."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises to lr, at most a tenth of all steps."""
    weight_decay: float = 0.1
    """Decay of the matrices; vectors are left alone."""
    beta1: float = 0.9
    """AdamW's memory of gradients."""
    beta2: float = 0.95
    """AdamW's memory of squared gradients."""
    clip: float = 1.0
    """Largest gradient norm; above it gradients are scaled down. 0 turns it off."""
    eval_every: int = 100
    """Steps between evaluations on held-out data; there is always one before the first step and one after the last."""
    eval_windows: int = 64
    """Held-out windows or conversations per evaluation: the first ones, always the same."""
    checkpoint_every: int = 200
    """Steps between checkpoints; what a kill can cost."""
    keep: int = 2
    """Checkpoints kept during training, so that one that went bad has an elder."""
    sample_every: int = 200
    """Steps between printed samples; 0 prints none."""
    seed: int = 1337
    """Of the weights, the data order and dropout."""

    def __post_init__(self) -> None:
        _at_least("", self, steps=1, batch=1, micro_batch=0, warmup_steps=0, weight_decay=0, clip=0, eval_every=1)
        _at_least("", self, eval_windows=1, checkpoint_every=1, keep=1, sample_every=0, seed=0)
        _check(self.lr > 0, f"lr={self.lr} must be positive; try 1e-3")
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2), ("min_lr_ratio", self.min_lr_ratio)):
            _check(0 <= value <= 1, f"{name}={value} must lie between 0 and 1; leave it out for the default")
        _multiple("", self, "batch", "micro_batch")


@dataclass(frozen=True, kw_only=True)
class PreferConfig(TrainConfig):
    """How preferences are learned; a batch counts pairs."""

    beta: float = 0.1
    """DPO's strength of the reference: higher stays closer to it."""
    sft_weight: float = 1.0
    """Weight of the chosen answers' own loss beside DPO's; 0 is plain DPO, under which chosen answers lose too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.beta > 0, f"beta={self.beta} must be positive; try 0.1")
        _at_least("", self, sft_weight=0)


@dataclass(frozen=True, kw_only=True)
class RlConfig(TrainConfig):
    """How a model practises on prompts with checkable answers; a batch counts prompts."""

    variant: Literal["grpo", "dr_grpo", "dapo"] = "dapo"
    """grpo: a mean over completions. dr_grpo: neither length nor deviation divides. dapo: a mean over tokens."""
    group: int = 8
    """Completions sampled for each prompt; the reward counts against their mean."""
    max_new_tokens: int = 24
    """Tokens after which a completion is cut."""
    temperature: float = 1.0
    """Of sampling."""
    exact: float = 0.0
    """Reward for a reply that is the answer to the letter."""
    numeric: float = 1.0
    """Reward for a reply whose last number equals the answer's last number."""
    form: float = 0.0
    """Reward for a reply with a number in it that comes to its end."""
    beta: float = 0.0
    """Weight of the KL divergence to the model at the start; 0 leaves it out."""
    resample: int = 2
    """Times that prompts whose completions all earned the same, so teach nothing, are replaced by others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("", self, group=2, max_new_tokens=1, beta=0, resample=0, exact=0, numeric=0, form=0)
        _check(0 < self.temperature < 100, f"temperature={self.temperature} must lie in (0, 100); try 1.0")
        _check(self.exact + self.numeric + self.form > 0, "no reward counts; set one of exact, numeric, form to 1")


def _at_least(section: str, config: object, **floors: int) -> None:
    for name, floor in floors.items():
        value = getattr(config, name)
        _check(value >= floor, f"{section}{name}={value} must be at least {floor}; leave it out for the default")


def _multiple(section: str, config: object, whole: str, part: str) -> None:
    a, b = getattr(config, whole), getattr(config, part) or 1
    way_out = f"try {section}{whole}={-(-a // b) * b}, or leave both out for the defaults"
    _check(a % b == 0, f"{section}{whole}={a} must be a multiple of {section}{part}={b}; {way_out}")


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise UserError(problem)
