"""MAR: masked autoregressive generation of continuous tokens (Li et al. 2024, arXiv 2406.11838).

An encoder sees the known tokens, a decoder adds mask tokens and gives a condition vector z for every token that is to
be drawn, a diffusion head draws the tokens from z. What is visible and what is drawn in each AR step follows from the
token order alone, so both are index lists made once, in `begin`.

Shapes: B images, L tokens per image, V visible and N drawn tokens of an AR step, P buffer tokens, C token channels,
D width, K AR steps; B' is B, or 2 B with guidance: conditional images first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from disa.core.capabilities import Capabilities
from disa.core.diffusion import CosineDiffusion, LossTerms, TrainingLoss
from disa.core.orders import COSINE
from disa.core.places import ordered
from disa.core.problem import DenoisingProblem, Noise, Preview
from disa.core.request import Guidance, Request
from disa.core.reuse import NONE, Turn
from disa.core.work import product, ran
from disa.errors import DisaError
from disa.models.guided import Guided
from disa.models.heads import DiffusionHead, HeadNetwork
from disa.models.kept import Keeping, Pairs
from disa.models.layers import Block, class_embeddings, patchified, table, take, unpatchified
from disa.models.mar.config import MARConfig
from disa.models.mar.state import MARState, Positions, room_for_pairs
from disa.runtime.packing import Linear


class MAR(nn.Module):
    """The transformer and its head. All methods but `loss` are for inference; state lives in `MARState`."""

    process = CosineDiffusion()
    masked_at_last = 1
    """Tokens that ramps of guidance count as masked after the last AR step."""

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        self.config = c = config
        positions = c.buffer_size + c.num_tokens
        self.class_embedding = table(c.num_classes, c.encoder_width)
        self.no_class = nn.Parameter(torch.empty(1, c.encoder_width))
        self.token_in = Linear(c.token_channels, c.encoder_width)
        self.token_norm = nn.LayerNorm(c.encoder_width, eps=1e-6)
        self.encoder_positions = nn.Parameter(torch.empty(1, positions, c.encoder_width))
        self.encoder = _blocks(c.encoder_depth, c.encoder_width, c.encoder_heads, c)
        self.encoder_norm = nn.LayerNorm(c.encoder_width, eps=c.norm_eps)
        self.decoder_in = Linear(c.encoder_width, c.decoder_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, c.decoder_width))
        self.decoder_positions = nn.Parameter(torch.empty(1, positions, c.decoder_width))
        self.decoder = _blocks(c.decoder_depth, c.decoder_width, c.decoder_heads, c)
        self.decoder_norm = nn.LayerNorm(c.decoder_width, eps=c.norm_eps)
        self.head_positions = nn.Parameter(torch.empty(1, c.num_tokens, c.decoder_width))
        self.head = DiffusionHead(c.token_channels, c.decoder_width, c.head_width, c.head_depth)

    # -- one generation ------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return self.config.capabilities

    @property
    def blocks(self) -> list[Block]:
        """Those of the encoder, then those of the decoder."""
        return cast(list[Block], [*self.encoder, *self.decoder])

    def begin(self, request: Request, noise: Noise) -> MARState:
        """Check the request and plan every AR step from the token orders."""
        self.capabilities.check(request)
        embedding = class_embeddings(request, self.class_embedding, self.no_class, request.guidance.active)
        return self.plan(request, noise, embedding, len(embedding) > request.batch_size)

    def plan(self, request: Request, noise: Noise, embedding: Tensor, has_halves: bool) -> MARState:
        """A generation with what fills the encoder's buffer: embedding [B or B', D]. has_halves: whether there is
        something unconditional to compute."""
        grid = request.token_grid or self.config.grid
        num_tokens = math.prod(grid)
        orders = ordered(request.order, noise.orders(num_tokens), grid)
        known, orders, num_unknown = self._known(request, orders)
        num_masked = request.counts.masked(num_unknown, request.num_ar_steps)
        spans = list(zip(num_masked[1:], num_masked[:-1], strict=True))
        shares = [(num_tokens - max(self.masked_at_last, masked)) / num_tokens for masked in num_masked[1:]]
        scales, positions = request.guidance.scales(shares), self.positions(request.token_grid)
        turns = request.reuse.turns([scale != 1 and has_halves for scale in scales])
        return MARState(
            request,
            known,
            orders,
            num_masked,
            visible=[orders[:, masked:].sort(1).values for _, masked in spans],
            drawn=[orders[:, after:before].sort(1).values for after, before in spans],
            embedding=embedding,
            positions=positions,
            scales=scales,
            turns=turns,
            residual=self._room_for_residual(known, turns),
            kept=room_for_pairs(self.blocks, turns, len(known), len(positions.decoder), self.no_class),
        )

    def pose(self, state: MARState) -> DenoisingProblem:
        """The backbone pass: condition vectors of the tokens that this AR step draws."""
        k, turn, tokens, positions = state.ar_step, state.turn, state.tokens, state.positions
        visible, embedding = state.visible[k], state.embedding[: turn.num_halves * len(tokens)]
        if turn.light:
            new, kept = state.drawn[k - 1], state.kept
            return self.problem(state, self.renewed(tokens, embedding, visible, new, state.drawn[k], positions, kept))
        kept = state.kept if turn.keeps else None
        return self.problem(state, self.condition(tokens, embedding, visible, state.wanted, positions, kept))

    def problem(self, state: MARState, z: Tensor) -> DenoisingProblem:
        """The problem of this AR step, given the condition vectors [B', N + N', D] of the tokens that it wants."""
        step, request, z = state.ar_step, state.request, self._with_residual(state, z)
        drawn = state.drawn[step]
        batch, count = drawn.shape
        halves, scale = z.flatten(0, 1).split(batch * count), state.scales[step]
        ran(0, product(len(z) * count, z.shape[2], self.config.head_width))
        return DenoisingProblem(
            field=Guided(HeadNetwork.of(self.head, *halves), scale, request.guidance.interval),
            process=self.process,
            shape=(self.config.token_channels,),
            image=torch.arange(batch, device=drawn.device).repeat_interleave(count),
            position=drawn.flatten(),
            ar_step=step,
            num_ar_steps=request.num_ar_steps,
            condition=halves[0],
            guidance=scale,
            rows_to_come=state.num_masked[step + 1],
            operations=self.head.operations,
            known=1 - state.num_masked[step] / state.tokens.shape[1],
        )

    def _with_residual(self, state: MARState, z: Tensor) -> Tensor:
        """Condition vectors [B', N, D] of both halves where guidance acts. What later AR steps need is put by."""
        count = state.drawn[state.ar_step].shape[1]
        if state.residual is None:
            return z
        if state.turn.ahead:
            conditional, unconditional = z[:, count:].chunk(2)
            places = torch.cat(state.later, dim=1)[:, :, None].expand_as(conditional)
            z = z[:, :count]
            state.residual.scatter_(1, places, unconditional - conditional)
        if state.turn.adds:
            z = torch.cat([z, z + take(state.residual, state.drawn[state.ar_step])])
        return z

    def _room_for_residual(self, tokens: Tensor, turns: Sequence[Turn]) -> Tensor | None:
        """What `MARState` keeps, for tokens [B, L, C]; None where nothing is kept."""
        keeps = any(turn.ahead for turn in turns)
        return self.no_class.new_zeros(*tokens.shape[:2], self.config.decoder_width) if keeps else None

    def accept(self, state: MARState, tokens: Tensor) -> None:
        """tokens: [B N, C] of the problem posed last."""
        drawn = state.drawn[state.ar_step]
        index = drawn[:, :, None].expand(-1, -1, tokens.shape[-1])
        state.tokens.scatter_(1, index, tokens.view(*drawn.shape, -1).to(state.tokens.dtype))
        state.ar_step += 1

    def preview(self, state: MARState) -> Preview:
        """What is drawn so far, and which tokens are not."""
        left = state.orders[:, : state.num_masked[state.ar_step]]
        undrawn = torch.zeros_like(state.orders, dtype=torch.bool).scatter_(1, left, True)
        rows, columns = state.request.token_grid or self.config.grid
        return Preview(self.finish(state), undrawn.view(-1, 1, rows, columns))

    def ahead(self, state: MARState, noise: Noise) -> MARState:
        """A state that draws all that is left in one AR step, without guidance."""
        return self.begin(self.rest(state), noise)

    def rest(self, state: MARState) -> Request:
        """What is left to draw, as a request for one AR step without guidance."""
        known, undrawn = self.preview(state)
        assert undrawn is not None
        rest = {"num_ar_steps": 1, "counts": COSINE, "reuse": NONE, "guidance": Guidance()}
        return replace(state.request, **rest, known=known, mask=undrawn[:, 0])

    def finish(self, state: MARState) -> Tensor:
        """Latents [B, C, H, W]."""
        return self.unpatchify(state.tokens, state.request.token_grid)

    def _known(self, request: Request, orders: Tensor) -> tuple[Tensor, Tensor, int]:
        """Tokens [B, L, C] with the given ones filled in, orders that end with them, and how many are unknown."""
        size = (request.batch_size, orders.shape[1], self.config.token_channels)
        orders = orders.to(self.no_class.device)
        if request.known is None or request.mask is None:
            return torch.zeros(size, dtype=torch.float32, device=orders.device), orders, orders.shape[1]
        counts = request.mask.flatten(1).sum(1).tolist()
        unknown = request.mask.to(orders.device).flatten(1)
        if len(set(counts)) != 1:
            raise DisaError(f"images of one batch must have equally many tokens to draw, found {sorted(set(counts))}.")
        tokens = self.patchify(request.known.to(orders.device).float(), request.token_grid) * ~unknown[:, :, None]
        given_last = (~unknown).gather(1, orders).long().argsort(dim=1, stable=True)
        return tokens, orders.gather(1, given_last), counts[0]

    # -- the backbone --------------------------------------------------------------------------------------------

    def condition(
        self,
        tokens: Tensor,
        embedding: Tensor,
        visible: Tensor,
        wanted: Tensor,
        positions: Positions | None = None,
        kept: Pairs | None = None,
    ) -> Tensor:
        """Condition vectors [B', N, D] of the tokens at `wanted` [B, N], given those at `visible` [B, V].

        tokens: [B, L, C], embedding: [B', D] of classes (or of none). positions: of another grid of tokens than that
        of the configuration. kept: filled with the keys and values of all tokens.
        """
        positions, encoding, decoding = positions or self.positions(), None, None
        if kept is not None:
            every = torch.arange(len(positions.decoder), device=tokens.device).expand(len(embedding), -1)
            places = self._with_buffer(visible).repeat(len(embedding) // len(tokens), 1)
            encoding = Keeping(kept, 0, every.shape[1], places)
            decoding = Keeping(kept, len(self.encoder), every.shape[1], every)
        x = self.encode(tokens, embedding, visible, positions, encoding)
        return self.decode(x, visible, wanted, positions, decoding)

    def renewed(
        self,
        tokens: Tensor,
        embedding: Tensor,
        visible: Tensor,
        new: Tensor,
        wanted: Tensor,
        positions: Positions,
        kept: Pairs,
    ) -> Tensor:
        """Condition vectors [B', N, D] of the tokens at `wanted` [B, N], of which nothing is computed anew but these,
        the buffer and the visible tokens at `new` [B, V']: all others have the keys and values that were kept."""
        halves, num_places, buffer = len(embedding) // len(tokens), len(positions.decoder), self.config.buffer_size
        fresh, seen = (self._with_buffer(each).repeat(halves, 1) for each in (new, visible))
        encoding = Keeping(kept, 0, num_places, fresh, renews=True, seen=seen)
        x = self.encode(tokens, embedding, new, positions, encoding)
        ran(0, product(len(x) * x.shape[1], x.shape[2], self.config.decoder_width))
        x, places = self.decoder_in(x), wanted.repeat(halves, 1)
        x = torch.cat([x, self.masked().expand(*places.shape, -1).to(x.dtype)], dim=1)
        fresh = torch.cat([fresh, places + buffer], dim=1)
        x = x + functional.embedding(fresh, positions.decoder)
        last = torch.arange(x.shape[1] - wanted.shape[1], x.shape[1], device=x.device).expand(len(x), -1)
        decoding = Keeping(kept, len(self.encoder), num_places, fresh, renews=True)
        return self._decoded(x, last, places, positions, decoding)

    def encode(
        self, tokens: Tensor, embedding: Tensor, visible: Tensor, positions: Positions, keeping: Keeping | None = None
    ) -> Tensor:
        """What the encoder makes of the buffer and the visible tokens: [B', P + V, D], buffer first."""
        buffer = self.config.buffer_size
        halves = len(embedding) // len(tokens)
        dtype = self.no_class.dtype
        ran(0, product(visible.numel(), self.config.token_channels, self.config.encoder_width))
        x = self.token_in(take(tokens, visible).to(dtype)).repeat(halves, 1, 1)
        x = torch.cat([embedding[:, None].expand(-1, buffer, -1), x], dim=1)
        x = self.token_norm(x + functional.embedding(self._with_buffer(visible).repeat(halves, 1), positions.encoder))
        for i, block in enumerate(self.encoder):
            x = block(x, kept=keeping and keeping.block(i))
        return self.encoder_norm(x)

    def decode(
        self,
        x: Tensor,
        visible: Tensor,
        wanted: Tensor,
        positions: Positions,
        keeping: Keeping | None = None,
        blank: Tensor | None = None,
    ) -> Tensor:
        """Condition vectors [B', N, D] from what `encode` gave.

        blank: [B', P + L, D] what stands where no token is visible; None for the mask token.
        """
        halves = len(x) // len(visible)
        ran(0, product(len(x) * x.shape[1], x.shape[2], self.config.decoder_width))
        x = self.decoder_in(x)
        places = self._with_buffer(visible).repeat(halves, 1)[:, :, None].expand(-1, -1, x.shape[-1])
        blank = self.masked().expand(len(x), len(positions.decoder), -1) if blank is None else blank
        x = blank.to(x.dtype).scatter(1, places, x)
        x = x + positions.decoder
        places = wanted.repeat(halves, 1)
        return self._decoded(x, places + self.config.buffer_size, places, positions, keeping)

    def _decoded(
        self, x: Tensor, last: Tensor, places: Tensor, positions: Positions, keeping: Keeping | None
    ) -> Tensor:
        """Condition vectors [B', N, D] of the tokens of x [B', L, D] at `last` [B', N], which are at `places`.

        Only the last block may leave tokens out: everything before it feeds keys and values that they attend to.
        """
        for i, block in enumerate(self.decoder):
            x = block(x, last if i == len(self.decoder) - 1 else None, keeping and keeping.block(i))
        return self.decoder_norm(x) + functional.embedding(places, positions.head)

    def masked(self) -> Tensor:
        """What the decoder sees of a token that is not known, [1, 1, D]."""
        return self.mask_token

    def _with_buffer(self, visible: Tensor) -> Tensor:
        """[B, P + V] places of the buffer and of the tokens at `visible` [B, V]."""
        buffer = torch.arange(self.config.buffer_size, device=visible.device).expand(len(visible), -1)
        return torch.cat([buffer, visible + self.config.buffer_size], dim=1)

    def positions(self, grid: tuple[int, int] | None = None) -> Positions:
        """The position tables for a grid of tokens; None for that of the configuration."""
        tables = self.encoder_positions, self.decoder_positions, self.head_positions
        return Positions(*(self._resized(table, grid)[0] for table in tables))

    def _resized(self, table: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """A position table [1, P + L, D] or [1, L, D] whose image part is interpolated to another grid of tokens."""
        if grid is None or tuple(grid) == self.config.grid:
            return table
        buffer, image = table.split([table.shape[1] - self.config.num_tokens, self.config.num_tokens], dim=1)
        image = image.transpose(1, 2).unflatten(2, self.config.grid)
        image = functional.interpolate(image, size=tuple(grid), mode="bilinear")
        return torch.cat([buffer, image.flatten(2).transpose(1, 2)], dim=1)

    def patchify(self, latents: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """[B, C, H, W] -> [B, L, C p^2]; inside a token: channel, row, column."""
        (rows, columns), patch = grid or self.config.grid, self.config.patch_size
        expected = (self.config.latent_channels, rows * patch, columns * patch)
        if latents.shape[1:] != expected:
            raise DisaError(f"expected latents of shape (images, {expected}), found {tuple(latents.shape)}.")
        return patchified(latents, patch)

    def unpatchify(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """[B, L, C p^2] -> [B, C, H, W]."""
        return unpatchified(tokens, grid or self.config.grid, self.config.patch_size)

    # -- training ------------------------------------------------------------------------------------------------

    def loss(
        self,
        objective: TrainingLoss,
        latents: Tensor,
        embedding: Tensor,
        visible: Tensor,
        wanted: Tensor,
        t: Tensor,
        noise: Tensor,
    ) -> LossTerms:
        """Loss terms of the tokens at `wanted` [B, N], each drawn m times: t [m B N], noise [m B N, C].

        embedding: [B, D], see `embed`. Rows are m copies of the flattened [B, N]. The official loss is their mean.
        """
        tokens = self.patchify(latents)
        return self.head_loss(objective, tokens, self.condition(tokens, embedding, visible, wanted), wanted, t, noise)

    def head_loss(
        self, objective: TrainingLoss, tokens: Tensor, z: Tensor, wanted: Tensor, t: Tensor, noise: Tensor
    ) -> LossTerms:
        """The same from condition vectors z [B, N, D]; tokens: [B, L, C]."""
        start, z = take(tokens, wanted).flatten(0, 1), z.flatten(0, 1)
        copies = len(t) // len(start)
        start, z = start.repeat(copies, 1), z.repeat(copies, 1)
        prediction = self.head(objective.noised(start, t, noise), t, z)
        return objective.terms(prediction, start, t, noise)

    def embed(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """[B, D] class embeddings, that of no class where `dropped` [B] is true."""
        return torch.where(dropped[:, None], self.no_class, self.class_embedding(labels))


def _blocks(depth: int, width: int, heads: int, config: MARConfig) -> nn.ModuleList:
    return nn.ModuleList(Block(width, heads, config.mlp_ratio, config.norm_eps) for _ in range(depth))
