"""The transformer in its two families: GPT-2's blocks and the modern ones of Qwen3, by one `Block`.

In: `ModelConfig`, a vocabulary size, token ids. Out: next-token logits, with a key-value cache for generation.
After GPT-2 (Radford 2019), RoPE (Su 2021), SwiGLU (Shazeer 2020), QK-norm (Henry 2020), GQA (Ainslie 2023). From the
same weights both families compute what transformers' GPT2LMHeadModel and Qwen3ForCausalLM compute.
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
        shape = config.depth, rows, config.context, config.kv_heads, config.head_dim
        self.k, self.v = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        self.length_B = torch.zeros(rows, dtype=torch.long, device=device)


class Where:
    """What a pass over `ids_BT` knows about places: positions, rotation, the cache, and who may look at whom."""

    def __init__(
        self, config: ModelConfig, ids_BT: Tensor, cache: Cache | None, document_BT: Tensor | None = None
    ) -> None:
        rows, time = ids_BT.shape
        self.cache, self.mask_B1TS, self.cos = cache, None, None
        self.at_BT = torch.arange(time, device=ids_BT.device)[None]
        if cache is not None:
            self.rows_B1 = torch.arange(rows, device=ids_BT.device)[:, None]
            self.at_BT = cache.length_B[:, None] + self.at_BT
            self.slots_S = torch.arange(int(self.at_BT.max()) + 1, device=ids_BT.device)
            self.mask_B1TS = self.slots_S <= self.at_BT[:, None, :, None]
        elif document_BT is not None:
            begins_BT = F.pad(document_BT[:, 1:] != document_BT[:, :-1], (1, 0))
            same_B1TS = document_BT[:, None, :, None] == document_BT[:, None, None, :]
            self.mask_B1TS = same_B1TS & (self.at_BT <= self.at_BT[0, :, None])
            self.at_BT = self.at_BT - (begins_BT * self.at_BT).cummax(1).values
        if config.family == "modern":
            rates_D = torch.arange(0, config.head_dim, 2, device=ids_BT.device).float() / -config.head_dim
            angles_BT1D = self.at_BT[:, :, None, None].float() * (config.rope_theta**rates_D).repeat(2)
            self.cos, self.sin = angles_BT1D.cos(), angles_BT1D.sin()

    def rotate(self, x_BTHD: Tensor) -> Tensor:
        """RoPE in the half-rotation layout of Llama and Qwen; GPT-2 has its positions in the embedding."""
        if self.cos is None:
            return x_BTHD
        left, right = x_BTHD.chunk(2, dim=-1)
        return x_BTHD * self.cos + torch.cat((-right, left), dim=-1) * self.sin

    def remember(self, layer: int, k_BTGD: Tensor, v_BTGD: Tensor) -> tuple[Tensor, Tensor]:
        """Put one layer's new keys and values into the cache; all that it holds for these rows."""
        if self.cache is None:
            return k_BTGD, v_BTGD
        for store, new in ((self.cache.k[layer], k_BTGD), (self.cache.v[layer], v_BTGD)):
            store[self.rows_B1, self.at_BT] = new
        return self.cache.k[layer][:, : len(self.slots_S)], self.cache.v[layer][:, : len(self.slots_S)]


class Attention(nn.Module):
    """Causal attention over grouped heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, gpt2 = config, layer, config.family == "gpt2"
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_dim, bias=gpt2)
        self.proj = nn.Linear(config.width, config.width, bias=gpt2)
        self.q_norm, self.k_norm = (nn.Identity() if gpt2 else _norm(config, config.head_dim) for _ in "qk")

    def forward(self, x_BTC: Tensor, where: Where) -> Tensor:
        c, mask, p = self.config, where.mask_B1TS, self.config.dropout if self.training else 0.0
        heads = self.qkv(x_BTC).unflatten(-1, (-1, c.head_dim)).split((c.heads, c.kv_heads, c.kv_heads), dim=2)
        q_BTHD, k_BTGD = where.rotate(self.q_norm(heads[0])), where.rotate(self.k_norm(heads[1]))
        q, k, v = (part.transpose(1, 2) for part in (q_BTHD, *where.remember(self.layer, k_BTGD, heads[2])))
        grouped = c.kv_heads != c.heads
        y_BHTD = F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=mask is None, enable_gqa=grouped)
        return self.proj(y_BHTD.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """GELU (gpt2), or SwiGLU with gate and up in one matrix, gate rows first (modern)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gpt2 = config.family == "gpt2"
        self.up = nn.Linear(config.width, config.hidden * (1 if self.gpt2 else 2), bias=self.gpt2)
        self.down = nn.Linear(config.hidden, config.width, bias=self.gpt2)

    def forward(self, x_BTC: Tensor) -> Tensor:
        if self.gpt2:
            return self.down(F.gelu(self.up(x_BTC), approximate="tanh"))
        gate, up = self.up(x_BTC).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Attention, then MLP, each on the normed stream and added to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln1, self.attn = _norm(config, config.width), Attention(config, layer)
        self.ln2, self.mlp = _norm(config, config.width), MLP(config)
        self.dropout = config.dropout

    def forward(self, x_BTC: Tensor, where: Where) -> Tensor:
        x_BTC = x_BTC + F.dropout(self.attn(self.ln1(x_BTC), where), self.dropout, self.training)
        return x_BTC + F.dropout(self.mlp(self.ln2(x_BTC)), self.dropout, self.training)


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

    def forward(self, ids_BT: Tensor, cache: Cache | None = None, document_BT: Tensor | None = None) -> Tensor:
        """Token ids (int64) -> logits_BTV (float32) for the token after each.

        `document_BT` numbers documents that lie side by side in a row: each is read as if it were alone.
        """
        return self.logits(self.stream(ids_BT, cache, document_BT))

    def stream(self, ids_BT: Tensor, cache: Cache | None = None, document_BT: Tensor | None = None) -> Tensor:
        """Token ids -> the final normed stream_BTC, before the head; callers that need few logits start here."""
        where = Where(self.config, ids_BT, cache, document_BT)
        x_BTC = self.wte(ids_BT) if self.wpe is None else self.wte(ids_BT) + self.wpe(where.at_BT)
        x_BTC = F.dropout(x_BTC, self.config.dropout, self.training)
        for block in self.h:
            x_BTC = block(x_BTC, where)
        return self.ln_f(x_BTC)

    def logits(self, stream: Tensor) -> Tensor:
        """The head: any part of the stream [..., C] -> logits [..., V] in float32."""
        return F.linear(stream, self.wte.weight if self.lm_head is None else self.lm_head.weight).float()


def _norm(config: ModelConfig, width: int) -> nn.Module:
    return (nn.LayerNorm if config.family == "gpt2" else nn.RMSNorm)(width, eps=config.eps)
