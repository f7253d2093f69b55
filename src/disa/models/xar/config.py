"""What an xAR is built from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from disa.core.capabilities import Capabilities
from disa.errors import DisaError
from disa.models.cells import CellConfig
from disa.models.transformer import OFFICIAL_CLASSES, check_heads

_CONSTRAINED = (
    "patch_size",
    "clusters",
    "encoder_embed_dim",
    "decoder_embed_dim",
    "encoder_num_heads",
    "decoder_num_heads",
)


@dataclass(frozen=True)
class XARConfig(CellConfig):
    """Architecture."""

    latent_size: tuple[int, int] = (16, 16)
    """Rows and columns of the latent image, and so of tokens."""
    latent_channels: int = 16
    cells: tuple[int, int] = (2, 2)
    """Cells down and across."""
    width: int = 768
    encoder_depth: int = 8
    decoder_depth: int = 8
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if any(size % count for size, count in zip(self.latent_size, self.cells, strict=True)):
            raise DisaError(f"latents of {self.latent_size} tokens cannot be cut into {self.cells} equal cells.")
        check_heads(self.width, self.num_heads)
        if int(self.width * self.mlp_ratio * 2 / 3) < 1:
            raise DisaError(f"mlp_ratio = {self.mlp_ratio} leaves nothing of width = {self.width}.")

    @property
    def cell_size(self) -> tuple[int, int]:
        """Rows and columns of tokens in a cell."""
        return self.latent_size[0] // self.cells[0], self.latent_size[1] // self.cells[1]

    @property
    def num_ar_steps(self) -> int:
        """One AR step per cell."""
        return math.prod(self.cells)

    @property
    def depth(self) -> int:
        return self.encoder_depth + self.decoder_depth

    def values_drawn(self, num_tokens: int, most_drawn: int) -> int:
        """Numbers of one image that an AR step draws, at most; most_drawn: tokens likewise, where an order says."""
        return math.prod(self.cell_size) * self.latent_channels

    def working_values(self, num_tokens: int, most_drawn: int) -> int:
        """Numbers that one image takes at the widest point of its drawing, about, without guidance."""
        cached = 2 * self.depth * self.width * num_tokens
        return cached + math.prod(self.cell_size) * (12 * self.width)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            "xAR", "labels", self.num_tokens, self.num_classes, num_ar_steps=self.num_ar_steps, group="cell"
        )

    @classmethod
    def from_official(cls, arguments: dict) -> XARConfig:
        """From the constructor arguments of the official xAR class. Raises DisaError."""
        side, across = arguments["img_size"] // arguments["vae_stride"], math.isqrt(arguments["clusters"])
        shape = {name: arguments[name] for name in _CONSTRAINED}
        same = all(shape[f"encoder_{name}"] == shape[f"decoder_{name}"] for name in ("embed_dim", "num_heads"))
        if shape["patch_size"] != 1 or not same or across**2 != shape["clusters"]:
            raise DisaError(
                "xAR needs patches of 1, encoder and decoder of one width and number of heads, and "
                f"a square number of cells; found {shape}."
            )
        return cls(
            latent_size=(side, side),
            latent_channels=arguments["vae_embed_dim"],
            cells=(across, across),
            width=arguments["encoder_embed_dim"],
            encoder_depth=arguments["encoder_depth"],
            decoder_depth=arguments["decoder_depth"],
            num_heads=arguments["encoder_num_heads"],
            mlp_ratio=arguments["mlp_ratio"],
            num_classes=OFFICIAL_CLASSES,
        )
