"""A small KL autoencoder for the embedded models: images to latents at a quarter of the size, and back.

A convolutional decoder joins neighbouring tokens smoothly, and noise on the latents in training makes it forgiving: no
edges show between tokens that were drawn apart. Its latents are normalised by statistics kept with the weights.

Shapes: B images, C latent channels, H x W pixels, h x w latents (h = H / 4, w = W / 4).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disa.models.vae import LatentCodec, posterior_sample, split_moments

NORM_GROUPS = 8


@dataclass(frozen=True)
class SmallVAEConfig:
    """Channels of the image, of the latents, and of the network at half, a quarter and full resolution."""

    in_channels: int = 1
    latent_channels: int = 8
    half_width: int = 32
    quarter_width: int = 48
    full_width: int = 24

    @property
    def stride(self) -> int:
        """Pixels per latent position along one side."""
        return 4


class ResidualConvolutions(nn.Module):
    """x + two convolutions, each after a group norm and a SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, width)
        self.conv1 = _convolution(width, width)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, width)
        self.conv2 = _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class SmallVAE(nn.Module):
    """The two networks and the statistics of the latents: mean and deviation [C, 1, 1] over the training images."""

    def __init__(self, config: SmallVAEConfig) -> None:
        super().__init__()
        self.config = c = config
        self.encoder = nn.Sequential(
            _convolution(c.in_channels, c.half_width, stride=2),
            nn.SiLU(),
            _convolution(c.half_width, c.quarter_width, stride=2),
            ResidualConvolutions(c.quarter_width),
            nn.GroupNorm(NORM_GROUPS, c.quarter_width),
            nn.SiLU(),
            _convolution(c.quarter_width, 2 * c.latent_channels),
        )
        self.decoder = nn.Sequential(
            _convolution(c.latent_channels, c.quarter_width),
            ResidualConvolutions(c.quarter_width),
            nn.Upsample(scale_factor=2),
            _convolution(c.quarter_width, c.half_width),
            ResidualConvolutions(c.half_width),
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


class SmallCodec(LatentCodec):
    """Images to normalised latents and back through a `SmallVAE`."""

    def __init__(self, model: SmallVAE) -> None:
        config = model.config
        super().__init__(model, config.stride, config.latent_channels, config.in_channels)
        self.network = model

    def _moments(self, images: Tensor) -> Tensor:
        return self.network.encoder(images)

    def _images(self, latents: Tensor) -> Tensor:
        return self.network.decoder(latents)

    def about(self) -> str:
        return (
            json.dumps({"library": "disa", "family": "small-vae", "architecture": asdict(self.network.config)}) + "\n"
        )

    def normalised(self, sample: Tensor) -> Tensor:
        return (sample - self.network.mean.float()) / self.network.deviation.float()

    def raw(self, latents: Tensor) -> Tensor:
        return latents * self.network.deviation.float() + self.network.mean.float()


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1)
