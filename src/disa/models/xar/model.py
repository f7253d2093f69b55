"""xAR: next-cell generation of continuous tokens (Ren et al. 2025, arXiv 2502.20388).

The latent image is cut into cells; an AR step draws all tokens of the next one. There is no separate head: the
transformer is the velocity network, and a denoising evaluation is a pass of the cell's noisy tokens that attend to
each other and to the keys and values of the finished cells. Those are computed once, by a pass of the finished cell at
time 0, before the next one is drawn. Tokens, position tables and masks go cell by cell, inside a cell row by row.

Shapes: B images, R rows (images of a problem), L tokens per image, N tokens per cell, C token channels, D width,
K cells; B' is B, or 2 B with guidance: conditional images first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from disa.core.flow import FlowLoss, FlowMatching
from disa.core.problem import DenoisingProblem, Noise
from disa.core.request import Request
from disa.core.work import product, ran
from disa.models.cells import CellByCell, CellState
from disa.models.guided import halves_to_come, ramp_by_ar_steps
from disa.models.layers import TIME_FEATURES, embed_times, table
from disa.models.transformer import KVCache, Rotation, Trunk, causal_mask
from disa.models.xar.config import XARConfig
from disa.models.xar.field import CellNetwork
from disa.runtime.packing import Linear


class XAR(CellByCell, Trunk):
    """The transformer. All methods but `loss` are for inference; state lives in `CellState`."""

    process = FlowMatching()

    def __init__(self, config: XARConfig) -> None:
        super().__init__()
        self.config = c = config
        self.class_embedding = table(c.num_classes + 1, c.width)
        self.time_in = Linear(TIME_FEATURES, c.width)
        self.time_out = Linear(c.width, c.width)
        self.build_trunk(c)
        self.output = Linear(c.width, c.latent_channels)

    # -- one generation ------------------------------------------------------------------------------------------

    def begin(self, request: Request, noise: Noise) -> CellState:
        """Check the request, and make room for the keys and values of every cell."""
        return self.started(request, ramp_by_ar_steps(request.num_ar_steps), self.config.num_tokens, False)

    def pose(self, state: CellState) -> DenoisingProblem:
        """The backbone pass: keys and values of the cell that was drawn last.

        Those of the unconditional half are computed as long as this cell or a later one is guided, since those attend
        to them.
        """
        cell, scale, batch = state.ar_step, state.scales[state.ar_step], state.request.batch_size
        embedding = state.embedding.unflatten(0, (-1, batch))
        if cell:
            self._keep(state, cell - 1, halves_to_come(state.scales, cell, len(embedding)))
        network = CellNetwork(self, cell, state.cache, embedding[: 2 if scale != 1 else 1], state.rotation)
        shape = math.prod(self.config.cell_size), self.config.latent_channels
        return self.problem(state, network, shape, embedding[0], self.operations(cell))

    def accept(self, state: CellState, tokens: Tensor) -> None:
        """tokens: [B, N, C] of the problem posed last."""
        state.tokens[:, self.span(state.ar_step)] = tokens.to(state.tokens.dtype)
        state.ar_step += 1

    def _keep(self, state: CellState, cell: int, num_halves: int) -> None:
        """Pass a finished cell, at time 0, and keep its keys and values: it does not see the next one."""
        span, rows = self.span(cell), slice(num_halves * len(state.tokens))
        times = self.time_table(torch.zeros(1, dtype=torch.float32, device=state.embedding.device))
        modulation = self.block_modulations(state.embedding[rows] + times)[:, None]
        self.transform(state.tokens[:, span], modulation, span, state.rotation, state.cache.select(rows))
        state.cache.advance(span.stop - span.start)

    # -- the network ---------------------------------------------------------------------------------------------

    def time_table(self, times: Tensor) -> Tensor:
        """[n] -> [n, D]."""
        return embed_times(times, self.time_in, self.time_out)

    def transform(
        self,
        x: Tensor,
        modulation: Tensor,
        span: slice,
        rotation: Rotation,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Through all blocks: tokens x [B, n N, C] at `span`, modulations [B', n, depth, 6, D] -> [B', n N, D].

        Both halves of B' share x; n is 1, or the number of cells in training. rotation: of all L tokens.
        """
        ran(0, product(x[..., 0].numel(), x.shape[-1], self.config.width))
        x = self.token_in(x.to(self.encoder_positions.dtype))
        h = self.token_norm(x + self.encoder_positions[:, span]).repeat(len(modulation) // len(x), 1, 1)
        parts = (_spread(part, h) for part in modulation.unbind(2))
        return self.through(h, parts, span, rotation, cache, mask)

    def operations(self, cell: int) -> int:
        """Of one evaluation of a row, see `disa.core.work`."""
        span, width = self.span(cell), self.config.width
        length, channels = span.stop - span.start, self.config.latent_channels
        blocks: list[Any] = [*self.encoder, *self.decoder]
        made = sum(block.operations(1, length, width, span.start) for block in blocks)
        made += product(length, channels, width, width) + product(length, width, channels)
        return made + product(1, width, self.modulation.out_features)

    def velocity(self, h: Tensor) -> Tensor:
        """[B', N, D] of `transform` -> [B', N, C], float32."""
        return self.output(self.decoder_norm(h)).float()

    def rotation(self, device: torch.device) -> Rotation:
        """Of all tokens: where they stand in the whole image."""
        rows, columns = self.places(device)
        return Rotation.of(rows, columns, self.config.width // self.config.num_heads)

    # -- training ------------------------------------------------------------------------------------------------

    def loss(self, objective: FlowLoss, latents: Tensor, embedding: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the velocity, a scalar.

        latents: [B, C, H, W], embedding: [B, D], see `embed`; t: [B, K] time of each cell, noise: [B, L, C]. A cell
        sees itself and those before it as they are here, noisy.
        """
        start = self.to_tokens(latents)
        x = objective.noised(start, t.repeat_interleave(math.prod(self.config.cell_size), dim=1)[:, :, None], noise)
        return objective.error(self.predict(x, embedding, t), start, noise).mean()

    def predict(self, x: Tensor, embedding: Tensor, t: Tensor) -> Tensor:
        """Velocities [B, L, C] of all cells at once: x [B, L, C] with cells at times t [B, K]; embedding: [B, D]."""
        times = self.time_table((t.flatten().float() * self.process.embedding_scale).trunc())
        modulation = self.block_modulations(embedding[:, None] + times.view(*t.shape, -1))
        mask = causal_mask([math.prod(self.config.cell_size)] * self.config.num_ar_steps, x.device)
        everything = slice(0, self.config.num_tokens)
        return self.velocity(
            self.transform(x, modulation, everything, self.rotation(x.device), mask=mask.to(embedding.dtype))
        )


def _spread(modulation: Tensor, h: Tensor) -> Tensor:
    """[B', n, 6, D] for the tokens of h [B', n N, D]; as it is where n is 1."""
    count = modulation.shape[1]
    return modulation if count == 1 else modulation.repeat_interleave(h.shape[1] // count, dim=1)
