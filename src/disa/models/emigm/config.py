"""What an eMIGM is built from: a MAR, whose mask token may be the vector of no class."""

from __future__ import annotations

from dataclasses import dataclass, replace

from disa.core.capabilities import Capabilities
from disa.errors import DisaError
from disa.models.mar.config import MARConfig


@dataclass(frozen=True)
class EMIGMConfig(MARConfig):
    """Architecture."""

    shares_mask_token: bool = True
    """Whether one vector is both the mask token and the class of images without one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shares_mask_token and self.encoder_width != self.decoder_width:
            raise DisaError(
                f"encoder_width = {self.encoder_width} and decoder_width = {self.decoder_width} must be equal where "
                "shares_mask_token is true."
            )

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, family="eMIGM")

    @classmethod
    def from_official(cls, arguments: dict) -> EMIGMConfig:
        """From the constructor arguments of the official class."""
        shared = vars(MARConfig.from_official(arguments))
        return cls(**shared, shares_mask_token=arguments["use_unsup_cfg"])
