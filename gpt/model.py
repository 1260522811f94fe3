"""The transformer in its two families: GPT-2's blocks and the modern ones of Qwen3, by one `Block`.

In: `ModelConfig`, a vocabulary size, token ids. Out: next-token logits, or what targets cost.
After GPT-2 (Radford 2019), RoPE (Su 2021), SwiGLU (Shazeer 2020), QK-norm (Henry 2020), GQA (Ainslie 2023). From the
same weights both families compute what transformers' GPT2LMHeadModel and Qwen3ForCausalLM compute.
Weights are float32; with `compute` set to bfloat16 each is cast where it is used and activations are bfloat16, which on
a CPU with AVX512-BF16 halves a step. Autocast would not do: its attention backward takes 3 times as long there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt import kernels
from gpt.config import ModelConfig
from gpt.crossentropy import costs, summed_cost

# B batch, T time, S slots of the cache, C channels, H heads, G key-value heads, D channels per head, V vocabulary


class Where:
    """What a pass over `ids_BT` knows about places: positions, rotation, and who may look at whom."""

    def __init__(self, config: ModelConfig, ids_BT: Tensor, document_BT: Tensor | None, dtype: torch.dtype) -> None:
        time, self.mask_B1TT, self.cos = ids_BT.shape[1], None, None
        self.at_BT = torch.arange(time, device=ids_BT.device)[None]
        if document_BT is not None:
            begins_BT = F.pad(document_BT[:, 1:] != document_BT[:, :-1], (1, 0))
            same_B1TT = document_BT[:, None, :, None] == document_BT[:, None, None, :]
            self.mask_B1TT = same_B1TT & (self.at_BT <= self.at_BT[0, :, None])
            self.at_BT = self.at_BT - (begins_BT * self.at_BT).cummax(1).values
        elif kernels.better(ids_BT.device, dtype):
            self.mask_B1TT = torch.ones(1, 1, time, time, dtype=torch.bool).tril()
        if self.mask_B1TT is not None and kernels.better(ids_BT.device, dtype):
            self.mask_B1TT = torch.zeros(self.mask_B1TT.shape, dtype=dtype).masked_fill(~self.mask_B1TT, -1e30)
        if config.family == "modern":
            angles_BT1D = angles(config, self.at_BT[..., None])
            self.cos, self.sin = angles_BT1D.cos().to(dtype), angles_BT1D.sin().to(dtype)

    def rotate(self, x_BTHD: Tensor) -> Tensor:
        """RoPE in the half-rotation layout of Llama and Qwen; GPT-2 has its positions in the embedding."""
        if self.cos is None:
            return x_BTHD
        left, right = x_BTHD.chunk(2, dim=-1)
        return x_BTHD * self.cos + torch.cat((-right, left), dim=-1) * self.sin


def angles(config: ModelConfig, at: Tensor) -> Tensor:
    """By how much RoPE turns each pair of channels at each place: [..., D], both halves alike."""
    powers_D = torch.arange(0, config.head_dim, 2, device=at.device).float() / config.head_dim
    return at[..., None].float() * (1 / config.rope_theta**powers_D).repeat(2)


class Linear(nn.Linear):
    """A matrix of float32 weights, used in the dtype of what comes in: the cast is at most 4 % of a step."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name for it)
        return F.linear(input, self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype))


class LayerNorm(nn.LayerNorm):
    """GPT-2's norm, likewise."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name for it)
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """The modern norm, likewise."""

    def forward(self, x: Tensor) -> Tensor:
        if kernels.better(x.device, x.dtype):
            return kernels.RMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal attention over grouped heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, gpt2 = config, config.family == "gpt2"
        self.qkv = Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_dim, bias=gpt2)
        self.proj = Linear(config.heads * config.head_dim, config.width, bias=gpt2)
        self.q_norm, self.k_norm = (nn.Identity() if gpt2 else _norm(config, config.head_dim) for _ in "qk")

    def forward(self, x_BTC: Tensor, where: Where) -> Tensor:
        c, mask, p = self.config, where.mask_B1TT, self.config.dropout if self.training else 0.0
        heads = self.qkv(x_BTC).unflatten(-1, (-1, c.head_dim)).split((c.heads, c.kv_heads, c.kv_heads), dim=2)
        q_BTHD, k_BTGD = where.rotate(self.q_norm(heads[0])), where.rotate(self.k_norm(heads[1]))
        q, k, v = (part.transpose(1, 2) for part in (q_BTHD, k_BTGD, heads[2]))
        if mask is not None and mask.dtype == x_BTC.dtype:
            y_BHTD = kernels.attend(q, k, v, mask, p)
        else:
            grouped = c.kv_heads != c.heads
            y_BHTD = F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=mask is None, enable_gqa=grouped)
        return self.proj(y_BHTD.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """GELU (gpt2), SwiGLU with gate and up in one matrix, gate rows first (modern), or the square of ReLU (relu2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.act, gpt2 = config.act, config.family == "gpt2"
        self.up = Linear(config.width, config.hidden * (2 if config.act == "swiglu" else 1), bias=gpt2)
        self.down = Linear(config.hidden, config.width, bias=gpt2)

    def forward(self, x_BTC: Tensor) -> Tensor:
        up = self.up(x_BTC)
        if self.act == "swiglu":
            gate, up = up.chunk(2, dim=-1)
            return self.down(F.silu(gate) * up)
        return self.down(F.gelu(up, approximate="tanh") if self.act == "gelu" else F.relu(up).square())


class Block(nn.Module):
    """Attention, then MLP, each on the normed stream and added to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln1, self.attn = _norm(config, config.width), Attention(config)
        self.ln2, self.mlp = _norm(config, config.width), MLP(config)
        self.dropout = config.dropout

    def forward(self, x_BTC: Tensor, where: Where) -> Tensor:
        x_BTC = x_BTC + F.dropout(self.attn(self.ln1(x_BTC), where), self.dropout, self.training)
        return x_BTC + F.dropout(self.mlp(self.ln2(x_BTC)), self.dropout, self.training)


class GPT(nn.Module):
    """A decoder-only language model. Parameter names are the checkpoint format (docs/formats.md)."""

    compute: torch.dtype | None = None
    """The dtype of activations in training and scoring; None is the weights' own. Text is written by gpt/decode.py."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        rows = -(-vocab_size // 128) * 128 if vocab_size >= 4096 else vocab_size  # what matrix kernels like
        self.wte = nn.Embedding(rows, config.width)
        self.wpe = nn.Embedding(config.context, config.width) if config.family == "gpt2" else None
        self.h = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.ln_f = _norm(config, config.width)
        self.lm_head = None if config.tied else Linear(config.width, rows, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:  # what is added to the stream 2 x depth times starts smaller (GPT-2)
                residual = name.endswith(("attn.proj.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * config.depth) ** 0.5 if residual else 0.02)

    def forward(self, ids_BT: Tensor, document_BT: Tensor | None = None, target_BT: Tensor | None = None) -> Tensor:
        """Token ids (int64) -> logits_BTV (float32) for the token after each; with targets the sum of their costs.

        `document_BT` numbers documents that lie side by side in a row: each is read as if it were alone.
        """
        stream_BTC = self.stream(ids_BT, document_BT)
        if target_BT is None:
            return self.logits(stream_BTC)
        return summed_cost(stream_BTC.flatten(0, 1), self.head(), target_BT.flatten(), self.vocab_size)

    @torch.no_grad()
    def costs(self, ids_BT: Tensor, target_BT: Tensor) -> Tensor:
        """What each target costs in nats, [B, T] float32, 0 where it is IGNORED; logits are made a part at a time."""
        stream_NC = self.stream(ids_BT).flatten(0, 1)
        return costs(stream_NC, self.head(), target_BT.flatten(), self.vocab_size).view(target_BT.shape)

    def stream(self, ids_BT: Tensor, document_BT: Tensor | None = None) -> Tensor:
        """Token ids -> the final normed stream_BTC, before the head; callers that need few logits start here."""
        dtype = self.compute or self.wte.weight.dtype
        where = Where(self.config, ids_BT, document_BT, dtype)
        x_BTC = self.wte(ids_BT) if self.wpe is None else self.wte(ids_BT) + self.wpe(where.at_BT)
        x_BTC = F.dropout(x_BTC.to(dtype), self.config.dropout, self.training)
        for block in self.h:  # perhaps compiled, for the one shape of training
            x_BTC = block(x_BTC, where) if self.training else block.forward(x_BTC, where)
        return self.ln_f(x_BTC)

    def head(self) -> Tensor:
        """The output embedding, [V, C]."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, stream: Tensor) -> Tensor:
        """The head: any part of the stream [..., C] -> logits [..., V] in float32."""
        logits = F.linear(stream, self.head().to(stream.dtype))[..., : self.vocab_size]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _norm(config: ModelConfig, width: int) -> nn.Module:
    return (LayerNorm if config.family == "gpt2" else RMSNorm)(width, eps=config.eps)
