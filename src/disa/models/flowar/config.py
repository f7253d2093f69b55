"""What a FlowAR is built from."""

from __future__ import annotations

from dataclasses import dataclass

from disa.core.capabilities import Capabilities
from disa.errors import DisaError
from disa.models.transformer import OFFICIAL_CLASSES

OFFICIAL_SIDE = 16
"""The largest scale of the official code: its rotary coordinates and its enlarged inputs know no other."""


@dataclass(frozen=True)
class FlowARConfig:
    """Architecture."""

    scales: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Rows, and columns, of the latent image in each AR step."""
    latent_channels: int = 16
    width: int = 768
    encoder_depth: int = 6
    decoder_depth: int = 6
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    head_width: int = 1024
    head_depth: int = 2
    head_heads: int = 16
    cross: bool = False
    """Whether head blocks attend to the condition vectors, instead of taking them as a modulation of attention."""

    def __post_init__(self) -> None:
        for width, heads in ((self.width, self.num_heads), (self.head_width, self.head_heads)):
            if not heads or width % (4 * heads):
                raise DisaError(f"{heads} attention heads of width {width}: each needs a multiple of 4 channels.")
        if list(self.scales) != sorted(self.scales):
            raise DisaError(f"scales = {self.scales} must grow: the last one is the whole latent image.")
        if int(self.width * self.mlp_ratio * 2 / 3) < 1:
            raise DisaError(f"mlp_ratio = {self.mlp_ratio} leaves nothing of width = {self.width}.")

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of the latent image."""
        return self.scales[-1], self.scales[-1]

    @property
    def num_tokens(self) -> int:
        """Of all scales."""
        return sum(self.token_counts)

    @property
    def token_counts(self) -> list[int]:
        """[K] tokens of each scale."""
        return [scale**2 for scale in self.scales]

    @property
    def num_ar_steps(self) -> int:
        """One AR step per scale."""
        return len(self.scales)

    @property
    def depth(self) -> int:
        return self.encoder_depth + self.decoder_depth

    def values_drawn(self, num_tokens: int, most_drawn: int) -> int:
        """Numbers of one image that an AR step draws, at most; most_drawn: tokens likewise, where an order says."""
        return max(self.token_counts) * self.latent_channels

    def working_values(self, num_tokens: int, most_drawn: int) -> int:
        """Numbers that one image takes at the widest point of its drawing, about, without guidance."""
        cached = 2 * self.depth * self.width * num_tokens
        return cached + max(self.token_counts) * (12 * self.width + 12 * self.head_width)

    @property
    def condition_width(self) -> int:
        """Of the vectors that the head is conditioned on."""
        return self.width

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            "FlowAR", "labels", self.num_tokens, self.num_classes, num_ar_steps=self.num_ar_steps, group="scale"
        )

    @classmethod
    def from_official(cls, arguments: dict) -> FlowARConfig:
        """From the constructor arguments of the official FlowAR class. Raises DisaError."""
        same = all(arguments[f"encoder_{name}"] == arguments[f"decoder_{name}"] for name in ("embed_dim", "num_heads"))
        side = arguments["img_size"] // arguments["vae_stride"]
        plain = arguments["buffer_size"] == 0 and arguments["patch_size"] == 1
        if not (same and plain and side == arguments["scale"][-1] == OFFICIAL_SIDE):
            raise DisaError(
                "FlowAR needs no buffer, patches of 1, one width and number of heads for encoder and "
                f"decoder, and a last scale of {OFFICIAL_SIDE}, the side of the latents; "
                f"found {arguments}."
            )
        return cls(
            scales=tuple(arguments["scale"]),
            latent_channels=arguments["vae_embed_dim"],
            width=arguments["encoder_embed_dim"],
            encoder_depth=arguments["encoder_depth"],
            decoder_depth=arguments["decoder_depth"],
            num_heads=arguments["encoder_num_heads"],
            mlp_ratio=arguments["mlp_ratio"],
            num_classes=OFFICIAL_CLASSES,
            head_width=arguments["diffloss_w"],
            head_depth=arguments["diffloss_d"],
            head_heads=arguments["diffloss_w"] // 64,
            cross=arguments["cross"],
        )
