"""The transformer in its two families: GPT-2's blocks and the modern ones of Qwen3, by one `Block`.

In: `ModelConfig`, a vocabulary size, token ids. Out: next-token logits, with a key-value cache for generation.
After GPT-2 (Radford 2019), RoPE (Su 2021), SwiGLU (Shazeer 2020), QK-norm (Henry 2020), GQA (Ainslie 2023); both
families compute what transformers' GPT2LMHeadModel and Qwen3ForCausalLM compute from the same weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config import ModelConfig

# B batch, T time, S slots of the cache, C channels, H heads, G key-value heads, D channels per head, V vocabulary


class Cache:
    """Keys and values of what each row has read; rows may differ in length.

    A call reads `ids_BT` at positions `length_B` onwards; the caller then moves `length_B` to what is real. A shorter
    row's padding lies beyond it: nobody looks there, and the tokens that follow overwrite it.
    """

    def __init__(self, config: ModelConfig, rows: int, device: torch.device | str = "cpu") -> None:
        shape = config.depth, rows, config.kv_heads, config.context, config.head_dim
        self.k, self.v = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        self.length_B = torch.zeros(rows, dtype=torch.long, device=device)

    def extend(self, layer: int, at_BT: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values at their positions; the first `slots` of all that is stored."""
        rows_B1 = torch.arange(len(at_BT), device=at_BT.device)[:, None]
        for store, new in ((self.k[layer], k_BGTD), (self.v[layer], v_BGTD)):
            store[rows_B1, :, at_BT] = new.transpose(1, 2)
        return self.k[layer, :, :, :slots], self.v[layer, :, :, :slots]


class Attention(nn.Module):
    """Causal attention; `where` holds what all layers share: rotation, positions, mask, cache."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, bias = config, layer, config.family == "gpt2"
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_dim, bias=bias)
        self.proj = nn.Linear(config.width, config.width, bias=bias)
        modern = config.family == "modern"
        self.q_norm = _norm(config, config.head_dim) if modern else nn.Identity()
        self.k_norm = _norm(config, config.head_dim) if modern else nn.Identity()

    def forward(self, x_BTC: Tensor, where: "Where") -> Tensor:
        c, (B, T, _) = self.config, x_BTC.shape
        qkv = self.qkv(x_BTC).view(B, T, -1, c.head_dim).split((c.heads, c.kv_heads, c.kv_heads), dim=2)
        q_BHTD, k_BGTD, v_BGTD = (part.transpose(1, 2) for part in qkv)
        q_BHTD, k_BGTD = where.rotate(self.q_norm(q_BHTD)), where.rotate(self.k_norm(k_BGTD))
        if where.cache is not None:
            k_BGTD, v_BGTD = where.cache.extend(self.layer, where.at_BT, k_BGTD, v_BGTD, where.slots)
        y_BHTD = F.scaled_dot_product_attention(
            q_BHTD,
            k_BGTD,
            v_BGTD,
            where.mask_B1TS,
            dropout_p=c.dropout if self.training else 0.0,
            is_causal=where.mask_B1TS is None,
            enable_gqa=c.kv_heads != c.heads,
        )
        return self.proj(y_BHTD.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """GELU (gpt2), or SwiGLU with gate and up in one matrix, gate rows first (modern)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated, bias = config.family == "modern", config.family == "gpt2"
        self.up = nn.Linear(config.width, config.hidden * (2 if self.gated else 1), bias=bias)
        self.down = nn.Linear(config.hidden, config.width, bias=bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x = self.up(x_BTC)
        if not self.gated:
            return self.down(F.gelu(x, approximate="tanh"))
        gate, up = x.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Attention, then MLP, each on the normed stream and added to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln1, self.attn = _norm(config, config.width), Attention(config, layer)
        self.ln2, self.mlp = _norm(config, config.width), MLP(config)
        self.dropout = config.dropout

    def forward(self, x_BTC: Tensor, where: "Where") -> Tensor:
        x_BTC = x_BTC + F.dropout(self.attn(self.ln1(x_BTC), where), self.dropout, self.training)
        return x_BTC + F.dropout(self.mlp(self.ln2(x_BTC)), self.dropout, self.training)


class Where:
    """What a pass over `ids_BT` knows about places: positions, rotation, and who may look at whom."""

    def __init__(self, config: ModelConfig, ids_BT: Tensor, cache: Cache | None) -> None:
        steps_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        self.cache, self.mask_B1TS, self.at_BT, self.cos = cache, None, steps_T[None], None
        if cache is not None:
            self.at_BT = cache.length_B[:, None] + steps_T
            self.slots = int(self.at_BT.max()) + 1
            seen_S = torch.arange(self.slots, device=ids_BT.device)
            self.mask_B1TS = seen_S <= self.at_BT[:, None, :, None]
        if config.family == "modern":
            rates_D = torch.arange(0, config.head_dim, 2, device=ids_BT.device).float() / -config.head_dim
            angle_B1TD = self.at_BT[:, None, :, None].float() * (config.rope_theta**rates_D).repeat(2)
            self.cos, self.sin = angle_B1TD.cos(), angle_B1TD.sin()

    def rotate(self, x_BHTD: Tensor) -> Tensor:
        """RoPE in the half-rotation layout of Llama and Qwen; GPT-2 has its positions in the embedding."""
        if self.cos is None:
            return x_BHTD
        left, right = x_BHTD.chunk(2, dim=-1)
        return x_BHTD * self.cos + torch.cat((-right, left), dim=-1) * self.sin


class GPT(nn.Module):
    """A decoder-only language model. Parameter names are the checkpoint format (docs/formats.md)."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.wte = nn.Embedding(vocab_size, config.width)
        self.wpe = nn.Embedding(config.context, config.width) if config.family == "gpt2" else None
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.ln_f = _norm(config, config.width)
        self.lm_head = None if config.tied else nn.Linear(config.width, vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:  # what is added to the stream 2 x depth times starts smaller (GPT-2)
                residual = name.endswith(("attn.proj.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * config.depth) ** 0.5 if residual else 0.02)

    def forward(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Token ids (int64) -> logits_BTV (float32) for the token after each."""
        return self.logits(self.stream(ids_BT, cache))

    def stream(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Token ids -> the final normed stream_BTC, before the head; callers that need few logits start here."""
        where = Where(self.config, ids_BT, cache)
        x_BTC = self.wte(ids_BT)
        if self.wpe is not None:
            x_BTC = x_BTC + self.wpe(where.at_BT)
        x_BTC = F.dropout(x_BTC, self.config.dropout, self.training)
        for block in self.h:
            x_BTC = block(x_BTC, where)
        return self.ln_f(x_BTC)

    def logits(self, stream: Tensor) -> Tensor:
        """The head: any part of the stream [..., C] -> logits [..., V] in float32."""
        return F.linear(stream, self.wte.weight if self.lm_head is None else self.lm_head.weight).float()


def _norm(config: ModelConfig, width: int) -> nn.Module:
    return (nn.LayerNorm if config.family == "gpt2" else nn.RMSNorm)(width, eps=config.eps)
