"""What every autoencoder is to the models: images to latents and back.

Shapes: B images, C latent channels, H x W pixels, h x w latents (h = H / stride, w = W / stride).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from disa.errors import DisaError
from disa.runtime.tiles import one_by_one

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class Levels:
    """What follows from the widths of an autoencoder's levels, each at half the resolution of the one before."""

    block_widths: tuple[int, ...]
    """One for each level, finest first."""

    @property
    def finest_width(self) -> int:
        """Channels of the decoder at the full resolution."""
        return self.block_widths[0]

    @property
    def stride(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** (len(self.block_widths) - 1)


class LatentCodec:
    """Images to scaled latents and back through an autoencoder, without gradients.

    Inputs may lie on any device and have any floating dtype: they are brought to the model's. Results are float32 on
    the model's device; the parts outside the network (scale, posterior) are computed in float32.
    """

    def __init__(self, model: torch.nn.Module, stride: int, latent_channels: int, in_channels: int) -> None:
        self.model = model.eval()
        self.stride, self.latent_channels, self.in_channels = stride, latent_channels, in_channels

    def _moments(self, images: Tensor) -> Tensor:
        """The network's posterior moments [B, 2C, h, w]."""
        raise NotImplementedError

    def _images(self, latents: Tensor) -> Tensor:
        """The network's images of unscaled latents."""
        raise NotImplementedError

    def about(self) -> str:
        """What `config.json` says of it."""
        raise NotImplementedError

    def own(self, config: Any) -> Any:
        """What a model says of its autoencoder as this one has it, which may scale latents otherwise."""
        return config

    def normalised(self, sample: Tensor) -> Tensor:
        """Posterior samples [B, C, h, w] as latents: the models know them at about unit variance."""
        raise NotImplementedError

    def raw(self, latents: Tensor) -> Tensor:
        """The reverse of `normalised`."""
        raise NotImplementedError

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LatentCodec:
        """Move the network, in place; bfloat16 decodes to within a few percent of float32."""
        # The plain method of torch: diffusers' own warns about the dtype on every call, also where nothing is at stake.
        torch.nn.Module.to(self.model, device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> posterior mean and raw log-variance [B, 2C, h, w], unscaled.

        Raises DisaError unless H and W are multiples of `stride`.
        """
        self._check_images(images)
        return self._run(self._moments, images.float())

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> scaled latents [B, C, h, w].

        Without `noise` the posterior mean, else mean + deviation * noise with `noise` [B, C, h, w] of unit variance.
        Raises DisaError unless H and W are multiples of `stride`.
        """
        return self.normalised(posterior_sample(self.moments(images), noise))

    @torch.no_grad()
    def decode(self, latents: Tensor, clamp: bool = False) -> Tensor:
        """Scaled latents [B, C, h, w] -> images [B, 3, H, W] in about [-1, 1]; `clamp` cuts them to exactly that."""
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise DisaError(f"latents must be [B, {self.latent_channels}, h, w], found {list(latents.shape)}.")
        images = self._run(self._images, self.raw(latents.to(next(self.model.parameters()).device).float()))
        return images.clamp(-1, 1) if clamp else images

    def _run(self, network: Callable[[Any], Tensor], rows: Tensor) -> Tensor:
        """`network` on float32 `rows` in the model's precision and on its device, back in float32."""
        parameter = next(self.model.parameters())
        rows = rows.to(parameter.device).to(parameter.dtype).contiguous()
        return one_by_one(network, rows).float()

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise DisaError(f"images must be [B, {self.in_channels}, H, W], found {list(images.shape)}.")
        if not images.is_floating_point():
            raise DisaError(f"images must be floats in [-1, 1], found {images.dtype}.")
        sides = height, width = images.shape[2:]
        if height % self.stride or width % self.stride:
            near = " x ".join(str(max(1, round(side / self.stride)) * self.stride) for side in sides)
            raise DisaError(
                f"image height and width must be multiples of {self.stride}, found {height} x {width}. "
                f"Crop or resize the images, say to {near}."
            )


def posterior_sample(moments: Tensor, noise: Tensor | None = None) -> Tensor:
    """Moments [B, 2C, h, w] -> mean, or mean + deviation * noise [B, C, h, w], unscaled."""
    mean, log_variance = split_moments(moments)
    if noise is None:
        return mean
    if noise.shape != mean.shape:
        raise DisaError(f"posterior noise must be {list(mean.shape)}, found {list(noise.shape)}.")
    return mean + torch.exp(0.5 * log_variance) * noise.to(mean)


def split_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Moments [B, 2C, h, w] -> (mean, log-variance clamped to [-30, 20]), each [B, C, h, w]."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)
