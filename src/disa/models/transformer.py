"""The modulated transformer that FlowAR and xAR share: rotary attention with an explicit cache, gated MLP, RMS norms.

Shapes: B images (twice as many with guidance), L tokens of a call, M tokens cached before, D width, H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from disa.core.constants import constant
from disa.core.work import attention, product, ran
from disa.errors import DisaError
from disa.models.layers import ClassConditioned
from disa.runtime.fused import gated_norm, gelu_gate, modulated_norm, turned
from disa.runtime.kernels import attend, swish
from disa.runtime.packing import Linear

NORM_EPS = 1e-6
PARTS = 6
"""Modulation values of a block: gate, gate, scale, scale, shift, shift; attention first, then MLP."""

OFFICIAL_CLASSES = 1000
"""Classes that the official tables of FlowAR and xAR hold, whatever their arguments say; one more row stands for no
class."""


@dataclass(frozen=True)
class Rotation:
    """Rotary position embedding (Su et al. 2021) of L tokens; cos, sin: [L, d / 2], float32."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor, head_width: int, base: float = 10_000) -> Rotation:
        """From the places [L] of the tokens: half of a head turns with the row, the other half with the column."""
        exponents = torch.arange(0, head_width // 2, 2, dtype=torch.float32, device=rows.device) / (head_width // 2)
        frequencies = base**-exponents
        angles = torch.cat([place[:, None] * frequencies for place in (rows.float(), columns.float())], dim=1)
        return cls(angles.cos(), angles.sin())

    def select(self, tokens: slice) -> Rotation:
        """The same for some tokens."""
        return Rotation(self.cos[tokens], self.sin[tokens])

    def turn(self, x: Tensor) -> Tensor:
        """[..., B, H, L, d]: neighbouring channels are the two sides of a plane."""
        return turned(x, self.cos, self.sin)


@dataclass
class KVCache:
    """Keys and values [depth, B, H, M + L, d] of one generation, allocated once; the first `length` tokens are kept.

    A call writes behind them, and they stay only after `advance`: so a denoising step leaves nothing behind.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    @classmethod
    def empty(cls, depth: int, batch: int, num_heads: int, num_tokens: int, like: Tensor, head_width: int) -> KVCache:
        """Room for `num_tokens`, on the device and in the type of `like`."""
        size = (depth, batch, num_heads, num_tokens, head_width)
        return cls(like.new_zeros(size), like.new_zeros(size))

    def put(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, H, L, d] behind the kept tokens; returns all [B, H, M + L, d] of the layer."""
        end = self.length + key.shape[2]
        keys, values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        keys[:, :, self.length :] = key
        values[:, :, self.length :] = value
        return keys, values

    def advance(self, num_tokens: int) -> None:
        """Keep what was written last."""
        self.length += num_tokens

    def select(self, rows: slice | Tensor) -> KVCache:
        """The same cache for some rows: shared for a slice, copied for indices."""
        return KVCache(self.keys[:, rows], self.values[:, rows], self.length)


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions. bias: of queries, keys and values; out_bias: of the result."""

    def __init__(self, width: int, num_heads: int, bias: bool = True, out_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.proj = Linear(width, width, bias=out_bias)

    def forward(
        self, x: Tensor, rotation: Rotation, cache: KVCache | None = None, layer: int = 0, mask: Tensor | None = None
    ) -> Tensor:
        """x: [B, L, D]; with a cache its tokens are attended to as well. mask: [L, L], added to the scores."""
        projected = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        (query, key), value = rotation.turn(projected[:2]), projected[2]
        if cache is not None:
            key, value = cache.put(layer, key, value)
        return self.proj(attend(query, key, value, mask).transpose(1, 2).flatten(2))

    def operations(self, rows: int, length: int, cached: int = 0) -> int:
        """Of a call with x [rows, length, D] after so many tokens."""
        width = self.proj.in_features
        return product(rows * length, width, 4 * width) + attention(rows, length, cached + length, width)


class GatedMLP(nn.Module):
    """Two linear layers, the first gated by a GELU of a third (Shazeer 2020)."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio * 2 / 3)
        self.gate = Linear(width, hidden)
        self.value = Linear(width, hidden)
        self.out = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        # Not fused into the packed layer: without AVX-512, oneDNN's GELU takes several times as long as this one.
        return self.out(gelu_gate(self.gate(x), self.value(x)))


class ModulatedBlock(nn.Module):
    """A transformer block whose norms and residuals are modulated from outside (DiT, Peebles and Xie 2023)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, bias: bool = True) -> None:
        super().__init__()
        self.attn = RotaryAttention(width, num_heads, bias)
        self.mlp = GatedMLP(width, mlp_ratio)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rotation: Rotation,
        cache: KVCache | None = None,
        layer: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x: [B, L, D]; modulation: [B, 1 or L, 6, D]."""
        rows, length, width = x.shape
        ran(rows * length, self.operations(rows, length, width, 0 if cache is None else cache.length))
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(2)
        attended = self.attn(modulated(x, shift1, scale1), rotation, cache, layer, mask)
        x, normed = gated_norm(x, gate1, attended, shift2, scale2, NORM_EPS)
        return torch.addcmul(x, gate2, self.mlp(normed))

    def operations(self, rows: int, length: int, width: int, cached: int = 0) -> int:
        """Of a call with x [rows, length, width] after so many tokens."""
        made = self.attn.operations(rows, length, cached)
        return made + 3 * product(rows * length, width, self.mlp.out.in_features)


class TrunkConfig(Protocol):
    """What a `Trunk` is built from."""

    @property
    def latent_channels(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def mlp_ratio(self) -> float: ...

    @property
    def encoder_depth(self) -> int: ...

    @property
    def decoder_depth(self) -> int: ...


class Trunk(ClassConditioned):
    """An encoder and a decoder of modulated blocks, each with positions of its own, between what a model puts around.

    A model calls `build_trunk` at the place that these parameters have in its order.
    """

    def build_trunk(self, c: TrunkConfig) -> None:
        """Make the layers; the modulations of all blocks are one linear layer."""

        def blocks(depth: int) -> nn.ModuleList:
            return nn.ModuleList(ModulatedBlock(c.width, c.num_heads, c.mlp_ratio) for _ in range(depth))

        self.modulation = Linear(c.width, (c.encoder_depth + c.decoder_depth) * PARTS * c.width)
        self.token_in = Linear(c.latent_channels, c.width)
        self.token_norm = nn.RMSNorm(c.width, eps=NORM_EPS)
        self.encoder_positions = nn.Parameter(torch.empty(1, c.num_tokens, c.width))
        self.encoder = blocks(c.encoder_depth)
        self.encoder_norm = nn.RMSNorm(c.width, eps=NORM_EPS)
        self.decoder_in = Linear(c.width, c.width)
        self.decoder_positions = nn.Parameter(torch.empty(1, c.num_tokens, c.width))
        self.decoder = blocks(c.decoder_depth)
        self.decoder_norm = nn.RMSNorm(c.width, eps=NORM_EPS)

    def block_modulations(self, condition: Tensor) -> Tensor:
        """Conditions [..., D] -> [..., depth, 6, D], of all blocks: they depend on no token."""
        width = self.encoder_positions.shape[-1]
        ran(0, product(condition[..., 0].numel(), width, self.modulation.out_features))
        return self.modulation(swish(condition)).unflatten(-1, (-1, PARTS, width))

    def through(
        self,
        x: Tensor,
        modulations: Iterable[Tensor],
        span: slice,
        rotation: Rotation,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Normed tokens x [B', L, D] at `span` through all blocks. rotation: of all tokens; mask: see `attend`.

        modulations: [B', 1 or L, 6, D] of each block, asked for when the block needs it.
        """
        layers, rotation = enumerate(modulations), rotation.select(span)
        for block, (layer, modulation) in zip(self.encoder, layers, strict=False):
            x = block(x, modulation, rotation, cache, layer, mask)
        ran(0, product(x.shape[0] * x.shape[1], x.shape[2], x.shape[2]))
        x = self.decoder_in(self.encoder_norm(x)) + self.decoder_positions[:, span]
        for block, (layer, modulation) in zip(self.decoder, layers, strict=True):
            x = block(x, modulation, rotation, cache, layer, mask)
        return x


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x over its root mean square, without a gain (Zhang and Sennrich 2019), then x (1 + scale) + shift."""
    return modulated_norm(x, None, None, shift, scale, NORM_EPS, True)


def check_heads(width: int, num_heads: int) -> None:
    """Half of the channels of a head turn with the row, the other half with the column. Raises DisaError."""
    if width % (4 * num_heads):
        raise DisaError(f"num_heads = {num_heads} must divide width = {width} into multiples of 4 channels.")


def causal_mask(group_sizes: list[int], device: torch.device) -> Tensor:
    """[L, L] to add to attention scores: a token sees its own group and those before it."""

    def make() -> Tensor:
        group = torch.repeat_interleave(torch.arange(len(group_sizes)), torch.tensor(group_sizes))
        return group.to(device, non_blocking=True)

    group = constant(("groups", *group_sizes, device), make)
    nothing = torch.zeros(len(group), len(group), dtype=torch.float32, device=device)
    return nothing.masked_fill(group[:, None] < group, -torch.inf)
