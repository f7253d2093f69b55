"""The KL-16 autoencoder of MAR: images to 16-channel latents at one sixteenth of the size, and back.

The network is diffusers' `AutoencoderKL`; this file says how to build it, how the official parameter names map to
its names, and how latents are scaled. Structure and names: MAR (arXiv 2406.11838) `kl16.ckpt`, which follows the
latent diffusion autoencoder (arXiv 2112.10752).

Shapes: B images, C latent channels, H x W pixels, h x w latents (h = H / stride, w = W / stride).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from disa.codecs.base import LatentCodec, Levels
from disa.errors import DisaError
from disa.layout import Layout, check_layout

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

NORM_EPS = 1e-6  # not a field of the config: diffusers has it built in
NOMINAL_SIZE = 256  # pixels; what the official code places its attention by, and the side of a tile


@dataclass(frozen=True)
class VAEConfig(Levels):
    """The shape of the autoencoder; the defaults are the published KL-16."""

    latent_channels: int = 16
    block_widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    """One for each level, finest first."""
    layers_per_block: int = 2
    in_channels: int = 3
    scale: float = 0.2325
    """Turns posterior samples into latents of about unit variance."""
    norm_groups: int = 32
    encoder_attention_levels: tuple[int, ...] = (4,)
    """Encoder levels with attention after each residual block. The middle of both halves always has attention, the
    decoder's levels never have."""
    shift: float = 0.0
    """Is taken from posterior samples before they are scaled."""
    means: tuple[float, ...] = ()
    """The same for each latent channel on its own; none for all 0."""
    deviations: tuple[float, ...] = ()
    """Divide each latent channel; none for all 1."""
    quant_conv: bool = True
    """Whether the encoder ends in a 1x1 convolution of the moments."""
    post_quant_conv: bool = True
    """Whether the decoder starts with a 1x1 convolution of the latents."""

    def __post_init__(self) -> None:
        # Lists come from JSON; tuples keep the config hashable and equal to the one that was written.
        object.__setattr__(self, "block_widths", tuple(self.block_widths))
        object.__setattr__(self, "encoder_attention_levels", tuple(self.encoder_attention_levels))
        object.__setattr__(self, "means", tuple(self.means))
        object.__setattr__(self, "deviations", tuple(self.deviations))
        if not self.block_widths or any(width % self.norm_groups for width in self.block_widths):
            raise DisaError(
                f"VAE block_widths must be multiples of norm_groups = {self.norm_groups}, found {self.block_widths}."
            )
        if not set(self.encoder_attention_levels) <= set(range(len(self.block_widths))):
            raise DisaError(
                f"VAE encoder_attention_levels must lie in 0..{len(self.block_widths) - 1}, "
                f"found {self.encoder_attention_levels}."
            )
        if bool(self.means) != bool(self.deviations) or any(
            len(each) not in (0, self.latent_channels) for each in (self.means, self.deviations)
        ):
            raise DisaError(
                f"VAE means and deviations must both have {self.latent_channels} numbers or none, found "
                f"{len(self.means)} and {len(self.deviations)}."
            )
        if not all(deviation > 0 for deviation in self.deviations):
            raise DisaError("VAE deviations must be above 0.")

    @classmethod
    def from_official(cls, config: Mapping[str, Any]) -> VAEConfig:
        """The config for the official constructor arguments (`ch`, `ch_mult`, `num_res_blocks`, `embed_dim`, ...).

        Arguments that are left out have the published value. Raises DisaError for a variant that cannot be built.
        """
        _refuse_variants(config)
        multipliers = tuple(config.get("ch_mult", (1, 1, 2, 2, 4)))
        resolution = config.get("resolution", NOMINAL_SIZE)
        attention_resolutions = config.get("encoder_attn_resolutions", (16,))
        return cls(
            latent_channels=config.get("embed_dim", cls.latent_channels),
            block_widths=tuple(config.get("ch", 128) * multiplier for multiplier in multipliers),
            layers_per_block=config.get("num_res_blocks", cls.layers_per_block),
            in_channels=config.get("in_channels", cls.in_channels),
            norm_groups=config.get("groups", cls.norm_groups),
            encoder_attention_levels=tuple(
                level for level in range(len(multipliers)) if resolution // 2**level in attention_resolutions
            ),
        )


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Raise DisaError if an official argument asks for something that `AutoencoderKL` cannot express."""
    in_channels = config.get("in_channels", VAEConfig.in_channels)
    found = {
        "ch_mult[0]": (tuple(config.get("ch_mult", (1,)))[:1], (1,)),
        "out_ch": (config.get("out_ch", in_channels), in_channels),
        "decoder_attn_resolutions": (tuple(config.get("decoder_attn_resolutions", ())), ()),
        "double_z": (config.get("double_z", True), True),
        "gn_eps": (config.get("gn_eps", NORM_EPS), NORM_EPS),
    }
    for name, (value, expected) in found.items():
        if value != expected:
            raise DisaError(f"this VAE needs {name} = {expected}, found {value}.")


def build(config: VAEConfig) -> AutoencoderKL:
    """A randomly initialised `AutoencoderKL` of this shape; under `torch.device("meta")` it holds no memory."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = range(len(config.block_widths))
    with_attention = config.encoder_attention_levels
    arguments: dict[str, Any] = {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if level in with_attention else "DownEncoderBlock2D" for level in levels
        ),
        "up_block_types": tuple("UpDecoderBlock2D" for _ in levels),
        "block_out_channels": config.block_widths,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "sample_size": NOMINAL_SIZE,
        "scaling_factor": config.scale,
        "shift_factor": config.shift or None,
        "latents_mean": config.means or None,
        "latents_std": config.deviations or None,
        "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.post_quant_conv,
    }
    return AutoencoderKL(**arguments)


def from_official(state_dict: Mapping[str, Tensor], config: VAEConfig) -> dict[str, Tensor]:
    """Parameters under their official names -> the same values under diffusers' names.

    Attention projections are 1x1 convolutions [D, D, 1, 1] officially and linear maps [D, D] here; every other shape
    stays. The input is not changed and memory is shared. Raises DisaError if a name is missing or unexpected, or a
    shape is wrong.
    """
    return _convert(state_dict, [(leaf.official, leaf.diffusers) for leaf in _leaves(config)], "official KL-16")


def to_official(state_dict: Mapping[str, Tensor], config: VAEConfig) -> dict[str, Tensor]:
    """The inverse of `from_official`: diffusers' names -> official names, bit-equal. Raises DisaError alike."""
    return _convert(state_dict, [(leaf.diffusers, leaf.official) for leaf in _leaves(config)], "diffusers KL-16")


def official_layout(config: VAEConfig) -> Layout:
    """Official names, and the shapes that they have officially."""
    return {leaf.official.name: leaf.official.shape for leaf in _leaves(config)}


class _Parameter(NamedTuple):
    name: str
    shape: tuple[int, ...]


class _Leaf(NamedTuple):
    """One parameter under both names."""

    official: _Parameter
    diffusers: _Parameter


def _convert(
    state_dict: Mapping[str, Tensor], pairs: Sequence[tuple[_Parameter, _Parameter]], source: str
) -> dict[str, Tensor]:
    layout = {before.name: before.shape for before, _ in pairs}
    check_layout(state_dict, layout, model=f"the {source} names of this VAE config")
    return {after.name: state_dict[before.name].reshape(after.shape) for before, after in pairs}


def _leaves(config: VAEConfig) -> Iterator[_Leaf]:
    """Every parameter of the autoencoder. Both count levels from the finest, but for diffusers' up blocks."""
    latent = config.latent_channels
    yield from _encoder(config)
    yield from _decoder(config)
    if config.quant_conv:
        yield from _conv("quant_conv", "quant_conv", 2 * latent, 2 * latent, kernel=1)
    if config.post_quant_conv:
        yield from _conv("post_quant_conv", "post_quant_conv", latent, latent, kernel=1)


def _encoder(config: VAEConfig) -> Iterator[_Leaf]:
    widths = config.block_widths
    coarsest = len(widths) - 1
    yield from _conv("encoder.conv_in", "encoder.conv_in", config.in_channels, widths[0])
    for level, width in enumerate(widths):
        official, diffusers = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        width_in = widths[max(level - 1, 0)]
        yield from _residuals(official, diffusers, width_in, width, config.layers_per_block)
        if level in config.encoder_attention_levels:
            for layer in range(config.layers_per_block):
                yield from _attention(f"{official}.attn.{layer}", f"{diffusers}.attentions.{layer}", width)
        if level != coarsest:
            yield from _conv(f"{official}.downsample.conv", f"{diffusers}.downsamplers.0.conv", width, width)
    yield from _middle("encoder", widths[-1])
    yield from _norm("encoder.norm_out", "encoder.conv_norm_out", widths[-1])
    yield from _conv("encoder.conv_out", "encoder.conv_out", widths[-1], 2 * config.latent_channels)


def _decoder(config: VAEConfig) -> Iterator[_Leaf]:
    widths = config.block_widths
    coarsest = len(widths) - 1
    yield from _conv("decoder.conv_in", "decoder.conv_in", config.latent_channels, widths[-1])
    yield from _middle("decoder", widths[-1])
    for level, width in enumerate(widths):
        official, diffusers = f"decoder.up.{level}", f"decoder.up_blocks.{coarsest - level}"
        width_in = widths[min(level + 1, coarsest)]
        yield from _residuals(official, diffusers, width_in, width, config.layers_per_block + 1)
        if level != 0:
            yield from _conv(f"{official}.upsample.conv", f"{diffusers}.upsamplers.0.conv", width, width)
    yield from _norm("decoder.norm_out", "decoder.conv_norm_out", widths[0])
    yield from _conv("decoder.conv_out", "decoder.conv_out", widths[0], config.in_channels)


def _middle(half: str, width: int) -> Iterator[_Leaf]:
    official, diffusers = f"{half}.mid", f"{half}.mid_block"
    yield from _residual(f"{official}.block_1", f"{diffusers}.resnets.0", width, width)
    yield from _attention(f"{official}.attn_1", f"{diffusers}.attentions.0", width)
    yield from _residual(f"{official}.block_2", f"{diffusers}.resnets.1", width, width)


def _residuals(official: str, diffusers: str, width_in: int, width: int, num_layers: int) -> Iterator[_Leaf]:
    """The residual blocks of one level; the first one changes the width."""
    for layer in range(num_layers):
        first = width_in if layer == 0 else width
        yield from _residual(f"{official}.block.{layer}", f"{diffusers}.resnets.{layer}", first, width)


def _residual(official: str, diffusers: str, width_in: int, width: int) -> Iterator[_Leaf]:
    yield from _norm(f"{official}.norm1", f"{diffusers}.norm1", width_in)
    yield from _conv(f"{official}.conv1", f"{diffusers}.conv1", width_in, width)
    yield from _norm(f"{official}.norm2", f"{diffusers}.norm2", width)
    yield from _conv(f"{official}.conv2", f"{diffusers}.conv2", width, width)
    if width_in != width:
        yield from _conv(f"{official}.nin_shortcut", f"{diffusers}.conv_shortcut", width_in, width, kernel=1)


def _attention(official: str, diffusers: str, width: int) -> Iterator[_Leaf]:
    yield from _norm(f"{official}.norm", f"{diffusers}.group_norm", width)
    for before, after in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        as_conv, as_linear = (width, width, 1, 1), (width, width)
        yield from _weight_and_bias(f"{official}.{before}", f"{diffusers}.{after}", as_conv, as_linear)


def _conv(official: str, diffusers: str, width_in: int, width: int, kernel: int = 3) -> Iterator[_Leaf]:
    shape = (width, width_in, kernel, kernel)
    yield from _weight_and_bias(official, diffusers, shape, shape)


def _norm(official: str, diffusers: str, width: int) -> Iterator[_Leaf]:
    yield from _weight_and_bias(official, diffusers, (width,), (width,))


def _weight_and_bias(
    official: str, diffusers: str, official_shape: tuple[int, ...], diffusers_shape: tuple[int, ...]
) -> Iterator[_Leaf]:
    for name, ending in (("weight", slice(None)), ("bias", slice(1))):
        yield _Leaf(
            _Parameter(f"{official}.{name}", official_shape[ending]),
            _Parameter(f"{diffusers}.{name}", diffusers_shape[ending]),
        )


class KL16Codec(LatentCodec):
    """The codec of an `AutoencoderKL`."""

    def __init__(self, model: AutoencoderKL) -> None:
        config: Any = model.config
        stride = 2 ** (len(config["block_out_channels"]) - 1)
        super().__init__(model, stride, int(config["latent_channels"]), int(config["in_channels"]))
        self.network: Any = model
        self.scale, self.shift = float(config["scaling_factor"]), float(config["shift_factor"] or 0.0)
        self.means, self.deviations = (config[name] or () for name in ("latents_mean", "latents_std"))

    def own(self, config: Any) -> Any:
        return replace(
            config,
            scale=self.scale,
            shift=self.shift,
            means=tuple(self.means),
            deviations=tuple(self.deviations),
            quant_conv=self.network.quant_conv is not None,
            post_quant_conv=self.network.post_quant_conv is not None,
        )

    def _moments(self, images: Tensor) -> Tensor:
        return self.network.encode(images, return_dict=False)[0].parameters

    def _images(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents, return_dict=False)[0]

    def about(self) -> str:
        return self.network.to_json_string()

    def normalised(self, sample: Tensor) -> Tensor:
        if self.means:
            sample = (sample - _each(self.means, sample)) / _each(self.deviations, sample)
        return (sample - self.shift) * self.scale

    def raw(self, latents: Tensor) -> Tensor:
        sample = latents / self.scale + self.shift
        return sample * _each(self.deviations, sample) + _each(self.means, sample) if self.means else sample

    def enable_tiling(self, tile_size: int = NOMINAL_SIZE) -> None:
        """Take images above `tile_size` pixels a side in overlapping, blended tiles, so that memory stays bounded.

        The result is close to, not equal to, the untiled one: norms and attention see one tile at a time.
        `tile_size` must be a multiple of 4 * `stride`, because neighbours overlap by a quarter of a tile.
        """
        if tile_size < 1 or tile_size % (4 * self.stride):
            raise DisaError(f"tile_size must be a multiple of {4 * self.stride} pixels, found {tile_size}.")
        self.network.tile_sample_min_size = tile_size
        self.network.tile_latent_min_size = tile_size // self.stride
        self.network.enable_tiling()


def _each(values: Sequence[float], like: Tensor) -> Tensor:
    """One number for each channel of [B, C, h, w]."""
    return like.new_tensor(list(values))[:, None, None]
