"""What a model is and how it is trained: two frozen records with every default, checked once, where they are made.

In: the recipe's numbers. Out: `ModelConfig` with every derived size filled in, `TrainConfig` that `gpt.train` obeys.
`depth` is the one dial (after nanochat): width 64 x depth, heads of 64. A contradiction is a UserError.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from gpt.errors import UserError

PYDANTIC = {"use_attribute_docstrings": True, "extra": "forbid"}  # for recipes; this file does not need pydantic

PEAK_TFLOPS = {"A100": 312, "L40S": 362, "H100": 989, "H200": 989, "B200": 2250, "RTX4090": 165}
"""Dense bf16 peaks from the makers' data sheets."""


def too_large(parameters: int, memory_bytes: float) -> bool:
    """Whether weights, gradients and AdamW's moments, 16 bytes a parameter, leave less than half of a device's memory.

    Then each rank of a training holds a part of them (gpt/dist.py).
    """
    return 16 * parameters > memory_bytes / 2


CPU_TOKENS = 2**12
"""More in one pass bring a CPU little but memory: 442, 422, 460 us a token with 2, 8, 24 thousand of them."""


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
    head_dim: int = 0
    """Channels of one head; 0 takes width / heads (others: modern only)."""
    kv_heads: int = 0
    """Key and value heads shared by groups of heads (modern only); 0 takes as many as heads."""
    hidden: int = 0
    """Channels inside the MLP; 0 takes 4 x width, or for swiglu, which has a third matrix, 8/3 x width up to 64s."""
    act: Literal["auto", "gelu", "swiglu", "relu2"] = "auto"
    """auto: gelu (gpt2), swiglu (modern). relu2 (modern only): ReLU squared; some tools cannot read its export."""
    context: int = 256
    """Tokens the model can look back on; also the length of a training window."""
    tied: bool = True
    """Input and output embeddings are one matrix."""
    dropout: float = 0.0
    """Share of activations dropped in training; useful when a small corpus is read many times."""
    rope_theta: float = 10000.0
    """Base of the rotary angles (modern only)."""

    def __post_init__(self) -> None:
        _choices("model.", self)
        _check(self.rope_theta > 0, f"model.rope_theta={self.rope_theta} must be positive; leave it out for 10000")
        _at_least("model.", self, depth=1, context=2, width=0, heads=0, head_dim=0, kv_heads=0, hidden=0)
        self._derive("width", 64 * self.depth)
        self._derive("heads", max(1, self.width // 64))
        self._derive("kv_heads", self.heads)
        self._derive("act", "gelu" if self.family == "gpt2" else "swiglu", unset="auto")
        self._derive("hidden", -(-8 * self.width // 192) * 64 if self.act == "swiglu" else 4 * self.width)
        if not self.head_dim:
            _multiple("model.", self, "width", "heads")
        self._derive("head_dim", self.width // self.heads)
        _multiple("model.", self, "heads", "kv_heads")
        _check(self.head_dim % 2 == 0, f"model.width / model.heads is {self.head_dim}, must be even; try other heads")
        plain = self.kv_heads == self.heads and self.heads * self.head_dim == self.width and self.rope_theta == 1e4
        what = "model.head_dim, model.kv_heads and model.rope_theta need model.family=modern"
        _check(plain or self.family == "modern", f"{what}; leave them out for gpt2")
        fits = (self.act == "gelu") == (self.family == "gpt2")
        _check(fits, f"model.act={self.act} does not go with model.family={self.family}; leave it out for the default")
        _check(0 <= self.dropout < 1, f"model.dropout={self.dropout} must lie in [0, 1); try 0.1")

    def _derive(self, name: str, value: int | str, unset: int | str = 0) -> None:
        if getattr(self, name) == unset:
            object.__setattr__(self, name, value)

    def products(self, vocab_size: int) -> int:
        """Parameters that are multiplied with: the head counts, tied or not, a lookup does not."""
        mlp = (3 if self.act == "swiglu" else 2) * self.width * self.hidden
        heads = 2 * (self.heads + self.kv_heads) * self.head_dim
        return self.depth * (self.width * heads + mlp) + vocab_size * self.width

    def lookups(self, vocab_size: int) -> int:
        """Parameters that are looked up only; norms and biases are left out."""
        positions = self.context * self.width if self.family == "gpt2" else 0
        return positions + (0 if self.tied else vocab_size * self.width)

    def flops(self, vocab_size: int) -> int:
        """Of a token in training, forward and backward: 6 x products + 12 x depth x width x context (PaLM, app. B)."""
        return 6 * self.products(vocab_size) + 12 * self.depth * self.heads * self.head_dim * self.context

    def activations(self, size: int, scores: bool) -> int:
        """Bytes that a row's forward pass keeps for the backward, of numbers of `size` bytes; about.

        `scores`: whether attention's, which grow with the square of the context, are kept too (gpt/model.py).
        """
        mlp = (3 if self.act == "swiglu" else 2) * self.hidden
        block = 12 * self.width + 2 * mlp + (3 * self.heads * self.context if scores else 0)
        return self.context * self.depth * block * size + self.context * self.width * 16

    @property
    def eps(self) -> float:
        """What the norms add to the variance, as GPT2LMHeadModel and Qwen3ForCausalLM do."""
        return 1e-5 if self.family == "gpt2" else 1e-6


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained; pretraining and fine-tuning share these."""

    __pydantic_config__ = PYDANTIC
    DERIVES: ClassVar[bool] = False
    """Whether steps, batch and rates may be left at 0, to be derived from the model."""
    steps: int = 1000
    """Optimiser steps."""
    batch: int = 16
    """Sequences per optimiser step, on all devices together."""
    micro_batch: int = 0
    """Sequences per forward pass and device; gradients add up to the batch's. 0: as many as memory should hold."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: for the blocks' matrices, with adamw for the rest; learns more a step, for models trained from scratch."""
    lr: float = 2e-3
    """Highest learning rate: of adamw (larger models want less; GPT-2 124M: 6e-4), or of muon (0.02)."""
    adam_lr: float = 3e-3
    """Highest learning rate of what muon leaves to adamw: embeddings, head, norms."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up a cosine down to the end; or wsd: the highest rate, then a straight line down."""
    cooldown: float = 0.4
    """Share of all steps that the straight line of wsd takes."""
    min_lr_ratio: float = 0.1
    """The schedule ends at this share of the highest rate."""
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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation; weights stay float32. auto: bfloat16 on a GPU, and on a CPU that has instructions for it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the blocks: half a minute for faster steps. auto: on a GPU, and on a CPU for hours of work."""
    deterministic: bool = False
    """On a GPU too the same bits each time, at the cost of speed; on a CPU that is always so."""
    seed: int = 1337
    """Of the weights, the data order and dropout."""

    def __post_init__(self) -> None:
        least = 0 if self.DERIVES else 1
        _at_least("", self, steps=least, batch=least, micro_batch=0, warmup_steps=0, weight_decay=0, clip=0)
        _at_least("", self, eval_every=1, eval_windows=1, checkpoint_every=1, keep=1, sample_every=0, seed=0)
        for name, value in (("lr", self.lr), ("adam_lr", self.adam_lr)):
            _check(value > 0 or (self.DERIVES and value == 0), f"{name}={value} must be positive; try 1e-3")
        for name in ("beta1", "beta2", "min_lr_ratio", "cooldown"):
            value = getattr(self, name)
            holds = 0 <= value < 1 or (value == 1 and "beta" not in name)
            _check(holds, f"{name}={value} must lie between 0 and 1; leave it out for the default")
        _check(self.seed < 2**63, f"seed={self.seed} must be below 2^63; try 1337")
        _choices("", self)
        if self.batch:
            _multiple("", self, "batch", "micro_batch")

    @property
    def rows_each(self) -> int:
        """Rows of tokens that one of the batch's units brings."""
        return 1

    def fitted(self, model: ModelConfig, vocab_size: int) -> Self:
        """The same with every number filled in; here all are."""
        return self


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """How a model is trained from scratch: what is left at 0 follows from the model."""

    DERIVES: ClassVar[bool] = True
    steps: int = 0
    """Optimiser steps; 0 takes as many as it needs to read 20 tokens a parameter (Hoffmann et al. 2022)."""
    batch: int = 0
    """Sequences per optimiser step, on all devices together; 0: more for longer trainings, 2^19 tokens for GPT-2's."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """muon: for the blocks' matrices, with adamw for the rest; adamw: for all, as GPT-2 was trained."""
    lr: float = 0.0
    """Highest learning rate; 0 takes 0.02 for muon and 1e-3 at width 768, more for a narrower model, for adamw."""
    adam_lr: float = 0.0
    """Highest learning rate of what muon leaves to adamw; 0: 1.6e-3 at width 768, more for a narrower model."""
    schedule: Literal["cosine", "wsd"] = "wsd"
    """wsd: the highest rate, then a straight line down; or a cosine."""
    min_lr_ratio: float = 0.0
    """The schedule ends at this share of the highest rate."""

    def fitted(self, model: ModelConfig, vocab_size: int) -> Self:
        """The same with every number filled in.

        The batch: 2^19 tokens for the 2.5 billion of GPT-2 124M, 3,072 for the 2.6 million that did best with it on a
        CPU (docs/pretraining.md), and between those two on a line in logarithms: tokens^0.75. Of stated steps, which
        times the batch are the tokens, that makes steps^3; but 4,096 at least, and no more than without them.
        """
        tokens, unit = 20 * model.products(vocab_size), self.micro_batch or 1
        size = 2**19 * (tokens / 2.5e9) ** 0.75
        if self.steps:
            size = min(size, max(2**12, 2**19 * (self.steps * 2**19 / 2.5e9) ** 3))
        batch = self.batch or max(1, round(2 ** round(math.log2(size)) / model.context / unit)) * unit
        narrow = (768 / model.width) ** 0.5
        lr = self.lr or (0.02 if self.optimizer == "muon" else 1e-3 * narrow)
        steps = self.steps or max(1, round(tokens / (batch * model.context)))
        return replace(self, steps=steps, batch=batch, lr=lr, adam_lr=self.adam_lr or 1.6e-3 * narrow)


@dataclass(frozen=True, kw_only=True)
class PreferConfig(TrainConfig):
    """How preferences are learned; a batch counts pairs."""

    beta: float = 0.1
    """DPO's strength of the reference: higher stays closer to it."""
    sft_weight: float = 1.0
    """Weight of the chosen answers' own loss beside DPO's; 0 is plain DPO, under which chosen answers lose too."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the computation; what is learned here are small differences of sums, which bfloat16 rounds away."""

    @property
    def rows_each(self) -> int:
        """A pair has two answers."""
        return 2

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
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the computation; float32, as completions are sampled: a policy should learn from what it does itself."""

    @property
    def rows_each(self) -> int:
        """A prompt has a group of completions."""
        return self.group

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("", self, group=2, max_new_tokens=1, beta=0, resample=0, exact=0, numeric=0, form=0)
        _check(0 < self.temperature < 100, f"temperature={self.temperature} must lie in (0, 100); try 1.0")
        _check(self.exact + self.numeric + self.form > 0, "no reward counts; set one of exact, numeric, form to 1")


def _choices(section: str, config: object) -> None:
    """A word must be one of those that its field knows; pydantic checks recipes, not a run.json written by hand."""
    for name, hint in get_type_hints(type(config)).items():
        known = get_args(hint) if get_origin(hint) is Literal else ()
        value = getattr(config, name)
        _check(not known or value in known, f"{section}{name}={value} must be one of {', '.join(map(str, known))}")


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
