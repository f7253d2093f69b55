"""What xAR and BitDance share: they cut the latent image into equal cells and draw one after the other.

Tokens and positions go cell by cell, inside a cell row by row. Keys and values of all that was drawn are kept.

Shapes: B images, L tokens per image, N tokens per cell, C token channels, D width, K AR steps; B' is B, or 2 B with
guidance: conditional images first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from disa.core.constants import constant
from disa.core.flow import FlowMatching
from disa.core.problem import DenoisingProblem, Noise, Preview
from disa.core.request import Request
from disa.errors import DisaError
from disa.models.guided import Guided, Network
from disa.models.layers import ClassConditioned
from disa.models.transformer import KVCache, Rotation


class CellConfig:
    """What follows from the architecture of such a model."""

    latent_size: tuple[int, int]
    width: int

    @property
    def cell_size(self) -> tuple[int, int]:
        """Rows and columns of tokens that go together in the order of drawing."""
        raise NotImplementedError

    @property
    def num_tokens(self) -> int:
        return math.prod(self.latent_size)

    @property
    def condition_width(self) -> int:
        """Of the vectors that the head is conditioned on."""
        return self.width


@dataclass
class CellState:
    """One generation under way. tokens: [B or B', L, C] those that were drawn; embedding: [B', ...] of the classes;
    scales: [K] guidance of each AR step."""

    request: Request
    tokens: Tensor
    embedding: Tensor
    scales: list[float]
    rotation: Rotation
    cache: KVCache
    ar_step: int = 0


class CellByCell(ClassConditioned):
    """A model whose configuration is a `CellConfig`, with latent_channels and num_ar_steps."""

    process: FlowMatching

    def span(self, ar_step: int) -> slice:
        """The tokens of an AR step."""
        count = self.config.num_tokens // self.config.num_ar_steps
        return slice(ar_step * count, (ar_step + 1) * count)

    def rotation(self, device: torch.device) -> Rotation:
        """Of all places."""
        raise NotImplementedError

    def started(self, request: Request, known: Sequence[float], num_places: int, halves_apart: bool) -> CellState:
        """Check a request, and make room for the keys and values of all places. known: see `asked`; halves_apart:
        whether the unconditional half draws tokens of its own."""
        c, (scales, embedding) = self.config, self.asked(request, known)
        size = len(embedding) if halves_apart else request.batch_size, c.num_tokens, c.latent_channels
        tokens = torch.zeros(size, dtype=torch.float32, device=embedding.device)
        cache = KVCache.empty(c.depth, len(embedding), c.num_heads, num_places, embedding, c.width // c.num_heads)
        return CellState(request, tokens, embedding, scales, self.rotation(embedding.device), cache)

    def problem(
        self,
        state: CellState,
        network: Network,
        shape: tuple[int, ...],
        condition: Tensor,
        operations: int,
        rows_per_image: int = 1,
    ) -> DenoisingProblem:
        """That of the next AR step. The rows of an image are beside each other; shape, condition and operations: of a
        row."""
        k, count, scale = state.ar_step, self.config.num_ar_steps, state.scales[state.ar_step]
        row = torch.arange(rows_per_image * state.request.batch_size, device=condition.device)
        alone = rows_per_image == 1
        return DenoisingProblem(
            field=Guided(network, scale, state.request.guidance.interval),
            process=self.process,
            shape=shape,
            image=row if alone else row // rows_per_image,
            position=torch.zeros_like(row) if alone else row % rows_per_image,
            ar_step=k,
            num_ar_steps=count,
            condition=condition,
            guidance=scale,
            rows_to_come=count - 1 - k,
            operations=operations,
            known=k / count,
        )

    def preview(self, state: CellState) -> Preview:
        """The finished cells, and where the others are."""
        undrawn = torch.zeros_like(state.tokens[: state.request.batch_size, :, :1])
        undrawn[:, self.span(state.ar_step).start :] = 1
        return Preview(self.finish(state), self.to_latents(undrawn) > 0)

    def ahead(self, state: CellState, noise: Noise) -> CellState:
        """A copy that goes on cell by cell."""
        return deepcopy(state)

    def finish(self, state: CellState) -> Tensor:
        """Latents [B, C, H, W]."""
        return self.to_latents(state.tokens[: state.request.batch_size])

    def places(self, device: torch.device) -> Tensor:
        """[2, L] row and column of each token."""
        size, cell = self.config.latent_size, self.config.cell_size

        def make() -> Tensor:
            places = torch.cartesian_prod(*(torch.arange(side) for side in size))
            return self.to_tokens(places.T.reshape(1, 2, *size))[0].T.to(device, non_blocking=True)

        return constant(("places", size, cell, device), make)

    def to_tokens(self, latents: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L, C], cell by cell. Raises DisaError."""
        size, (down, across) = self.config.latent_size, self.config.cell_size
        if latents.shape[2:] != size:
            raise DisaError(f"expected latents of {size} tokens, found shape {tuple(latents.shape)}.")
        x = latents.unflatten(3, (-1, across)).unflatten(2, (-1, down))
        return x.permute(0, 2, 4, 3, 5, 1).flatten(1, 4)

    def to_latents(self, tokens: Tensor) -> Tensor:
        """[B, L, C] -> [B, C, H, W]."""
        (rows, columns), (down, across) = self.config.latent_size, self.config.cell_size
        x = tokens.reshape(len(tokens), rows // down, columns // across, down, across, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, rows, columns)
