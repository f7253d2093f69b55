"""A small KL autoencoder for the embedded models: images to latents at a quarter or an eighth of the size, and back.

A convolutional decoder joins neighbouring tokens smoothly, and noise on the latents in training makes it forgiving: no
edges show between tokens that were drawn apart. Its latents are normalised by statistics kept with the weights.

Shapes: B images, C latent channels, H x W pixels, h x w latents (h = H / stride, w = W / stride).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from disa.codecs.base import posterior_sample, split_moments
from disa.codecs.own import Convolution, OwnCodec, ResidualConvolutions
from disa.errors import DisaError

NORM_GROUPS = 8
SMALL = "small-vae"
"""What `config.json` calls it."""


@dataclass(frozen=True)
class SmallVAEConfig:
    """The shape of the autoencoder: a width is the network's number of channels at a share of the resolution."""

    in_channels: int = 1
    latent_channels: int = 8
    half_width: int = 32
    quarter_width: int = 48
    full_width: int = 24
    eighth_width: int = 0
    """0 where a quarter is the coarsest."""
    linear: bool = False
    """Whether the encoder is one linear map of the pixels of each latent position, instead of convolutions that see
    their surroundings too."""

    def __post_init__(self) -> None:
        if any(width % NORM_GROUPS for width in (self.full_width, *self.widths)):
            raise DisaError(f"the widths of the small autoencoder must be multiples of {NORM_GROUPS}, found {self}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """From half the resolution to the coarsest."""
        return (self.half_width, self.quarter_width, *([self.eighth_width] if self.eighth_width else []))

    @property
    def finest_width(self) -> int:
        """Channels of the decoder at the full resolution."""
        return self.full_width

    @property
    def stride(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** len(self.widths)


class SmallVAE(nn.Module):
    """The two networks and the statistics of the latents: mean and deviation [C, 1, 1] over the training images."""

    def __init__(self, config: SmallVAEConfig) -> None:
        super().__init__()
        self.config = c = config
        coarsest = c.widths[-1]
        up = list[nn.Module]()
        for width, finer in pairwise(c.widths[::-1]):
            up += [nn.Upsample(scale_factor=2), _convolution(width, finer), _residual(finer)]
        self.encoder = _linear_encoder(c) if c.linear else _convolutional_encoder(c)
        self.decoder = nn.Sequential(
            _convolution(c.latent_channels, coarsest),
            _residual(coarsest),
            *up,
            nn.Upsample(scale_factor=2),
            _convolution(c.half_width, c.full_width),
            nn.GroupNorm(NORM_GROUPS, c.full_width),
            nn.SiLU(),
            _convolution(c.full_width, c.in_channels),
        )
        self.register_buffer("mean", torch.zeros(c.latent_channels, 1, 1))
        self.register_buffer("deviation", torch.ones(c.latent_channels, 1, 1))
        self.mean: Tensor
        self.deviation: Tensor

    def loss(self, images: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
        """Squared error of the reconstruction + kl_weight x KL to a standard normal, means (Kingma and Welling 2014).

        images: [B, channels, H, W] in [-1, 1]; noise: [B, C, h, w].
        """
        moments = self.encoder(images)
        mean, log_variance = split_moments(moments)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        error = (self.decoder(posterior_sample(moments, noise)) - images).square().mean()
        return error + kl_weight * kl

    @torch.no_grad()
    def normalise(self, images: Tensor, noise: Tensor) -> None:
        """Set the statistics of the latents from these images."""
        latents = posterior_sample(self.encoder(images), noise)
        self.deviation.copy_(latents.std((0, 2, 3))[:, None, None])
        self.mean.copy_(latents.mean((0, 2, 3))[:, None, None])


class SmallCodec(OwnCodec):
    """Images to normalised latents and back through a `SmallVAE`."""

    family = SMALL

    def normalised(self, sample: Tensor) -> Tensor:
        return (sample - self.network.mean.float()) / self.network.deviation.float()

    def raw(self, latents: Tensor) -> Tensor:
        return latents * self.network.deviation.float() + self.network.mean.float()


def _linear_encoder(c: SmallVAEConfig) -> Convolution:
    return Convolution(c.in_channels, 2 * c.latent_channels, c.stride, c.stride)


def _convolutional_encoder(c: SmallVAEConfig) -> nn.Sequential:
    down, coarsest = list[nn.Module](), c.widths[-1]
    for finer, width in pairwise((c.in_channels, *c.widths)):
        down += [_convolution(finer, width, stride=2), nn.SiLU()]
    return nn.Sequential(
        *down[:-1],
        _residual(coarsest),
        nn.GroupNorm(NORM_GROUPS, coarsest),
        nn.SiLU(),
        _convolution(coarsest, 2 * c.latent_channels),
    )


def _residual(width: int) -> ResidualConvolutions:
    return ResidualConvolutions(width, width, NORM_GROUPS)


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> Convolution:
    return Convolution(channels_in, channels_out, kernel_size=3, stride=stride, padding=1)
