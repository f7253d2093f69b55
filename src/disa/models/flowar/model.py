"""FlowAR: scale by scale generation of continuous tokens (Ren et al. 2024, arXiv 2412.15205).

The latent image is drawn at growing scales; an AR step draws all tokens of one. The transformer sees the classes and
the scales before, of which it keeps the keys and values, and gives a condition vector z for every token; a small
transformer, the head, draws the tokens of the scale together from z. The next scale is fed what was drawn, enlarged
to the largest scale and averaged down. Only the last scale is the image.

Shapes: B images, R rows (images of a problem), L tokens of a scale (of all scales in training), C token channels,
D width, W head width, H heads, d = W / H, K scales, n denoising steps; B' is B, or 2 B with guidance: conditional
images first; P such halves of the rows in the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disa.core.flow import FlowLoss, FlowMatching
from disa.core.problem import DenoisingProblem, Noise, Preview
from disa.core.request import Request
from disa.core.work import product, ran
from disa.errors import DisaError
from disa.models.flowar.config import FlowARConfig
from disa.models.flowar.field import FlowHeadNetwork
from disa.models.flowar.head import FlowHead
from disa.models.guided import Guided, halves_to_come, ramp_by_ar_steps
from disa.models.layers import table
from disa.models.transformer import KVCache, Rotation, Trunk, causal_mask


@dataclass
class FlowARState:
    """One generation under way.

    sample: [B, L, C] tokens of the scale drawn last; embedding: [B', D] of the classes; scales: [K] guidance of each AR
    step; modulations: [B', 1, 6, D] of each block; rotations: of all tokens, in the transformer and in the head.
    """

    request: Request
    embedding: Tensor
    scales: list[float]
    modulations: Sequence[Tensor]
    rotations: tuple[Rotation, Rotation]
    cache: KVCache
    sample: Tensor | None = None
    ar_step: int = 0


class FlowAR(Trunk):
    """The transformer and its head. All methods but `loss` are for inference; state lives in `FlowARState`."""

    process = FlowMatching()

    def __init__(self, config: FlowARConfig) -> None:
        super().__init__()
        self.config = c = config
        self.class_embedding = table(c.num_classes + 1, c.width)
        self.build_trunk(c)
        self.head_positions = nn.Parameter(torch.empty(1, c.num_tokens, c.width))
        self.head = FlowHead(c.latent_channels, c.width, c.head_width, c.head_depth, c.head_heads, c.cross)

    # -- one generation ------------------------------------------------------------------------------------------

    def begin(self, request: Request, noise: Noise) -> FlowARState:
        """Check the request, and compute what does not change from scale to scale."""
        c = self.config
        scales, embedding = self.asked(request, ramp_by_ar_steps(request.num_ar_steps))  # not by tokens
        cache = KVCache.empty(c.depth, len(embedding), c.num_heads, c.num_tokens, embedding, c.width // c.num_heads)
        modulations, rotations = self.modulations(embedding), self.rotations(embedding.device)
        return FlowARState(request, embedding, scales, modulations, rotations, cache)

    def pose(self, state: FlowARState) -> DenoisingProblem:
        """The backbone pass: condition vectors of all tokens of the next scale.

        The unconditional half goes through the transformer as long as this scale or a later one is guided, since those
        attend to its keys and values; through the head only where this scale is guided.
        """
        scale, batch, span = state.scales[state.ar_step], state.request.batch_size, self.span(state.ar_step)
        rows = slice(batch * halves_to_come(state.scales, state.ar_step, len(state.embedding) // batch))
        modulations, cache = [modulation[rows] for modulation in state.modulations], state.cache.select(rows)
        z = self.condition(self._tokens_in(state)[rows], modulations, state.rotations[0], span, cache)
        halves = z.unflatten(0, (-1, batch))[: 2 if scale != 1 else 1]
        rotation = state.rotations[1].select(span)
        network = FlowHeadNetwork(self.head, self.head.remember(halves, rotation), rotation)
        return DenoisingProblem(
            field=Guided(network, scale, state.request.guidance.interval),
            process=self.process,
            shape=(z.shape[1], self.config.latent_channels),
            image=torch.arange(batch, device=z.device),
            position=torch.zeros(batch, dtype=torch.int64, device=z.device),
            ar_step=state.ar_step,
            num_ar_steps=self.config.num_ar_steps,
            condition=halves[0],
            guidance=scale,
            rows_to_come=self.config.num_ar_steps - 1 - state.ar_step,
            operations=self.head.operations(z.shape[1]),
            known=state.ar_step / self.config.num_ar_steps,
        )

    def accept(self, state: FlowARState, tokens: Tensor) -> None:
        """tokens: [B, L, C] of the problem posed last."""
        state.sample = tokens
        state.cache.advance(tokens.shape[1])
        state.ar_step += 1

    def preview(self, state: FlowARState) -> Preview:
        """The scale drawn last, as it is: coarse, but whole."""
        return Preview(self.finish(state))

    def ahead(self, state: FlowARState, noise: Noise) -> FlowARState:
        """A copy that goes on scale by scale."""
        return deepcopy(state)

    def finish(self, state: FlowARState) -> Tensor:
        """Latents [B, C, H, W]."""
        assert state.sample is not None
        return to_latents(state.sample)

    def _tokens_in(self, state: FlowARState) -> Tensor:
        """[B', L, D] what the transformer is fed for the next scale; both halves saw the same scales before."""
        if state.sample is None:
            return self._first(state.embedding)
        tokens = self.resized(to_latents(state.sample), self.config.scales[state.ar_step])
        ran(0, product(tokens[..., 0].numel(), tokens.shape[2], self.config.width))
        x = self.token_in(tokens.to(self.encoder_positions.dtype))
        return x.repeat(len(state.embedding) // len(x), 1, 1)

    # -- the backbone --------------------------------------------------------------------------------------------

    def condition(
        self,
        x: Tensor,
        modulations: Sequence[Tensor],
        rotation: Rotation,
        span: slice,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Condition vectors [B', L, D] of the tokens at `span`, which are fed x [B', L, D]. rotation: of all tokens."""
        x = self.token_norm(x + self.encoder_positions[:, span])
        x = self.through(x, modulations, span, rotation, cache, mask)
        return self.decoder_norm(x) + self.head_positions[:, span]

    def modulations(self, embedding: Tensor) -> Sequence[Tensor]:
        """[B', D] -> [B', 1, 6, D] for each block: they depend on the class alone."""
        return self.block_modulations(embedding[:, None]).unbind(2)

    def _first(self, embedding: Tensor) -> Tensor:
        """[B', L, D] the first scale is fed the class."""
        return embedding[:, None].expand(-1, self.config.token_counts[0], -1)

    # -- scales --------------------------------------------------------------------------------------------------

    def span(self, ar_step: int) -> slice:
        """The tokens of a scale."""
        ends = [0, *accumulate(self.config.token_counts)]
        return slice(ends[ar_step], ends[ar_step + 1])

    def rotations(self, device: torch.device) -> tuple[Rotation, Rotation]:
        """In the transformer and in the head, of the tokens of all scales, in coordinates of the largest."""
        c = self.config
        float32 = torch.float32
        sides = [torch.arange(n, dtype=float32, device=device) / n * c.scales[-1] for n in c.scales]
        rows, columns = torch.cat([torch.cartesian_prod(side, side) for side in sides]).unbind(1)
        return (
            Rotation.of(rows, columns, c.width // c.num_heads),
            Rotation.of(rows, columns, c.head_width // c.head_heads),
        )

    def resized(self, latents: Tensor, scale: int) -> Tensor:
        """Latents [B, C, h, w] of one scale -> tokens [B, L, C] of another, through the largest."""
        largest = F.interpolate(latents, self.config.latent_size, mode="bicubic")
        return to_tokens(F.interpolate(largest, (scale, scale), mode="area"))

    # -- training ------------------------------------------------------------------------------------------------

    def loss(self, objective: FlowLoss, latents: Tensor, embedding: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the velocity, a scalar: the sum over scales, weighted by tokens over those of the last.

        latents: [B, C, H, W], embedding: [B, D], see `embed`; t: [B, K] time of each scale, noise: [B, L, C].
        """
        errors = self.errors(objective, latents, embedding, t, noise)
        counts = torch.tensor(self.config.token_counts, device=errors.device)
        return (errors.mean(0) * counts / counts[-1]).sum()

    def errors(self, objective: FlowLoss, latents: Tensor, embedding: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """[B, K] the same for each image and scale. A scale sees itself and the true scales before it."""
        starts = self.targets(latents)
        z = self.conditions(starts, embedding)
        rotation, errors = self.rotations(latents.device)[1], []
        for ar_step, start in enumerate(starts):
            span, time = self.span(ar_step), t[:, ar_step]
            x = objective.noised(start, time[:, None, None], noise[:, span])
            times = (time.float() * self.process.embedding_scale).trunc()
            velocity = self.head(x, times, z[:, span], rotation.select(span))
            errors.append(objective.error(velocity, start, noise[:, span]).mean(1))
        return torch.stack(errors, 1)

    def targets(self, latents: Tensor) -> list[Tensor]:
        """Latents [B, C, H, W] -> tokens [B, L, C] of each scale, averaged."""
        if latents.shape[1:] != (expected := (self.config.latent_channels, *self.config.latent_size)):
            raise DisaError(f"expected latents of shape (images, {expected}), found {tuple(latents.shape)}.")
        return [to_tokens(F.interpolate(latents, (scale, scale), mode="area")) for scale in self.config.scales]

    def conditions(self, starts: list[Tensor], embedding: Tensor) -> Tensor:
        """Condition vectors [B, L, D] of all scales at once, from the true tokens of each and the classes [B, D]."""
        before = zip(starts, self.config.scales[1:], strict=False)
        tokens = torch.cat([self.resized(to_latents(start), scale) for start, scale in before], 1)
        x = torch.cat([self._first(embedding), self.token_in(tokens.to(embedding.dtype))], 1)
        mask = causal_mask(self.config.token_counts, x.device).to(x.dtype)
        rotation = self.rotations(x.device)[0]
        return self.condition(x, self.modulations(embedding), rotation, slice(0, x.shape[1]), mask=mask)


def to_tokens(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, L, C]."""
    return latents.flatten(2).transpose(1, 2)


def to_latents(tokens: Tensor) -> Tensor:
    """[B, L, C] of a square -> [B, C, h, w]."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
