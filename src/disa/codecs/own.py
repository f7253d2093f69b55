"""What the autoencoders that are written here share: residual blocks, and how their networks are called.

Shapes: B images, C latent channels, H x W pixels, h x w latents (h = H / stride, w = W / stride).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from disa.codecs.base import LatentCodec


class ResidualConvolutions(nn.Module):
    """Two convolutions, each after a group norm and a SiLU, added to x, or to a projection of it."""

    def __init__(self, before: int, width: int, groups: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1, bias=bias)
        self.norm2 = nn.GroupNorm(groups, width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.nin_shortcut = None if before == width else nn.Conv2d(before, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class OwnCodec(LatentCodec):
    """Images to latents and back through a network that has an encoder, a decoder and a config."""

    family: str
    """What `config.json` calls it."""

    def __init__(self, model: Any) -> None:
        config = model.config
        super().__init__(model, config.stride, config.latent_channels, config.in_channels)
        self.network = model

    def _moments(self, images: Tensor) -> Tensor:
        return self.network.encoder(images)

    def _images(self, latents: Tensor) -> Tensor:
        return self.network.decoder(latents)

    def about(self) -> str:
        told = {"library": "disa", "family": self.family, "architecture": asdict(self.network.config)}
        return json.dumps(told) + "\n"
