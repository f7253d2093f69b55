"""BitDance's autoencoder: images to latents of signs, -1 and 1, and back.

A convolutional network without attention, with parameters named as officially. Mean and deviation of the latents
modulate the features of the decoder.

Shapes: B images, C latent channels, H x W pixels, h x w latents (h = H / stride, w = W / stride), E features.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disa.codecs.base import Levels
from disa.codecs.own import Convolution, OwnCodec, ResidualConvolutions
from disa.errors import DisaError

NORM_GROUPS, NORM_EPS = 32, 1e-6
BINARY = "binary-ae"
"""What `config.json` calls it."""


@dataclass(frozen=True)
class BinaryConfig(Levels):
    """The shape of the autoencoder; the defaults are the published ones."""

    latent_channels: int = 32
    block_widths: tuple[int, ...] = (256, 256, 512, 512, 1024)
    layers_per_block: int = 4
    in_channels: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_widths", tuple(self.block_widths))
        if not self.block_widths or any(width % NORM_GROUPS for width in self.block_widths):
            raise DisaError(f"the widths of a binary autoencoder are multiples of {NORM_GROUPS}, found {self}.")


class Upsampler(nn.Module):
    """Twice the resolution: a convolution to four times the channels, of which each quarter is one of four places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = Convolution(width, 4 * width, 3, padding=1)

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
        widths, count = c.block_widths, c.layers_per_block
        self.conv_in = Convolution(c.in_channels, widths[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            _level(before, width, count, downsample=Convolution(width, width, 3, stride=2, padding=1))
            for before, width in zip(widths[:1] + widths, widths[:-1], strict=False)
        )
        self.down.append(_level(widths[-2:][0], widths[-1], count))
        self.mid_block = _blocks(widths[-1], widths[-1], count)
        self.norm_out = nn.GroupNorm(NORM_GROUPS, widths[-1], NORM_EPS)
        self.conv_out = Convolution(widths[-1], c.latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents [B, C, h, w] -> images [B, channels, H, W]. Levels are numbered as in the encoder."""

    def __init__(self, c: BinaryConfig) -> None:
        super().__init__()
        widths, count = c.block_widths, c.layers_per_block
        befores = (*widths[1:], widths[-1])
        self.conv_in = Convolution(c.latent_channels, widths[-1], 3, padding=1)
        self.mid_block = _blocks(widths[-1], widths[-1], count)
        self.adaptive = nn.ModuleList(AdaptiveNorm(c.latent_channels, before) for before in befores)
        self.up = nn.ModuleList([_level(befores[0], widths[0], count)])
        for before, width in zip(befores[1:], widths[1:], strict=True):
            self.up.append(_level(before, width, count, upsample=Upsampler(width)))
        self.norm_out = nn.GroupNorm(NORM_GROUPS, widths[0], NORM_EPS)
        self.conv_out = Convolution(widths[0], c.in_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latents))
        for norm, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            x = level(norm(x, latents))
        return self.conv_out(F.silu(self.norm_out(x)))


def _level(before: int, width: int, count: int, **resampling: nn.Module) -> nn.Sequential:
    """The blocks of one resolution, and what leads to the next."""
    return nn.Sequential(OrderedDict(block=_blocks(before, width, count), **resampling))


def _blocks(before: int, width: int, count: int) -> nn.Sequential:
    widths = (width if i else before for i in range(count))
    return nn.Sequential(*(ResidualConvolutions(each, width, NORM_GROUPS, NORM_EPS, bias=False) for each in widths))


class BinaryAE(nn.Module):
    """The two networks."""

    def __init__(self, config: BinaryConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)


class BinaryCodec(OwnCodec):
    """Images to signs and back through a `BinaryAE`."""

    family = BINARY

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images [B, channels, H, W] in [-1, 1] -> latents [B, C, h, w], 1 where the encoder's features are positive
        and -1 elsewhere, whatever the noise."""
        return (self.moments(images) > 0).float() * 2 - 1

    def raw(self, latents: Tensor) -> Tensor:
        return latents
