"""Leaves that the models share: attention, the ViT block, time features, initial values.

Shapes: B images, B' with their unconditional halves, L tokens, C token channels, D width, H heads, n times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from disa.core.capabilities import Capabilities
from disa.core.request import Request
from disa.core.work import attention, product, ran
from disa.models.kept import KeptBlock
from disa.runtime.fused import added_norm
from disa.runtime.kernels import attend, swish
from disa.runtime.packing import Linear
from disa.runtime.tiles import in_tiles

TIME_FEATURES = 256
"""Sinusoids that a time is embedded by, in every family."""


def table(count: int, width: int) -> nn.Embedding:
    """`count` vectors of `width`, without values as yet, like `torch.empty`.

    On the meta device PyTorch's own normal values would import its symbolic shapes: a second, and 70 MiB.
    """
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values, all with bias."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, wanted: Tensor | None = None, kept: KeptBlock | None = None) -> Tensor:
        """x: [B, L, D] -> [B, L, D], or [B, W, D] for the token indices `wanted` [B, W] only. kept: of the tokens of
        earlier AR steps, which are attended to as well."""
        batch, length, width = x.shape
        query, key, value = (
            self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        )
        if kept is not None:
            key, value = kept(key, value)
        if wanted is not None:
            query = query.gather(2, wanted[:, None, :, None].expand(-1, self.num_heads, -1, query.shape[-1]))
        return self.proj(attend(query, key, value).transpose(1, 2).reshape(batch, -1, width))


class Swish(nn.Module):
    """`swish` where a module is expected."""

    def forward(self, x: Tensor) -> Tensor:
        return swish(x)


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them; a tile at a time, so that little is in between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return in_tiles(lambda rows: self.fc2(self.fc1(rows, activation="gelu")), x)


class Block(nn.Module):
    """A pre-norm transformer block (ViT)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, wanted: Tensor | None = None, kept: KeptBlock | None = None) -> Tensor:
        """x: [B, L, D]; with `wanted` [B, W] only those tokens are computed beyond their keys and values. kept: see
        `Attention`."""
        length = x.shape[1]
        self._say(x, length if wanted is None else wanted.shape[1], kept.num_keys(length) if kept else length)
        attended = self.attn(self.norm1(x), wanted, kept)
        before = x if wanted is None else take(x, wanted)
        x, normed = added_norm(before, attended, self.norm2.weight, self.norm2.bias, self.norm2.eps)
        return x + self.mlp(normed)

    def _say(self, x: Tensor, queries: int, keys: int) -> None:
        """Count what a call computes."""
        rows, length, width = x.shape
        made = product(rows * length, width, 3 * width) + attention(rows, queries, keys, width)
        made += product(rows * queries, width, width)
        ran(rows * length, made + product(rows * queries, width, self.mlp.fc1.out_features, width))


def patchified(latents: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, L, C p^2] row by row; inside a token: channel, row, column."""
    (batch, _, height, width), rows = latents.shape, latents.shape[2] // patch
    x = latents.reshape(batch, -1, rows, patch, width // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // patch**2, -1)


def unpatchified(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """[B, L, C p^2] -> [B, C, H, W]; grid: rows and columns of tokens."""
    rows, columns = grid
    x = tokens.reshape(len(tokens), rows, columns, -1, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, rows * patch, columns * patch)


def take(x: Tensor, index: Tensor) -> Tensor:
    """x [B, L, D] at token indices [B, N] -> [B, N, D]."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[-1]))


def class_embeddings(request: Request, table: nn.Embedding, no_class: Tensor, guided: bool) -> Tensor:
    """[B', D] of the classes of a request, those of no class after them where guided; no_class: [1, D].

    Without labels guidance would mix two equal halves, so there is only one.
    """
    empty = no_class.expand(request.batch_size, -1)
    if request.labels is None:
        return empty
    embedding = table(request.labels.to(no_class.device))
    return torch.cat([embedding, empty]) if guided else embedding


class ClassConditioned(nn.Module):
    """A model of classes, whose table has one more vector, the last: that of no class."""

    config: Any
    class_embedding: nn.Embedding

    @property
    def capabilities(self) -> Capabilities:
        return self.config.capabilities

    def asked(self, request: Request, known: Sequence[float]) -> tuple[list[float], Tensor]:
        """Check a request: the guidance of each AR step [K], at these places of the ramp, and the classes [B', D]."""
        self.capabilities.check(request)
        scales = request.guidance.scales(known)
        guided = any(scale != 1 for scale in scales)
        return scales, class_embeddings(request, self.class_embedding, self.class_embedding.weight[-1:], guided)

    def embed(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """[B, D] class embeddings, that of no class where `dropped` [B] is true."""
        return self.class_embedding(labels.masked_fill(dropped, self.class_embedding.num_embeddings - 1))


def embed_times(times: Tensor, time_in: Linear, time_out: Linear) -> Tensor:
    """Times [n] through their sinusoids and two linear layers -> [n, D]."""
    features = sinusoids(times, TIME_FEATURES).to(time_in.bias.dtype)
    return time_out(time_in(features, activation="swish"))


def sinusoids(times: Tensor, size: int, longest: float = 10_000) -> Tensor:
    """times [n] -> [n, size]: cosines first, then sines, of geometrically spaced frequencies."""
    half = size // 2
    frequencies = torch.exp(-math.log(longest) * torch.arange(half, dtype=torch.float32, device=times.device) / half)
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def initialise(model: nn.Module, seed: int) -> None:
    """Weights to train from: Xavier for linear layers, 0.02 normal for tables, zero for modulations and the output."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".modulation." in f".{name}" or ".output." in f".{name}":
            nn.init.zeros_(parameter)
        elif "norm" in name:
            nn.init.constant_(parameter, float(name.endswith("weight")))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2 and "class" not in name and "embed" not in name:
            nn.init.xavier_uniform_(parameter, generator=random)
        else:
            nn.init.normal_(parameter, std=0.02, generator=random)
