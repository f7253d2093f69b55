"""BitDance's autoencoder: images to latents of signs, -1 and 1, and back.

A convolutional network without attention; its parameters are named as officially. The decoder also scales and shifts its
features by the mean and deviation of the latents.

Shapes: B images, C latent channels, H x W pixels, h x w latents (h = H / stride, w = W / stride), E features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disa.codecs.base import LatentCodec
from disa.errors import DisaError

NORM_GROUPS, NORM_EPS = 32, 1e-6
BINARY = "binary-ae"
"""What `config.json` calls it."""


@dataclass(frozen=True)
class BinaryConfig:
    """The shape of the autoencoder; the defaults are the published ones."""

    latent_channels: int = 32
    block_widths: tuple[int, ...] = (256, 256, 512, 512, 1024)
    """One for each level, finest first."""
    layers_per_block: int = 4
    in_channels: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_widths", tuple(self.block_widths))
        if not self.block_widths or any(width % NORM_GROUPS for width in self.block_widths):
            raise DisaError(f"the widths of a binary autoencoder are multiples of {NORM_GROUPS}, found {self}.")

    @property
    def finest_width(self) -> int:
        """Channels of the decoder at the full resolution."""
        return self.block_widths[0]

    @property
    def stride(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** (len(self.block_widths) - 1)


class ResidualBlock(nn.Module):
    """Two convolutions, each after a group norm and a SiLU, added to x, or to a projection of it."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = _norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Level(nn.Module):
    """The blocks of one resolution, and what leads to the next one."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.block = nn.ModuleList(ResidualBlock(before, after) for before, after in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class Upsampler(nn.Module):
    """Twice the resolution: a convolution to four times the channels, of which each quarter is one of four places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).unflatten(1, (2, 2, -1))
        return x.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class AdaptiveNorm(nn.Module):
    """A group norm whose gain and offset follow from the deviation and the mean of the latents of an image."""

    def __init__(self, latent_channels: int, width: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(latent_channels, width)
        self.beta = nn.Linear(latent_channels, width)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        variance, mean = torch.var_mean(latents, dim=(2, 3))
        gain, offset = self.gamma((variance + NORM_EPS).sqrt()), self.beta(mean)
        return F.group_norm(x, NORM_GROUPS, eps=NORM_EPS) * gain[:, :, None, None] + offset[:, :, None, None]


class Encoder(nn.Module):
    """Images [B, channels, H, W] -> features [B, C, h, w] whose signs are the latents."""

    def __init__(self, c: BinaryConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(c.in_channels, c.finest_width, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        before = c.finest_width
        for i, width in enumerate(c.block_widths):
            level = Level([before, *[width] * c.layers_per_block])
            if i < len(c.block_widths) - 1:
                level.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.down.append(level)
            before = width
        self.mid_block = nn.ModuleList(ResidualBlock(before, before) for _ in range(c.layers_per_block))
        self.norm_out = _norm(before)
        self.conv_out = nn.Conv2d(before, c.latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
            x = level.downsample(x) if hasattr(level, "downsample") else x
        for block in self.mid_block:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latents [B, C, h, w] -> images [B, channels, H, W]."""

    def __init__(self, c: BinaryConfig) -> None:
        super().__init__()
        coarsest = c.block_widths[-1]
        self.conv_in = nn.Conv2d(c.latent_channels, coarsest, 3, padding=1)
        self.mid_block = nn.ModuleList(ResidualBlock(coarsest, coarsest) for _ in range(c.layers_per_block))
        befores = [*c.block_widths[1:], coarsest]
        self.adaptive = nn.ModuleList(AdaptiveNorm(c.latent_channels, before) for before in befores)
        self.up = nn.ModuleList()
        for i, (before, width) in enumerate(zip(befores, c.block_widths, strict=True)):
            level = Level([before, *[width] * c.layers_per_block])
            if i:
                level.upsample = Upsampler(width)
            self.up.append(level)
        self.norm_out = _norm(c.finest_width)
        self.conv_out = nn.Conv2d(c.finest_width, c.in_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.conv_in(latents)
        for block in self.mid_block:
            x = block(x)
        for adaptive, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            x = level(adaptive(x, latents))
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.conv_out(F.silu(self.norm_out(x)))


class BinaryAE(nn.Module):
    """The two networks."""

    def __init__(self, config: BinaryConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)


class BinaryCodec(LatentCodec):
    """Images to signs and back through a `BinaryAE`."""

    def __init__(self, model: BinaryAE) -> None:
        config = model.config
        super().__init__(model, config.stride, config.latent_channels, config.in_channels)
        self.network = model

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images [B, channels, H, W] in [-1, 1] -> latents [B, C, h, w], 1 where the encoder's features are positive
        and -1 elsewhere, whatever the noise."""
        return (self.moments(images) > 0).float() * 2 - 1

    def _moments(self, images: Tensor) -> Tensor:
        return self.network.encoder(images)

    def _images(self, latents: Tensor) -> Tensor:
        return self.network.decoder(latents)

    def about(self) -> str:
        return json.dumps({"library": "disa", "family": BINARY, "architecture": asdict(self.network.config)}) + "\n"

    def raw(self, latents: Tensor) -> Tensor:
        return latents


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, width, eps=NORM_EPS)
