"""FlowAR and xAR in the plain order of work: the baselines that `flow.py` measures disa against.

The same functions of the same weights and noise, in the official code's order. Both halves of guidance are computed
everywhere, also where it does not act; FlowAR carries both through the sampler. Every evaluation embeds its times for
every row, projects the condition vectors and runs the modulation layer of each block. Caches grow by concatenation, and
xAR's finished cell goes through with the first evaluation of the next one, under a mask. Written from a description.
disa's own loop and solvers, which keep the state in float64 too, drive both; their share is below a thousandth.

Shapes: B images, L tokens of a call, C token channels, D width, H heads, d = D / H, n cells of a call, N tokens of a
cell; B' is doubled by guidance: conditional images first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from disa.core.problem import Bound, DenoisingProblem, Field, Noise, Prediction, TimeGrid
from disa.core.request import Request
from disa.models.flowar import model as flowar
from disa.models.flowar import names as flowar_names
from disa.models.flowar.model import FlowAR
from disa.models.layers import TIME_FEATURES, sinusoids
from disa.models.transformer import NORM_EPS, causal_mask
from disa.models.xar import names as xar_names
from disa.models.xar.model import XAR


@dataclass
class PlainState:
    """One generation under way. classes: [B']; drawn: [B, L, C] of each AR step; cache: keys and values by layer."""

    request: Request
    classes: Tensor
    drawn: list[Tensor] = field(default_factory=list)
    cache: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        return self.request.batch_size

    @property
    def copies(self) -> int:
        return len(self.classes) // self.batch


@dataclass(frozen=True)
class PlainField(Field):
    """network: (x, time fed to the network, t, whether it is the first evaluation) -> velocity. cost: (t, whether it is
    the first) -> evaluations of a row."""

    network: Callable[[Tensor, float, float, bool], Tensor]
    cost: Callable[[float, bool], int]

    def select(self, rows: Tensor) -> PlainField:
        raise NotImplementedError("the plain order of work has one step count per AR step")

    def on(self, grid: TimeGrid) -> Bound:
        return BoundPlain(self, grid)


class BoundPlain:
    """A `PlainField` at the times of a grid."""

    def __init__(self, field: PlainField, grid: TimeGrid) -> None:
        self.network, self.fed, self.times = field.network, grid.network_times.tolist(), grid.times.tolist()
        self.costs = [field.cost(t, i == 0) for i, t in enumerate(self.times)]

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        i = denoise_step
        return Prediction(self.network(x, self.fed[i], self.times[i], i == 0))


class PlainModel:
    """What the two share: layers by official name, through stock `F.linear`."""

    def __init__(self, model: Any, weights: dict[str, Tensor]) -> None:
        self.model, self.config, self.process, self.weights = model, model.config, model.process, weights

    def classes(self, request: Request, doubled: bool) -> Tensor:
        assert request.labels is not None, "the baseline draws labelled images"
        none = torch.full_like(request.labels, self.config.num_classes)
        return torch.cat([request.labels, none]) if doubled else request.labels

    def problem(self, state: PlainState, field: PlainField, rows: Tensor, length: int) -> DenoisingProblem:
        """rows: the images that the sampler carries."""
        shape, place = (length, self.config.latent_channels), (len(state.drawn), self.config.num_ar_steps)
        scale = self.scale(state)
        return DenoisingProblem(field, self.process, shape, rows, torch.zeros_like(rows), *place, guidance=scale)

    def scale(self, state: PlainState) -> float:
        return state.request.guidance.at(len(state.drawn) / (self.config.num_ar_steps - 1))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str | None = None) -> Tensor:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
        return x if name is None else x * self.weights[f"{name}.weight"]

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return self.norm(x).mul(scale + 1).add_(shift)

    def time_embedding(self, name: str, times: Tensor) -> Tensor:
        """[rows] -> [rows, D]."""
        hidden = self.linear(f"{name}.mlp.0", sinusoids(times, TIME_FEATURES))
        return self.linear(f"{name}.mlp.2", F.silu(hidden))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1_g", x)) * self.linear(f"{name}.fc1_x", x))

    def heads(self, name: str, x: Tensor, count: int, num_heads: int) -> Sequence[Tensor]:
        """Queries, keys or values, `count` of them: [B', H, L, d] each."""
        return self.linear(name, x).unflatten(-1, (count, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def attended(self, name: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.linear(f"{name}.proj", mixed.transpose(1, 2).flatten(2))

    def block(self, name: str, x: Tensor, modulation: Tensor, attention: Callable[[str, Tensor], Tensor]) -> Tensor:
        """modulation: [B', 1 or L, 6 D]."""
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unflatten(-1, (6, -1)).unbind(2)
        x = x + attention(f"{name}.attn", self.modulated(x, shift1, scale1)).mul_(gate1)
        return x + self.mlp(f"{name}.mlp", self.modulated(x, shift2, scale2)).mul_(gate2)

    def trunk(self, x: Tensor, span: slice, block: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Tokens at `span`, fed to the transformer as x [B', L, D] -> [B', L, D]."""
        c, weights = self.config, self.weights
        x = self.norm(x + weights["encoder_pos_embed_learned"][:, span], "z_proj_ln")
        for i in range(c.encoder_depth):
            x = block(f"encoder_blocks.{i}", x)
        x = self.linear("decoder_embed", self.norm(x, "encoder_norm"))
        x = x + weights["decoder_pos_embed_learned"][:, span]
        for i in range(c.decoder_depth):
            x = block(f"decoder_blocks.{i}", x)
        return self.norm(x, "decoder_norm")


def turned(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions; x: [B', H, L, d], cosines and sines [L, d]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * angles[0] + torch.stack([-odd, even], -1).flatten(-2) * angles[1]


def rotary(rows: Tensor, columns: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [L, d] of places [L]."""
    frequencies = 10_000 ** -(torch.arange(0, head_width // 2, 2) / (head_width // 2))
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], 1).repeat_interleave(2, 1)
    return angles.cos(), angles.sin()


# -- FlowAR ----------------------------------------------------------------------------------------------------------


class PlainFlowAR(PlainModel):
    """Both halves have a state in the sampler, also where guidance does not act, and then go apart."""

    def __init__(self, model: FlowAR) -> None:
        super().__init__(model, flowar_names.official_names(model.config).to_official(model.state_dict()))

    def begin(self, request: Request, noise: Noise) -> PlainState:
        return PlainState(request, self.classes(request, doubled=request.guidance.active))

    def pose(self, state: PlainState) -> DenoisingProblem:
        embedding = self.weights["class_emb.weight"][state.classes]
        z = self.condition(self.tokens_in(state, embedding), embedding, state)
        scale, (low, high) = self.scale(state), state.request.guidance.interval

        def network(x: Tensor, fed: float, t: float, first: bool) -> Tensor:
            guided = scale != 1 and low <= t <= high
            x = torch.cat([x[: state.batch]] * 2) if guided else x
            velocity = self.head(x, torch.full((len(x),), fed), z).double()
            if not guided:
                return velocity
            conditional, unconditional = velocity.chunk(2)
            return torch.cat([unconditional + scale * (conditional - unconditional)] * 2)

        # The sampler carries the rows of both halves.
        field = PlainField(network, lambda t, first: 1)
        return self.problem(state, field, torch.arange(state.batch).repeat(state.copies), z.shape[1])

    def accept(self, state: PlainState, tokens: Tensor) -> None:
        state.drawn.append(tokens[: state.batch])

    def finish(self, state: PlainState) -> Tensor:
        return flowar.to_latents(state.drawn[-1])

    def tokens_in(self, state: PlainState, embedding: Tensor) -> Tensor:
        """[B', L, D] the class, then what was drawn, enlarged to the largest scale and averaged down to the next."""
        if not state.drawn:
            return embedding[:, None]
        latents = flowar.to_latents(state.drawn[-1].repeat(state.copies, 1, 1))
        enlarged = F.interpolate(latents, self.config.latent_size, mode="bicubic")
        side = self.config.scales[len(state.drawn)]
        return self.linear("z_proj", flowar.to_tokens(F.interpolate(enlarged, (side, side), mode="area")))

    def condition(self, x: Tensor, embedding: Tensor, state: PlainState) -> Tensor:
        """Condition vectors [B', L, D]; embedding: [B', D]."""

        def attention(name: str, x: Tensor) -> Tensor:
            query, key, value = self.heads(f"{name}.qkv", x, 3, self.config.num_heads)
            query, key = self.turned(query), self.turned(key)
            if name in state.cache:
                old = state.cache[name]
                key, value = torch.cat([old[0], key], 2), torch.cat([old[1], value], 2)
            state.cache[name] = key, value
            return self.attended(name, query, key, value)

        def block(name: str, x: Tensor) -> Tensor:
            return self.block(name, x, self.linear(f"{name}.ada_lin.1", F.silu(embedding))[:, None], attention)

        span = self.model.span(len(state.drawn))
        return self.trunk(x, span, block) + self.weights["diffusion_pos_embed_learned"][:, span]

    def head(self, x: Tensor, times: Tensor, z: Tensor) -> Tensor:
        """x: [B', L, C], times: [B'], z: [B', L, D]."""
        t = self.time_embedding("flownet.time_embed", times)[:, None]
        c, h = self.linear("flownet.cond_embed", z), self.linear("flownet.input_proj", x)
        for name in (f"flownet.res_blocks.{i}" for i in range(self.config.head_depth)):
            if self.config.cross:
                h = self.cross_block(name, h, t, c, z)
            else:
                h = self.block(name, h, self.linear(f"{name}.ada_lin", F.silu(t + c)), self.attention)
        shift, scale = self.linear("flownet.final_layer.adaLN_modulation.1", F.silu(t + c)).chunk(2, dim=-1)
        return self.linear("flownet.final_layer.linear", self.norm(h) * (1 + scale) + shift)

    def cross_block(self, name: str, h: Tensor, t: Tensor, c: Tensor, z: Tensor) -> Tensor:
        """Attention modulated by the time t, cross-attention to z, MLP modulated by the time and by c."""
        gate, scale, shift = self.linear(f"{name}.ada_lin_attn", F.silu(t)).chunk(3, dim=-1)
        h = h + self.attention(f"{name}.attn", self.modulated(h, shift, scale)).mul_(gate)
        cross, num_heads = f"{name}.crossattn", self.config.head_heads
        (query,) = self.heads(f"{cross}.q", self.norm(h, f"{name}.norm2_1"), 1, num_heads)
        key, value = self.heads(f"{cross}.kv", self.norm(z, f"{name}.norm2_2"), 2, num_heads)
        h = h + self.attended(cross, self.turned(query), self.turned(key), value)
        gate, scale, shift = self.linear(f"{name}.ada_lin_mlp", F.silu(c + t)).chunk(3, dim=-1)
        return h + self.mlp(f"{name}.mlp", self.modulated(h, shift, scale)).mul_(gate)

    def attention(self, name: str, x: Tensor) -> Tensor:
        query, key, value = self.heads(f"{name}.qkv", x, 3, self.config.head_heads)
        return self.attended(name, self.turned(query), self.turned(key), value)

    def turned(self, x: Tensor) -> Tensor:
        """With angles computed on the spot: a scale's tokens stand in coordinates of the largest."""
        side = round(x.shape[2] ** 0.5)
        places = torch.arange(side) / side * self.config.scales[-1]
        rows, columns = torch.cartesian_prod(places, places).unbind(1)
        return turned(x, rotary(rows, columns, x.shape[-1]))


# -- xAR -------------------------------------------------------------------------------------------------------------


class PlainXAR(PlainModel):
    """Only the velocities are doubled; the conditional half is alone above the interval of guidance."""

    def __init__(self, model: XAR) -> None:
        super().__init__(model, xar_names.official_names(model.config).to_official(model.state_dict()))
        c, rotation = model.config, model.rotation(torch.device("cpu"))
        self.angles = rotation.cos.repeat_interleave(2, 1), rotation.sin.repeat_interleave(2, 1)
        self.count = c.num_tokens // c.num_ar_steps
        self.mask = causal_mask([self.count] * c.num_ar_steps, torch.device("cpu"))

    def begin(self, request: Request, noise: Noise) -> PlainState:
        return PlainState(request, self.classes(request, doubled=True))

    def pose(self, state: PlainState) -> DenoisingProblem:
        scale, (low, high) = self.scale(state), state.request.guidance.interval

        def copies_at(t: float, first: bool) -> int:
            return 2 if t <= high or first else 1

        def network(x: Tensor, fed: float, t: float, first: bool) -> Tensor:
            copies = copies_at(t, first)
            tokens = torch.cat([state.drawn[-1], x], 1) if first and state.drawn else x
            velocity = self.velocity(tokens.repeat(copies, 1, 1), fed, state, first).double()
            if copies == 1:
                return velocity
            conditional, unconditional = velocity.chunk(2)
            acts = scale != 1 and low <= t <= high
            return unconditional + scale * (conditional - unconditional) if acts else conditional

        return self.problem(state, PlainField(network, copies_at), torch.arange(state.batch), self.count)

    def accept(self, state: PlainState, tokens: Tensor) -> None:
        state.drawn.append(tokens)

    def finish(self, state: PlainState) -> Tensor:
        return self.model.to_latents(torch.cat(state.drawn, 1))

    def velocity(self, x: Tensor, fed: float, state: PlainState, keep: bool) -> Tensor:
        """x: [B', n N, C] -> [B', N, C]. keep: whether the cells before the last, which are at time 0, are cached."""
        rows, length = x.shape[:2]
        end, cells = (len(state.drawn) + 1) * self.count, length // self.count
        span = slice(end - length, end)
        angles = self.angles[0][span], self.angles[1][span]
        times = torch.cat([torch.zeros((cells - 1) * rows), torch.full((rows,), fed)])
        embedding = self.weights["class_emb.weight"][state.classes[:rows]]
        condition = embedding.repeat(cells, 1) + self.time_embedding("time_embed", times)

        def attention(name: str, x: Tensor) -> Tensor:
            query, key, value = self.heads(f"{name}.qkv", x, 3, self.config.num_heads)
            query, key = turned(query, angles), turned(key, angles)
            if name in state.cache:
                old = state.cache[name]
                key, value = torch.cat([old[0][:rows], key], 2), torch.cat([old[1][:rows], value], 2)
            if keep:
                state.cache[name] = key[:, :, : -self.count], value[:, :, : -self.count]
            return self.attended(name, query, key, value, self.mask[span, :end] if keep else None)

        def block(name: str, x: Tensor) -> Tensor:
            modulation = self.linear(f"{name}.ada_lin.1", F.silu(condition))[:, None].repeat(1, self.count, 1)
            return self.block(name, x, torch.cat(modulation.chunk(cells), 1), attention)

        return self.linear("pred", self.trunk(self.linear("z_proj", x), span, block))[:, -self.count :]


PLAIN: dict[str, Callable[[Any], PlainModel]] = {"flowar": PlainFlowAR, "xar": PlainXAR}
"""By family."""
