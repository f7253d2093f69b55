"""What the autoencoders that are written here share: residual blocks, and how their networks are called.

Shapes: B images, C latent channels, H x W pixels, h x w latents (h = H / stride, w = W / stride).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disa.codecs.base import LatentCodec


class Convolution(nn.Conv2d):
    """A convolution whose bits do not depend on the number of threads.

    PyTorch computes small ones as a matrix product, which with two threads sums in another order on some processors
    with AVX-512. oneDNN, which it leaves large ones to, does not.
    """

    by_onednn = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        inference = not torch.is_grad_enabled() and input.dtype == torch.float32
        if not (self.by_onednn and inference and input.device.type == "cpu"):
            return super()._conv_forward(input, weight, bias)
        padding = cast(tuple[int, ...], self.padding)
        return torch.mkldnn_convolution(input, weight, bias, padding, self.stride, self.dilation, self.groups)


class ResidualConvolutions(nn.Module):
    """Two convolutions, each after a group norm and a SiLU, added to x, or to a projection of it."""

    def __init__(self, before: int, width: int, groups: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps)
        self.conv1 = Convolution(before, width, 3, padding=1, bias=bias)
        self.norm2 = nn.GroupNorm(groups, width, eps)
        self.conv2 = Convolution(width, width, 3, padding=1, bias=bias)
        self.nin_shortcut = None if before == width else Convolution(before, width, 1, bias=bias)

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
