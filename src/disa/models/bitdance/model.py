"""BitDance: causal generation of binary tokens (Ai et al. 2026, arXiv 2602.14041), class-conditional.

A causal transformer sees some vectors of the class, then the tokens drawn so far, and gives a condition vector z for
the next one, or for the next group of them, which see each other. A diffusion head draws these tokens from z; the signs
of what it draws are fed on. Keys and values of all places before are kept, in memory that is allocated once.

In the first AR step guidance with the linear ramp does not act yet. There the official code draws the two halves of the
batch apart, so that the unconditional half goes on from a first group of its own; from then on both are fed the same.

Shapes: B images, L tokens per image, N tokens of an AR step, C token channels, D width, K = L / N AR steps, P places of
the class and of what asks for the first group; B' is B, or 2 B with guidance: conditional images first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from disa.core.flow import FlowMatching
from disa.core.problem import DenoisingProblem, Noise
from disa.core.request import Request
from disa.core.work import product, ran
from disa.models.bitdance.config import BitDanceConfig
from disa.models.bitdance.head import LEAST_TIME, NORM_EPS, TIME_SCALE, DataHead, DataNetwork, GatedMLP
from disa.models.cells import CellByCell, CellState
from disa.models.guided import halves_to_come
from disa.models.layers import table
from disa.models.transformer import KVCache, RotaryAttention, Rotation, causal_mask


class CausalBlock(nn.Module):
    """A transformer block with RMS norms, rotary attention and a gated MLP, without biases."""

    def __init__(self, c: BitDanceConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(c.width, eps=NORM_EPS)
        self.attn = RotaryAttention(c.width, c.num_heads, bias=False, out_bias=False)
        self.norm2 = nn.RMSNorm(c.width, eps=NORM_EPS)
        self.mlp = GatedMLP(c.width, c.hidden, c.width, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, cache: KVCache | None, layer: int, mask: Tensor | None) -> Tensor:
        """x: [B', n, D]; see `RotaryAttention`."""
        rows, length, _ = x.shape
        made = self.attn.operations(rows, length, 0 if cache is None else cache.length)
        ran(rows * length, made + self.mlp.operations(rows * length))
        x = x + self.attn(self.norm1(x), rotation, cache, layer, mask)
        return x + self.mlp(self.norm2(x))


class BitDance(CellByCell):
    """The transformer and its head. All methods but `loss` are for inference; state lives in `CellState`."""

    process = FlowMatching(TIME_SCALE, from_noise=True)

    def __init__(self, config: BitDanceConfig) -> None:
        super().__init__()
        self.config = c = config
        self.class_embedding = table(c.num_classes + 1, c.class_tokens * c.width)
        self.query = nn.Parameter(torch.empty(1, c.group_size - 1, c.width)) if c.group_size > 1 else None
        self.token_in = GatedMLP(c.latent_channels, int(1.5 * c.width), c.width)
        self.input_norm = nn.RMSNorm(c.width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(CausalBlock(c) for _ in range(c.depth))
        self.norm = nn.RMSNorm(c.width, eps=NORM_EPS)
        self.head_positions = table(c.num_tokens, c.width)
        self.head = DataHead(c)

    # -- one generation ------------------------------------------------------------------------------------------

    def begin(self, request: Request, noise: Noise) -> CellState:
        """Check the request, and make room for the keys and values of every place."""
        # The official ramp grows with what is known before an AR step: it is 1 in the first and never at its end.
        known = [k / self.config.num_ar_steps for k in range(self.config.num_ar_steps)]
        return self.started(request, known, self.config.num_places, halves_apart=True)

    def pose(self, state: CellState) -> DenoisingProblem:
        """The backbone pass: condition vectors of the tokens that this AR step draws.

        The unconditional half goes along as long as this AR step or a later one is guided.
        """
        k, batch, scale = state.ar_step, state.request.batch_size, state.scales[state.ar_step]
        num_halves = halves_to_come(state.scales, k, len(state.embedding) // batch)
        z = self._next(state, slice(num_halves * batch)).unflatten(0, (num_halves, batch))
        # Halves that are apart are rows of their own, those of an image beside each other.
        z, own = (z.transpose(0, 1).flatten(0, 1)[None], 2) if self._apart(state) else (z[: 2 if scale != 1 else 1], 1)
        ran(0, product(z[..., 0].numel(), self.config.width, self.head.width))
        network, condition = DataNetwork(self.head, self.head.condition(z)), self._rows(z[0])
        shape = *condition.shape[1:-1], self.config.latent_channels
        return self.problem(state, network, shape, condition, self.head.operations, own)

    def accept(self, state: CellState, tokens: Tensor) -> None:
        """tokens: [R, (N,) C] of the problem posed last, of which the signs are kept; R is B, or 2 B where halves are
        apart."""
        drawn = tokens.sign().reshape(state.request.batch_size, -1, self.config.group_size, tokens.shape[-1])
        halves = state.tokens[:, self.span(state.ar_step)].unflatten(0, (-1, len(drawn)))
        halves.copy_(drawn.transpose(0, 1))
        state.ar_step += 1

    def _apart(self, state: CellState) -> bool:
        """Whether both halves draw tokens of their own in this AR step: it is the first, and the ramp begins at 1."""
        guidance, both = state.request.guidance, len(state.embedding) > state.request.batch_size
        return both and state.ar_step == 0 and guidance.at(0.0) == 1 and guidance.progress[0] == 0

    def _next(self, state: CellState, rows: slice) -> Tensor:
        """[B', N, D] condition vectors of the next group; what was drawn last is fed."""
        c, k = self.config, state.ar_step
        cache, mask = state.cache.select(rows), None
        if k:
            x = self.token_in(state.tokens[rows, self.span(k - 1)].to(state.embedding.dtype))
            ran(0, self.token_in.operations(x.shape[:2].numel()))
        else:
            x = self._beginning(state.embedding[rows])
            mask = self.mask(c.prefix, x)
        first = cache.length
        hidden = self.transform(x, state.rotation.select(slice(first, first + x.shape[1])), cache, mask)
        state.cache.advance(x.shape[1])
        return hidden[:, -c.group_size :] + self.head_positions.weight[self.span(k)]

    # -- the transformer -----------------------------------------------------------------------------------------

    def transform(
        self, x: Tensor, rotation: Rotation, cache: KVCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """What is fed [B', n, D] through all blocks; rotation: of these places; mask: see `attend`."""
        x = self.input_norm(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, cache, layer, mask)
        return self.norm(x)

    def mask(self, num_places: int, like: Tensor) -> Tensor:
        """[n, n] to add to attention scores of the first places: causal, but tokens of a group see each other."""
        c = self.config
        groups = (num_places - c.class_tokens + 1) // c.group_size
        return causal_mask([1] * (c.class_tokens - 1) + [c.group_size] * groups, like.device).to(like.dtype)

    def rotation(self, device: torch.device) -> Rotation:
        """Half of a head turns with the column, the other half with the row; places before the tokens do not turn."""
        c, places = self.config, self.places(device) + 1.5
        rows, columns = torch.cat([places.new_zeros(2, c.prefix), places[:, : c.num_tokens - c.group_size]], dim=1)
        return Rotation.of(columns, rows, c.width // c.num_heads)

    def _beginning(self, embedding: Tensor) -> Tensor:
        """[B', P, D] from class embeddings [B', ...]."""
        x = embedding.unflatten(1, (self.config.class_tokens, -1))
        return x if self.query is None else torch.cat([x, self.query.expand(len(x), -1, -1)], dim=1)

    def _rows(self, x: Tensor) -> Tensor:
        """[R, N, ...] as it is where a row is a group, and [R, ...] where it is a token."""
        return x if self.config.group_size > 1 else x.squeeze(1)

    # -- training ------------------------------------------------------------------------------------------------

    def conditions(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Condition vectors [B, L, D] of all tokens at once; tokens: [B, L, C] as they are fed."""
        c = self.config
        fed = self.token_in(tokens[:, : c.num_tokens - c.group_size].to(embedding.dtype))
        x = torch.cat([self._beginning(embedding), fed], dim=1)
        hidden = self.transform(x, self.rotation(x.device), None, self.mask(c.num_places, x))
        return hidden[:, c.class_tokens - 1 :] + self.head_positions.weight

    def loss(self, latents: Tensor, embedding: Tensor, flipped: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the velocity that follows from the data predicted, a scalar.

        latents: [B, C, H, W] of signs, embedding: [B, ...], see `embed`; flipped: [B, L, C] whether the other sign is
        fed; t: [R] times, 0 for noise to 1 for data; noise: [R, (N,) C]. Rows are copies of the flattened [B, K].
        """
        tokens = self.to_tokens(latents)
        z = self.conditions(torch.where(flipped, -tokens, tokens), embedding)
        start, z = (self._rows(x.unflatten(1, (-1, self.config.group_size)).flatten(0, 1)) for x in (tokens, z))
        copies = len(t) // len(start)
        start, z = (x.repeat(copies, *[1] * (x.dim() - 1)) for x in (start, z))
        time = t.view(-1, *[1] * (start.dim() - 1))
        data = self.head(time * start + (1 - time) * noise, t, z)
        return ((start - data) / (1 - time).clamp(min=LEAST_TIME)).square().mean()
