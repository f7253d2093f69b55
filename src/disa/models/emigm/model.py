"""eMIGM: masked generation of continuous tokens (You et al. 2025, arXiv 2503.07197), on MAR's network.

It draws few tokens in the first AR steps and most in the last ones (counts `exp`), and guides some AR steps alone. An
image without a class is one whose class is masked: one vector stands for both.
"""

from __future__ import annotations

from torch import Tensor

from disa.core.diffusion import CosineDiffusion
from disa.models.emigm.config import EMIGMConfig
from disa.models.mar.model import MAR

FIRST_TIMESTEP = 995
"""The official sampler begins here. Training visits 999, too, where 1 / sqrt(abar) multiplies errors by 20 000."""


class EMIGM(MAR):
    """The transformer and its head; training takes timesteps up to 999."""

    process = CosineDiffusion(trained_of_1000=FIRST_TIMESTEP)
    masked_at_last = 0

    def __init__(self, config: EMIGMConfig) -> None:
        super().__init__(config)
        self.shares_mask_token = config.shares_mask_token
        if config.shares_mask_token:
            del self.mask_token

    def masked(self) -> Tensor:
        return self.no_class if self.shares_mask_token else super().masked()
