"""UniPic-1: Harmon's network, which also edits pictures (Wang et al. 2025, arXiv 2508.03320).

A picture that is edited is run through the encoder whole. The language model reads what the encoder says of it, and
the words after that, before it goes on as in text to image; in the decoder the picture stands where nothing is drawn
yet, in place of the mask token. The unconditional half sees the picture, too, with other words.

Shapes: as in `disa.models.harmon.model`; S pictures: B, or 2 B with others for the unconditional half.
"""

from __future__ import annotations

from torch import Tensor

from disa.core.diffusion import CosineDiffusion
from disa.core.problem import Noise
from disa.core.request import Request
from disa.core.work import product, ran
from disa.models.harmon.model import Harmon, HarmonState
from disa.models.unipic.config import UniPicConfig


class UniPic(Harmon):
    """MAR, language model and projections. Its diffusion is trained on all of its timesteps, and never ends in noise
    alone: 2.6e-5 of the signal's variance is left at the last one."""

    process = CosineDiffusion(max_beta=0.2, trained_of_1000=999)

    def __init__(self, config: UniPicConfig) -> None:
        super().__init__(config)
        self.placeholder_id = config.placeholder_id

    def begin(self, request: Request, noise: Noise) -> HarmonState:
        """As Harmon's; with a picture to edit, of the size of the image, it is read before."""
        if request.source is None:
            return super().begin(request, noise)
        planned, ids, lengths, longest = self.planned(request, noise)
        c, rows = self.config, len(lengths)
        seen = self.encoded(request.source, request.token_grid or c.grid)
        width, count = c.llm_width, seen.shape[:2].numel()
        ran(0, product(count, c.encoder_width, width, width) + product(count, c.encoder_width, c.decoder_width))
        visual, blank = self.visual(seen), self.mar.decoder_in(seen)

        def embed(ids: Tensor, places: Tensor) -> Tensor:
            return self._filled(visual[places % len(visual)], ids, self.placeholder_id)

        prefixes = self.read(ids, lengths, longest, embed)
        return HarmonState(**vars(planned), prefixes=prefixes, blank=blank.repeat(-(-rows // len(blank)), 1, 1)[:rows])
