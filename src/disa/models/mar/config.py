"""What a MAR is built from."""

from __future__ import annotations

from dataclasses import dataclass

from disa.core.capabilities import Capabilities
from disa.errors import DisaError


@dataclass(frozen=True)
class MARConfig:
    """Architecture."""

    latent_size: tuple[int, int] = (16, 16)
    """Rows and columns of the latent image."""
    latent_channels: int = 16
    patch_size: int = 1
    """Latent positions along one side of a token."""
    encoder_width: int = 768
    encoder_depth: int = 12
    encoder_heads: int = 12
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    num_classes: int = 1000
    buffer_size: int = 64
    """Tokens before those of the image that hold the class."""
    head_width: int = 1024
    head_depth: int = 6

    def __post_init__(self) -> None:
        if any(side % self.patch_size for side in self.latent_size):
            raise DisaError(f"latents of {self.latent_size} cannot be cut into patches of {self.patch_size}.")
        for half in ("encoder", "decoder"):
            width, heads = getattr(self, f"{half}_width"), getattr(self, f"{half}_heads")
            if width % heads:
                raise DisaError(f"{half}_heads = {heads} must divide {half}_width = {width}.")
            if int(width * self.mlp_ratio) < 1:
                raise DisaError(f"mlp_ratio = {self.mlp_ratio} leaves nothing of {half}_width = {width}.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.latent_size[0] // self.patch_size, self.latent_size[1] // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def token_channels(self) -> int:
        return self.latent_channels * self.patch_size**2

    def values_drawn(self, num_tokens: int, most_drawn: int) -> int:
        """Numbers of one image that an AR step draws, at most; most_drawn: tokens likewise, where an order says."""
        return most_drawn * self.token_channels

    def working_values(self, num_tokens: int, most_drawn: int) -> int:
        """Numbers that one image takes at the widest point of its drawing, about, without guidance."""
        backbone = 12 * (num_tokens + self.buffer_size) * max(self.encoder_width, self.decoder_width)
        return max(backbone, most_drawn * self.head_width * (3 * self.head_depth + 8))

    def kept_values(self, num_tokens: int) -> int:
        """Numbers of the keys and values of one image, without guidance."""
        widths = self.encoder_depth * self.encoder_width + self.decoder_depth * self.decoder_width
        return 2 * (num_tokens + self.buffer_size) * widths

    @property
    def condition_width(self) -> int:
        """Of the vectors that the head is conditioned on."""
        return self.decoder_width

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            "MAR",
            "labels",
            self.num_tokens,
            self.num_classes,
            any_size=True,
            keeps_tokens=True,
            reuses=("residual", "tokens"),
        )

    @classmethod
    def from_official(cls, arguments: dict) -> MARConfig:
        """From the constructor arguments of the official MAR class."""
        side = arguments["img_size"] // arguments["vae_stride"]
        return cls(
            latent_size=(side, side),
            latent_channels=arguments["vae_embed_dim"],
            patch_size=arguments["patch_size"],
            encoder_width=arguments["encoder_embed_dim"],
            encoder_depth=arguments["encoder_depth"],
            encoder_heads=arguments["encoder_num_heads"],
            decoder_width=arguments["decoder_embed_dim"],
            decoder_depth=arguments["decoder_depth"],
            decoder_heads=arguments["decoder_num_heads"],
            mlp_ratio=arguments["mlp_ratio"],
            norm_eps=arguments.get("norm_eps", 1e-6),
            num_classes=arguments["class_num"],
            buffer_size=arguments["buffer_size"],
            head_width=arguments["diffloss_w"],
            head_depth=arguments["diffloss_d"],
        )
