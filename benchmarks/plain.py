"""MAR in the plain order of work: the baseline that `mar.py` measures disa against.

The same function of the same weights and noise, in the official code's order: visible tokens are found by boolean
masks, all decoder blocks see all tokens, guidance doubles everything from the first layer to the sampler, and every
denoising step builds its timesteps, embeds them for every row, projects the condition, runs one modulation layer per
block and gathers its coefficients as tensors. Written from a description. disa's own loop drives and times both.

Shapes: B images, L tokens per image, R rows, C token channels, D width; B', R' are doubled by guidance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from disa.core.problem import Bound, DenoisingProblem, Grid, Noise, Prediction, TimeGrid
from disa.core.request import Request
from disa.core.solver import GridSolver
from disa.models.layers import sinusoids
from disa.models.mar.model import MAR
from disa.models.mar.names import official_names


@dataclass
class PlainState:
    """One generation under way. tokens: [B, L, C]; masked, drawn: [B, L] booleans; embedding: [B', D]."""

    request: Request
    tokens: Tensor
    orders: Tensor
    masked: Tensor
    drawn: Tensor
    embedding: Tensor
    ar_step: int = 0


class PlainMAR:
    """The weights of a disa `MAR` under their official names, through stock `F.linear`."""

    def __init__(self, model: MAR) -> None:
        self.model, self.config, self.dtype = model, model.config, model.no_class.dtype
        self.weights = official_names(model.config).to_official(model.state_dict())

    def begin(self, request: Request, noise: Noise) -> PlainState:
        assert request.labels is not None, "the baseline draws labelled images"
        orders = noise.orders(self.config.num_tokens)
        embedding = self.weights["class_emb.weight"][request.labels.to(orders.device)]
        if request.guidance.active:
            embedding = torch.cat([embedding, self.weights["fake_latent"].repeat(len(embedding), 1)])
        masked = torch.ones_like(orders, dtype=torch.bool)
        tokens = torch.zeros(*orders.shape, self.config.token_channels, device=orders.device)
        return PlainState(request, tokens, orders, masked, masked, embedding)

    def pose(self, state: PlainState) -> DenoisingProblem:
        request, total, copies = state.request, self.config.num_tokens, len(state.embedding) // len(state.tokens)
        z = self.condition(state.tokens.repeat(copies, 1, 1), state.masked.repeat(copies, 1), state.embedding)
        wanted = math.floor(total * math.cos(math.pi / 2 * (state.ar_step + 1) / request.num_ar_steps))
        remaining = max(1, min(int(state.masked[0].sum()) - 1, wanted))
        after = torch.zeros_like(state.masked).scatter(1, state.orders[:, :remaining], True)
        last = state.ar_step + 1 == request.num_ar_steps
        state.drawn = state.masked if last else torch.logical_xor(state.masked, after)
        scale = request.guidance.at((total - remaining) / total)
        head = PlainField(self, z[state.drawn.repeat(copies, 1).nonzero(as_tuple=True)], scale, copies)
        image, position = state.drawn.nonzero(as_tuple=True)
        shape, place = (self.config.token_channels,), (state.ar_step, request.num_ar_steps)
        return DenoisingProblem(head, self.model.process, shape, image, position, *place, guidance=scale)

    def accept(self, state: PlainState, tokens: Tensor) -> None:
        state.tokens[state.drawn.nonzero(as_tuple=True)] = tokens
        state.masked = torch.logical_and(state.masked, ~state.drawn)
        state.ar_step += 1

    def finish(self, state: PlainState) -> Tensor:
        return self.model.unpatchify(state.tokens)

    def condition(self, tokens: Tensor, masked: Tensor, embedding: Tensor) -> Tensor:
        """Condition vectors [B', L, D] of all tokens; tokens: [B', L, C], masked: [B', L]."""
        config, weights, buffer = self.config, self.weights, self.config.buffer_size
        x = torch.cat([embedding[:, None].repeat(1, buffer, 1), self.linear("z_proj", tokens.to(self.dtype))], dim=1)
        x = self.norm("z_proj_ln", x + weights["encoder_pos_embed_learned"], 1e-6)
        visible = F.pad(~masked, (buffer, 0), value=True)
        x = x[visible.nonzero(as_tuple=True)].reshape(len(x), -1, config.encoder_width)
        x = self.blocks("encoder", x, config.encoder_depth, config.encoder_heads)
        x = self.linear("decoder_embed", self.norm("encoder_norm", x, config.norm_eps))
        padded = weights["mask_token"].repeat(*visible.shape, 1)
        padded[visible.nonzero(as_tuple=True)] = x.flatten(0, 1)
        x = padded + weights["decoder_pos_embed_learned"]
        x = self.blocks("decoder", x, config.decoder_depth, config.decoder_heads)
        return self.norm("decoder_norm", x, config.norm_eps)[:, buffer:] + weights["diffusion_pos_embed_learned"]

    def blocks(self, name: str, x: Tensor, depth: int, num_heads: int) -> Tensor:
        for block in (f"{name}_blocks.{i}" for i in range(depth)):
            mixed = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, self.config.norm_eps))
            query, key, value = mixed.reshape(*x.shape[:2], 3, num_heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
            x = x + self.linear(f"{block}.attn.proj", attended)
            hidden = self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, self.config.norm_eps))
            x = x + self.linear(f"{block}.mlp.fc2", F.gelu(hidden))
        return x

    def head(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """x: [R', C], t: [R'], z: [R', D] -> [R', 2 C]."""
        net, h = "diffloss.net", sinusoids(t, 256).to(self.dtype)
        h = self.linear(f"{net}.time_embed.mlp.2", F.silu(self.linear(f"{net}.time_embed.mlp.0", h)))
        y = h + self.linear(f"{net}.cond_embed", z)
        h = self.linear(f"{net}.input_proj", x.to(self.dtype))
        for block in (f"{net}.res_blocks.{i}" for i in range(self.config.head_depth)):
            shift, scale, gate = self.linear(f"{block}.adaLN_modulation.1", F.silu(y)).chunk(3, dim=1)
            inner = self.norm(f"{block}.in_ln", h, 1e-6) * (1 + scale) + shift
            h = h + gate * self.linear(f"{block}.mlp.2", F.silu(self.linear(f"{block}.mlp.0", inner)))
        shift, scale = self.linear(f"{net}.final_layer.adaLN_modulation.1", F.silu(y)).chunk(2, dim=1)
        h = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift
        return self.linear(f"{net}.final_layer.linear", h).float()

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[name + ".weight"], self.weights[name + ".bias"], eps)


@dataclass(frozen=True)
class PlainField:
    """The head on all R' rows, with everything computed anew in every denoising step. z: [R', D]."""

    model: PlainMAR
    z: Tensor
    scale: float
    copies: int

    def select(self, rows: Tensor) -> PlainField:
        raise NotImplementedError("the plain order of work has one step count per AR step")

    def on(self, grid: TimeGrid) -> Bound:
        return BoundPlain(self, grid.network_times)

    def evaluate(self, x: Tensor, times: np.ndarray, denoise_step: int) -> Prediction:
        index = torch.tensor([denoise_step] * len(x), device=x.device)
        t = torch.tensor(times, dtype=torch.float32, device=x.device)[index]
        both = torch.cat([x.chunk(self.copies)[0]] * self.copies)
        value, variance = self.model.head(both, t, self.z).chunk(2, dim=1)
        if self.copies == 2:
            conditional, unconditional = value.chunk(2)
            value = torch.cat([unconditional + self.scale * (conditional - unconditional)] * 2)
        return Prediction(value, variance)


class BoundPlain:
    """A `PlainField` at the times of a grid."""

    def __init__(self, field: PlainField, times: np.ndarray) -> None:
        self.field, self.times, self.costs = field, times, [field.copies] * len(times)

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        return self.field.evaluate(x, self.times, denoise_step)


@dataclass(frozen=True)
class PlainDDPM(GridSolver):
    """Ancestral sampling of all R' rows: each coefficient is looked up as a tensor in every denoising step."""

    grid: Grid = "clipped-950"
    kind = "plain-ddpm"
    takes = ("noise",)
    stochastic = True

    def run(self, bound: Bound, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        now, then = grid.levels[:-1], grid.levels[1:]
        beta, share = 1 - now / then, 1 - now
        posterior = beta * (1 - then) / share
        posterior[-1] = posterior[-2]
        tables = [
            np.sqrt(1 / now),
            np.sqrt(1 / now - 1),
            beta * np.sqrt(then) / share,
            (1 - then) * np.sqrt(now / then) / share,
            np.log(beta),
            np.log(posterior),
        ]
        copies = 2 if problem.guidance != 1 else 1
        x = torch.cat([x] * copies)
        for i in range(grid.num_evaluations):
            value, variance = bound(x, i)
            assert variance is not None
            index = torch.tensor([i] * len(x), device=x.device)
            rows = [torch.from_numpy(table).to(x.device)[index].float()[:, None].expand(x.shape) for table in tables]
            mean = rows[2] * (rows[0] * x - rows[1] * value) + rows[3] * x
            log_variance = (variance + 1) / 2 * rows[4] + (1 - (variance + 1) / 2) * rows[5]
            nonzero = (index != grid.num_evaluations - 1).float()[:, None]
            x = mean + nonzero * torch.exp(0.5 * log_variance) * torch.cat([noise[i]] * copies)
        return x.chunk(copies)[0]
