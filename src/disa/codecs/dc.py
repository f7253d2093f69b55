"""The DC-AE of eMIGM at 512 px: images to 32-channel latents at a thirty-second of the size, and back.

The network is diffusers' `AutoencoderDC`; this file says how to build it and how latents are scaled. Structure: Chen et
al. 2024 (arXiv 2410.10733), dc-ae-f32c32-in-1.0. It has no posterior: an image has one latent.

Shapes: B images, C latent channels, H x W pixels, h x w latents (h = H / stride, w = W / stride).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from disa.codecs.base import LatentCodec, Levels
from disa.errors import DisaError
from disa.values import shown

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

DC = "dc-ae"
"""What `config.json` of a model calls it."""
WIDTH_PER_HEAD = 32


@dataclass(frozen=True)
class DCConfig(Levels):
    """The shape of the autoencoder; the defaults are dc-ae-f32c32-in-1.0."""

    latent_channels: int = 32
    block_widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    """One for each level, finest first."""
    encoder_layers: tuple[int, ...] = (0, 4, 8, 2, 2, 2)
    """Blocks of each level."""
    decoder_layers: tuple[int, ...] = (0, 5, 10, 2, 2, 2)
    attention_levels: int = 3
    """The coarsest levels, so many, have linear attention; the others are convolutions."""
    in_channels: int = 3
    scale: float = 0.3189
    """Turns what the encoder says into latents of about unit variance."""

    def __post_init__(self) -> None:
        for name in ("block_widths", "encoder_layers", "decoder_layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        levels = len(self.block_widths)
        if not levels or {len(self.encoder_layers), len(self.decoder_layers)} != {levels}:
            raise DisaError(f"a DC-AE has as many encoder_layers and decoder_layers as block_widths, found {self}.")
        if not 1 <= self.attention_levels <= levels:
            raise DisaError(f"attention_levels must be 1 to {levels}, found {self.attention_levels}.")
        coarsest = self.block_widths[-1]
        attending = self.block_widths[-self.attention_levels :]
        if any(width % WIDTH_PER_HEAD for width in attending) or coarsest % self.latent_channels:
            raise DisaError(
                f"the widths of a DC-AE are multiples of {WIDTH_PER_HEAD} where it attends, the last one of "
                f"latent_channels = {self.latent_channels}, found {self.block_widths}."
            )


def build(config: DCConfig) -> AutoencoderDC:
    """A randomly initialised `AutoencoderDC` of this shape; under `torch.device("meta")` it holds no memory. Raises
    DisaError where diffusers is missing."""
    try:
        from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    except ImportError as error:
        raise DisaError('the autoencoder needs diffusers: pip install "disa[diffusers]".') from error
    plain = len(config.block_widths) - config.attention_levels

    def each(of_plain: str, of_attending: str) -> tuple[str, ...]:
        return (of_plain,) * plain + (of_attending,) * config.attention_levels

    arguments: dict[str, Any] = {
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "attention_head_dim": WIDTH_PER_HEAD,
        "encoder_block_types": each("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": each("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": config.block_widths,
        "decoder_block_out_channels": config.block_widths,
        "encoder_layers_per_block": config.encoder_layers,
        "decoder_layers_per_block": config.decoder_layers,
        "encoder_qkv_multiscales": ((),) * len(config.block_widths),
        "decoder_qkv_multiscales": ((),) * len(config.block_widths),
        "decoder_norm_types": each("batch_norm", "rms_norm"),
        "decoder_act_fns": each("relu", "silu"),
        "scaling_factor": config.scale,
    }
    return AutoencoderDC(**arguments)


def check_said(config: DCConfig, said: Mapping[str, Any]) -> None:
    """What diffusers' `config.json` says of an autoencoder must be of this kind and scaling. Raises DisaError."""
    kind, scale = said.get("_class_name", "AutoencoderDC"), said.get("scaling_factor", config.scale)
    if kind != "AutoencoderDC":
        raise DisaError(f"it is an autoencoder of another kind ({shown(kind)}), not a DC-AE.")
    if scale != config.scale:
        raise DisaError(
            f"its scaling_factor is {shown(scale)}, the model's is {config.scale:g}: give the autoencoder that the "
            "model was trained with."
        )


class DCCodec(LatentCodec):
    """The codec of an `AutoencoderDC`."""

    def __init__(self, model: AutoencoderDC) -> None:
        config: Any = model.config
        stride = 2 ** (len(config["encoder_block_out_channels"]) - 1)
        super().__init__(model, stride, int(config["latent_channels"]), int(config["in_channels"]))
        self.network: Any = model
        self.scale = float(config["scaling_factor"])

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images [B, channels, H, W] in [-1, 1] -> scaled latents [B, C, h, w], whatever the noise."""
        return self.normalised(self.moments(images))

    def _moments(self, images: Tensor) -> Tensor:
        return self.network.encode(images, return_dict=False)[0]

    def _images(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents, return_dict=False)[0]

    def about(self) -> str:
        return self.network.to_json_string()

    def normalised(self, sample: Tensor) -> Tensor:
        return sample * self.scale

    def raw(self, latents: Tensor) -> Tensor:
        return latents / self.scale
