"""A model laid out for writing: what was read stays as keys and values, and a further token costs a token's work.

In: a `GPT`, of which it keeps its own copy; rows of ids. Out: logits after each row's last token, as `GPT.forward` has
them up to rounding. Method: a small model is held up by the number of calls, a large one by the bytes of its weights.
So gains of norms and the scale of attention are multiplied into the matrices, matrices are stored as they are read
fastest, and rows stand aligned at their ends: all write into one slot, and attention reads what lies side by side.
"""

import functools
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.errors import UserError
from gpt.model import GPT, Block, angles

# B batch, U different rows, N rows x times, T time, S slots, C channels, H heads, G key-value heads, D per head

WEIGHTS = "float32", "bfloat16", "int8"
Product = Callable[[Tensor], Tensor]

SMALL = 2**18
"""A matrix of fewer numbers stays float32 where bfloat16 was asked for: oneDNN takes 12 us a call for any."""
FEW = 16
"""Up to so many rows, a small matrix is multiplied without oneDNN."""
AT_ONCE = 2**14
"""Tokens of prompts in one pass."""


class Cache:
    """Keys and values of rows that end in the same slot; what lies before a shorter row's first is masked."""

    def __init__(self, shape: tuple[int, int, int, int], rows: int, like: Tensor) -> None:
        depth, heads, self.slots, dim = shape
        # zeros: what is masked is multiplied by 0, which NaN would survive
        self.kv_L2BGSD = like.new_zeros(depth, 2, rows * heads, self.slots, dim).unflatten(2, (rows, heads))
        self.at_B = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.mask_B1S: Tensor | None = None
        self.used = 0

    def keep(self, places: Sequence[int]) -> None:
        """Row i is now what row `places[i]` was; only rows that move are copied."""
        for place, before in enumerate(places):
            if place != before:
                self.kv_L2BGSD[:, :, place, :, : self.used] = self.kv_L2BGSD[:, :, before, :, : self.used]
        self.kv_L2BGSD, self.at_B = self.kv_L2BGSD[:, :, : len(places)], self.at_B[list(places)]
        self.mask_B1S = None if self.mask_B1S is None else self.mask_B1S[list(places)]


class Decoder:
    """A model's weights as they are at this moment, in the form asked for."""

    @torch.inference_mode()
    def __init__(self, model: GPT, weights: str = "float32") -> None:
        self.config, self.vocab_size, cuda = model.config, model.vocab_size, model.wte.weight.is_cuda
        if weights not in WEIGHTS[: 2 if cuda else 3]:
            raise UserError(f"weights is {weights!r}, must be float32, bfloat16 or, on a CPU, int8")
        c, dtype = self.config, torch.bfloat16 if cuda and weights == "bfloat16" else model.wte.weight.dtype
        self.wte, self.wpe = model.wte.weight.to(dtype), None if model.wpe is None else model.wpe.weight.to(dtype)
        self.eps, self.turns = self.wte.new_full((), c.eps), None
        self.blocks = [Layer(cast("Block", block), weights, dtype) for block in model.h]
        self.head = product(model.head()[: self.vocab_size], None, model.ln_f, weights, dtype)
        if c.family == "modern":
            angles_S1D = angles(c, torch.arange(c.context, device=self.wte.device)[:, None])
            sides_D = torch.tensor((-1.0, 1.0), device=self.wte.device).repeat_interleave(c.head_dim // 2)
            self.turns = angles_S1D.cos().to(dtype), (angles_S1D.sin() * sides_D).to(dtype)

    def cache(self, rows: int, slots: int) -> Cache:
        """Room for so many rows of so many tokens."""
        return Cache((self.config.depth, self.config.kv_heads, slots, self.config.head_dim), rows, self.wte)

    def read(self, rows: Sequence[Sequence[int]], cache: Cache) -> None:
        """Begin anew with these rows, which may be empty; equal ones are read once."""
        lengths, places = [len(row) for row in rows], dict[tuple[int, ...], list[int]]()
        cache.used = time = max(lengths)
        cache.at_B = torch.tensor(lengths, device=self.wte.device)
        cache.mask_B1S = None
        if min(lengths) < time:
            slots_S = torch.arange(cache.slots, device=self.wte.device)
            cache.mask_B1S = self.wte.new_zeros(len(rows), 1, cache.slots)
            cache.mask_B1S.masked_fill_(slots_S < time - cache.at_B[:, None, None], -torch.inf)
        for place, row in enumerate(rows):
            places.setdefault(tuple(row), []).append(place)
        size, distinct = max(1, AT_ONCE // max(1, time)), [row for row in places if row]
        for at in range(0, len(distinct), size):
            part = distinct[at : at + size]
            source = [n for n, row in enumerate(part) for _ in places[row]]
            self._read(part, time, cache, [place for row in part for place in places[row]], source)

    def _read(self, rows: list[tuple[int, ...]], time: int, cache: Cache, places: list[int], source: list[int]) -> None:
        c, device = self.config, self.wte.device
        ids_UT = torch.tensor([[0] * (time - len(row)) + list(row) for row in rows], device=device)
        at_T, mask_U1TT = torch.arange(time, device=device), None
        in_place = places == source == list(range(len(cache.at_B)))
        begin_U1 = torch.tensor([[time - len(row)] for row in rows], device=device)
        if bool(begin_U1.any()):
            seen_TT, real_U1T = at_T <= at_T[:, None], at_T >= begin_U1[:, None]
            mask_U1TT = ((seen_TT & real_U1T) | (at_T == at_T[:, None]))[:, None]  # padding sees itself: no NaN
        x_NC, turn = self._embed(ids_UT.flatten(), (at_T - begin_U1).clamp(min=0).flatten())
        for layer, block in enumerate(self.blocks):
            heads_UHTD = self._heads(block, x_NC, turn).view(len(rows), time, -1, c.head_dim).transpose(1, 2)
            q, k, v = heads_UHTD.split((c.heads, c.kv_heads, c.kv_heads), dim=1)
            new_2UGTD = heads_UHTD[:, c.heads :].unflatten(1, (2, c.kv_heads)).transpose(0, 1)
            store_2BGTD = cache.kv_L2BGSD[layer, :, :, :, :time]
            if in_place:
                store_2BGTD.copy_(new_2UGTD)
            else:
                store_2BGTD[:, places] = new_2UGTD[:, source]
            if layer + 1 < c.depth:  # of the last block nothing else is wanted
                grouped = c.heads != c.kv_heads
                y = F.scaled_dot_product_attention(
                    q, k, v, mask_U1TT, is_causal=mask_U1TT is None, scale=1.0, enable_gqa=grouped
                )
                x_NC = x_NC + block.proj(y.transpose(1, 2).flatten(0, 1).flatten(1))
                x_NC = x_NC + self._mlp(block, x_NC)

    def step(self, ids_B: Tensor, cache: Cache) -> Tensor:
        """Read one more token of every row: logits_BV, float32, for the next."""
        c, rows, used = self.config, len(ids_B), cache.used
        x_BC, turn = self._embed(ids_B, cache.at_B)
        seen_LBSD = cache.kv_L2BGSD[..., : used + 1, :].flatten(2, 3)
        keys, values = seen_LBSD[:, 0].mT.unbind(), seen_LBSD[:, 1].unbind()
        news = cache.kv_L2BGSD[..., used, :].transpose(1, 2).unbind()
        mask = None if cache.mask_B1S is None else cache.mask_B1S[..., : used + 1].repeat_interleave(c.kv_heads, 0)
        for block, k, v, new_B2GD in zip(self.blocks, keys, values, news, strict=True):
            heads_BHD = self._heads(block, x_BC, turn)
            new_B2GD.copy_(heads_BHD[:, c.heads :].view(new_B2GD.shape))
            q = heads_BHD[:, : c.heads].reshape(rows * c.kv_heads, -1, c.head_dim)
            scores = torch.bmm(q, k) if mask is None else torch.baddbmm(mask, q, k)
            x_BC = x_BC + block.proj(torch.bmm(scores.softmax(-1), v).view(rows, -1))
            x_BC = x_BC + self._mlp(block, x_BC)
        cache.used += 1
        cache.at_B += 1
        return self.head(self._normed(x_BC)).float()

    def _embed(self, ids_N: Tensor, at_N: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        x_NC = F.embedding(ids_N, self.wte)
        if self.turns is None:
            assert self.wpe is not None
            return x_NC + F.embedding(at_N, self.wpe), None
        cos_S1D, sin_S1D = self.turns
        return x_NC, (cos_S1D.index_select(0, at_N), sin_S1D.index_select(0, at_N))

    def _heads(self, block: "Layer", x_NC: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """Queries, keys and values of each head, [N, H + 2 G, D], turned to their places."""
        c = self.config
        heads_NHD = block.qkv(self._normed(x_NC)).view(len(x_NC), -1, c.head_dim)
        if turn is not None:
            qk_NHD = heads_NHD[:, : c.heads + c.kv_heads]
            normed_NHD = self._normed(qk_NHD) * block.gain_HD
            torch.addcmul(normed_NHD * turn[0], normed_NHD.roll(c.head_dim // 2, -1), turn[1], out=qk_NHD)
        return heads_NHD

    def _mlp(self, block: "Layer", x_NC: Tensor) -> Tensor:
        up, act = block.up(self._normed(x_NC)), self.config.act
        if act == "swiglu":
            gate, up = up.chunk(2, dim=-1)
            return block.down(F.silu(gate).mul_(up))
        return block.down(F.gelu(up, approximate="tanh") if act == "gelu" else F.relu(up).square())

    def _normed(self, x: Tensor) -> Tensor:
        """The family's norm without its gain, which is in the matrix that follows."""
        if self.turns is None:
            return F.layer_norm(x, x.shape[-1:], eps=self.config.eps)
        if x.is_cuda:
            return F.rms_norm(x, x.shape[-1:], eps=self.config.eps)
        length = torch.linalg.vector_norm(x, 2, -1, keepdim=True)  # half the calls of F.rms_norm on a CPU
        return x * torch.addcmul(self.eps, length, length, value=1 / x.shape[-1]).rsqrt_()


class Layer:
    """One block's matrices, with the gains before them inside, and queries scaled."""

    def __init__(self, block: Block, weights: str, dtype: torch.dtype) -> None:
        c, attn, mlp = block.attn.config, block.attn, block.mlp
        scale, of_q = c.head_dim**-0.5, c.heads * c.head_dim
        qkv, bias = attn.qkv.weight, attn.qkv.bias
        if c.family == "gpt2":
            qkv, bias = (torch.cat((part[:of_q] * scale, part[of_q:])) for part in (qkv, bias))
            self.gain_HD = qkv.new_empty(0)
        else:
            q_D, k_D = (norm.get_parameter("weight") for norm in (attn.q_norm, attn.k_norm))
            gains = (q_D * scale).expand(c.heads, -1), k_D.expand(c.kv_heads, -1)
            self.gain_HD = torch.cat(gains).to(dtype)
        self.qkv = product(qkv, bias, block.ln1, weights, dtype)
        self.proj = product(attn.proj.weight, attn.proj.bias, None, weights, dtype)
        self.up = product(mlp.up.weight, mlp.up.bias, block.ln2, weights, dtype)
        self.down = product(mlp.down.weight, mlp.down.bias, None, weights, dtype)


def product(
    weight_OI: Tensor, bias_O: Tensor | None, norm: torch.nn.Module | None, weights: str, dtype: torch.dtype
) -> Product:
    """x [N, I] -> x weight' + bias, after a norm whose gain and bias go into both."""
    if norm is not None:
        gains = dict(norm.named_parameters())
        if "bias" in gains:
            shift_O = weight_OI @ gains["bias"]
            bias_O = shift_O if bias_O is None else bias_O + shift_O
        weight_OI = weight_OI * gains["weight"]
    bias_O = None if bias_O is None else bias_O.to(dtype)
    if weight_OI.is_cuda:
        return functools.partial(F.linear, weight=weight_OI.to(dtype), bias=bias_O)
    if weight_OI.dtype != torch.float32:
        return lambda x: F.linear(x, weight_OI, bias_O)
    if weights == "int8":
        return _int8(weight_OI, bias_O)
    return _small(weight_OI, bias_O) if weight_OI.numel() < SMALL else _packed(weight_OI, bias_O, weights)


def _small(weight_OI: Tensor, bias_O: Tensor | None) -> Product:
    """For few rows the call is short, and [in, out] a third faster than [out, in]; for many oneDNN is twice as fast."""
    weight_IO, many = weight_OI.t().contiguous(), functools.cache(lambda: _packed(weight_OI, bias_O))
    if bias_O is None:
        return lambda x: many()(x) if len(x) > FEW else torch.mm(x, weight_IO)
    return lambda x: many()(x) if len(x) > FEW else torch.addmm(bias_O, x, weight_IO)


def _packed(weight_OI: Tensor, bias_O: Tensor | None, weights: str = "float32") -> Product:
    """oneDNN's own order of the numbers: 28 GB/s in bfloat16 for one row, where F.linear reads 12."""
    dtype = getattr(torch, weights)
    weight_OI, bias_O = weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype)
    if not torch.backends.mkldnn.is_available() or (dtype != torch.float32 and not _bf16()):
        return lambda x: F.linear(x.to(dtype), weight_OI, bias_O).float()
    packed, multiply = torch.ops.mkldnn._reorder_linear_weight(weight_OI, 1), torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x.to(dtype), packed, bias_O, "none", [], "").float()


def _bf16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _int8(weight_OI: Tensor, bias_O: Tensor | None) -> Product:
    """127 steps to each side of zero, as large as each output channel needs; inputs are rounded to bfloat16."""
    scale_O = (weight_OI.abs().amax(1) / 127).clamp(min=1e-30).bfloat16()
    whole_OI = (weight_OI / scale_O[:, None].float()).round().clamp(-127, 127).to(torch.int8)

    def multiply(x: Tensor) -> Tensor:
        y = torch._weight_int8pack_mm(x.bfloat16(), whole_OI, scale_O)
        return y.float() if bias_O is None else y + bias_O

    return multiply
