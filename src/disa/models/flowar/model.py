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
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disa.core.flow import FlowLoss, FlowMatching
from disa.core.problem import Counter, DenoisingProblem, Evaluate, Field, Noise, Prediction, TimeGrid
from disa.core.request import Request
from disa.errors import DisaError
from disa.models.heads import TIME_FEATURES
from disa.models.layers import Linear, attend, sinusoids, swish, table
from disa.models.naming import NameMap, Part
from disa.models.transformer import (
    NORM_EPS,
    PARTS,
    GatedMLP,
    KVCache,
    ModulatedBlock,
    RotaryAttention,
    Rotation,
    causal_mask,
    modulated,
)

OFFICIAL_CLASSES = 1000
"""Classes that the official table holds, whatever its arguments say; one more row stands for no class."""

OFFICIAL_SIDE = 16
"""The largest scale of the official code: its rotary coordinates and its enlarged inputs know no other."""

HEAD_MLP_RATIO = 4.0


@dataclass(frozen=True)
class FlowARConfig:
    """Architecture. scales: rows (and columns) of the latent image in each AR step; cross: whether head blocks attend
    to the condition vectors, instead of taking them as a modulation of their attention."""

    scales: tuple[int, ...] = (1, 2, 4, 8, 16)
    latent_channels: int = 16
    width: int = 768
    encoder_depth: int = 6
    decoder_depth: int = 6
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    head_width: int = 1024
    head_depth: int = 2
    head_heads: int = 16
    cross: bool = False

    def __post_init__(self) -> None:
        for width, heads in ((self.width, self.num_heads), (self.head_width, self.head_heads)):
            if not heads or width % (4 * heads):
                raise DisaError(f"{heads} attention heads of width {width}: each needs a multiple of 4 channels.")

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of the latent image."""
        return self.scales[-1], self.scales[-1]

    @property
    def num_tokens(self) -> int:
        """Of all scales."""
        return sum(self.token_counts)

    @property
    def token_counts(self) -> list[int]:
        """[K] tokens of each scale."""
        return [scale**2 for scale in self.scales]

    @property
    def num_ar_steps(self) -> int:
        """One AR step per scale."""
        return len(self.scales)

    @property
    def depth(self) -> int:
        return self.encoder_depth + self.decoder_depth

    @classmethod
    def from_official(cls, arguments: dict) -> FlowARConfig:
        """From the constructor arguments of the official FlowAR class. Raises DisaError."""
        same = all(arguments[f"encoder_{name}"] == arguments[f"decoder_{name}"] for name in ("embed_dim", "num_heads"))
        side = arguments["img_size"] // arguments["vae_stride"]
        plain = arguments["buffer_size"] == 0 and arguments["patch_size"] == 1
        if not (same and plain and side == arguments["scale"][-1] == OFFICIAL_SIDE):
            raise DisaError("FlowAR needs no buffer, patches of 1, one width and number of heads for encoder and "
                            f"decoder, and a last scale of {OFFICIAL_SIDE}, the side of the latents; "
                            f"found {arguments}.")  # fmt: skip
        return cls(
            scales=tuple(arguments["scale"]),
            latent_channels=arguments["vae_embed_dim"],
            width=arguments["encoder_embed_dim"],
            encoder_depth=arguments["encoder_depth"],
            decoder_depth=arguments["decoder_depth"],
            num_heads=arguments["encoder_num_heads"],
            mlp_ratio=arguments["mlp_ratio"],
            num_classes=OFFICIAL_CLASSES,
            head_width=arguments["diffloss_w"],
            head_depth=arguments["diffloss_d"],
            head_heads=arguments["diffloss_w"] // 64,
            cross=arguments["cross"],
        )


@dataclass
class FlowARState:
    """One generation under way. sample: [B, L, C] tokens of the scale drawn last; embedding: [B', D] of the classes;
    modulations: [B', 1, 6, D] of each block; rotations: of all tokens, in the transformer and in the head."""

    request: Request
    embedding: Tensor
    modulations: Sequence[Tensor]
    rotations: tuple[Rotation, Rotation]
    cache: KVCache
    sample: Tensor | None = None
    ar_step: int = 0
    counter: Counter = field(default_factory=Counter)


class FlowAR(nn.Module):
    """The transformer and its head. All methods but `loss` are for inference; state lives in `FlowARState`."""

    process = FlowMatching()

    def __init__(self, config: FlowARConfig) -> None:
        super().__init__()
        self.config = c = config
        self.class_embedding = table(c.num_classes + 1, c.width)
        self.modulation = Linear(c.width, c.depth * PARTS * c.width)
        self.token_in = Linear(c.latent_channels, c.width)
        self.token_norm = nn.RMSNorm(c.width, eps=NORM_EPS)
        self.encoder_positions = nn.Parameter(torch.empty(1, c.num_tokens, c.width))
        self.encoder = _blocks(c.encoder_depth, c)
        self.encoder_norm = nn.RMSNorm(c.width, eps=NORM_EPS)
        self.decoder_in = Linear(c.width, c.width)
        self.decoder_positions = nn.Parameter(torch.empty(1, c.num_tokens, c.width))
        self.decoder = _blocks(c.decoder_depth, c)
        self.decoder_norm = nn.RMSNorm(c.width, eps=NORM_EPS)
        self.head_positions = nn.Parameter(torch.empty(1, c.num_tokens, c.width))
        self.head = FlowHead(c.latent_channels, c.width, c.head_width, c.head_depth, c.head_heads, c.cross)

    # -- one generation ------------------------------------------------------------------------------------------

    def begin(self, request: Request, noise: Noise) -> FlowARState:
        """Check the request, and compute what does not change from scale to scale."""
        c = self.config
        request.check_fits("FlowAR", "labels")
        self.check(request.num_ar_steps, None if request.known is None else c.num_tokens)
        embedding = self._embedding(request)
        cache = KVCache.empty(c.depth, len(embedding), c.num_heads, c.num_tokens, embedding, c.width // c.num_heads)
        return FlowARState(request, embedding, self.modulations(embedding), self.rotations(embedding.device), cache)

    def check(self, num_ar_steps: int, num_unknown: int | None) -> None:
        """num_unknown: tokens to draw where others are given, or None. Raises DisaError."""
        count = self.config.num_ar_steps
        if num_ar_steps != count:
            raise DisaError(f"this FlowAR draws its {count} scales one after the other: the number of AR steps must be "
                            f"{count}, found {num_ar_steps}.")  # fmt: skip
        if num_unknown is not None:
            raise DisaError("FlowAR draws whole images scale by scale and cannot keep known tokens; use a MAR model.")

    def pose(self, state: FlowARState) -> DenoisingProblem:
        """The backbone pass: condition vectors of all tokens of the next scale."""
        scale, batch = self._scale(state.request, state.ar_step), state.request.batch_size
        z = self.condition(self._tokens_in(state), state.modulations, state.rotations[0],
                           self.span(state.ar_step), state.cache)  # fmt: skip
        halves = z.unflatten(0, (-1, batch))[: 2 if scale > 1 else 1]
        rotation = state.rotations[1].select(self.span(state.ar_step))
        return DenoisingProblem(
            field=FlowHeadField(
                self.head, self.head.remember(halves, rotation), rotation, scale, state.request.guidance.interval,
                state.counter,
            ),
            process=self.process,
            shape=(z.shape[1], self.config.latent_channels),
            image=torch.arange(batch, device=z.device),
            position=torch.zeros(batch, dtype=torch.int64, device=z.device),
            ar_step=state.ar_step,
            num_ar_steps=self.config.num_ar_steps,
            condition=halves[0],
            guidance=scale,
            rows_to_come=self.config.num_ar_steps - 1 - state.ar_step,
        )  # fmt: skip

    def accept(self, state: FlowARState, tokens: Tensor) -> None:
        """tokens: [B, L, C] of the problem posed last."""
        state.sample = tokens
        state.cache.advance(tokens.shape[1])
        state.ar_step += 1

    def finish(self, state: FlowARState) -> Tensor:
        """Latents [B, C, H, W]."""
        assert state.sample is not None
        return to_latents(state.sample)

    def _tokens_in(self, state: FlowARState) -> Tensor:
        """[B', L, D] what the transformer is fed for the next scale; both halves saw the same scales before."""
        if state.sample is None:
            return self._first(state.embedding)
        tokens = self.resized(to_latents(state.sample), self.config.scales[state.ar_step])
        x = self.token_in(tokens.to(self.encoder_positions.dtype))
        return x.repeat(len(state.embedding) // len(x), 1, 1)

    def _scale(self, request: Request, ar_step: int) -> float:
        """Of guidance, which grows with the scales, not with the tokens."""
        last = self.config.num_ar_steps - 1
        return request.guidance.at(ar_step / last if last else 1.0)

    def _embedding(self, request: Request) -> Tensor:
        """[B', D] class embeddings; the second half is there only where guidance will act in some AR step."""
        empty = self.class_embedding.weight[-1:].expand(request.batch_size, -1)
        if request.labels is None:
            return empty
        labels = request.labels.to(empty.device)
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.config.num_classes:
            raise DisaError(f"labels must be 0 to {self.config.num_classes - 1}, found {labels.tolist()}.")
        embedding = self.class_embedding(labels)
        guided = any(self._scale(request, ar_step) > 1 for ar_step in range(self.config.num_ar_steps))
        return torch.cat([embedding, empty]) if guided else embedding

    # -- the backbone --------------------------------------------------------------------------------------------

    def condition(
        self, x: Tensor, modulations: Sequence[Tensor], rotation: Rotation, span: slice, cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Condition vectors [B', L, D] of the tokens at `span`, which are fed x [B', L, D]. rotation: of all tokens."""
        rotation = rotation.select(span)
        x = self.token_norm(x + self.encoder_positions[:, span])
        for layer, block in enumerate(self.encoder):
            x = block(x, modulations[layer], rotation, cache, layer, mask)
        x = self.decoder_in(self.encoder_norm(x)) + self.decoder_positions[:, span]
        for layer, block in enumerate(self.decoder, self.config.encoder_depth):
            x = block(x, modulations[layer], rotation, cache, layer, mask)
        return self.decoder_norm(x) + self.head_positions[:, span]

    def modulations(self, embedding: Tensor) -> Sequence[Tensor]:
        """[B', D] -> [B', 1, 6, D] for each block: they depend on the class alone."""
        shape = (1, self.config.depth, PARTS, self.config.width)
        return self.modulation(swish(embedding)).unflatten(-1, shape).unbind(2)

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
        sides = [torch.arange(scale, device=device) / scale * c.scales[-1] for scale in c.scales]
        rows, columns = torch.cat([torch.cartesian_prod(side, side) for side in sides]).unbind(1)
        return (Rotation.of(rows, columns, c.width // c.num_heads),
                Rotation.of(rows, columns, c.head_width // c.head_heads))  # fmt: skip

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

    def embed(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """[B, D] class embeddings, that of no class where `dropped` [B] is true."""
        return self.class_embedding(labels.masked_fill(dropped, self.config.num_classes))


def _blocks(depth: int, config: FlowARConfig) -> nn.ModuleList:
    return nn.ModuleList(ModulatedBlock(config.width, config.num_heads, config.mlp_ratio) for _ in range(depth))


def to_tokens(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, L, C]."""
    return latents.flatten(2).transpose(1, 2)


def to_latents(tokens: Tensor) -> Tensor:
    """[B, L, C] of a square -> [B, C, h, w]."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


# -- the head ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """What the head needs of the condition vectors at every denoising step, computed once.

    projected: [P, R, L, W]; pairs: [2, P, R, H, L, d] keys and values for each block, none without cross-attention.
    """

    projected: Tensor
    pairs: list[Tensor]

    def select(self, rows: Tensor) -> Memory:
        """The same for some rows."""
        return Memory(self.projected[:, rows], [pair[:, :, rows] for pair in self.pairs])

    def halves(self, count: int) -> Memory:
        """The first `count` halves as one batch: [1, count R, ...]."""
        projected = self.projected[:count].flatten(0, 1)[None]
        return Memory(projected, [pair[:, :count].flatten(1, 2)[:, None] for pair in self.pairs])


class CrossAttention(nn.Module):
    """Attention of the tokens to condition vectors, both normed, with the rotation of the same places."""

    def __init__(self, width: int, condition_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.condition_norm = nn.RMSNorm(condition_width, eps=NORM_EPS)
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(condition_width, 2 * width, bias=False)
        self.proj = Linear(width, width)

    def remember(self, condition: Tensor, rotation: Rotation) -> Tensor:
        """[..., L, D] -> keys and values [2, ..., H, L, d]."""
        pair = self.key_value(self.condition_norm(condition)).unflatten(-1, (2, self.num_heads, -1))
        key, value = pair.movedim(-3, 0).transpose(-2, -3)
        return torch.stack([rotation.turn(key), value])

    def forward(self, x: Tensor, rotation: Rotation, pair: Tensor) -> Tensor:
        """x: [R, L, W], pair: [2, R, H, L, d]."""
        query = rotation.turn(self.query(self.norm(x)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2))
        return self.proj(attend(query, pair[0], pair[1]).transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """Self-attention modulated by the time alone, cross-attention to the conditions, MLP modulated by both."""

    def __init__(self, width: int, condition_width: int, num_heads: int) -> None:
        super().__init__()
        self.modulation = Linear(width, PARTS // 2 * width)
        self.attn = RotaryAttention(width, num_heads, bias=False)
        self.cross = CrossAttention(width, condition_width, num_heads)
        self.mlp = GatedMLP(width, HEAD_MLP_RATIO)

    def forward(self, x: Tensor, timed: Tensor, mixed: Tensor, rotation: Rotation, pair: Tensor) -> Tensor:
        """x: [R, L, W]; modulations timed: [1 or R, 1, 3, W] and mixed: [R, L, 3, W]; pair: [2, R, H, L, d]."""
        gate, scale, shift = timed.unbind(2)
        x = torch.addcmul(x, gate, self.attn(modulated(x, shift, scale), rotation))
        x = x + self.cross(x, rotation, pair)
        gate, scale, shift = mixed.unbind(2)
        return torch.addcmul(x, gate, self.mlp(modulated(x, shift, scale)))


class FlowHead(nn.Module):
    """(x_t [R, L, C], t, condition vectors [R, L, D]) -> velocity [R, L, C]; the L tokens of a row see each other.

    Modulations by time and condition differ from token to token: those of all blocks at once would not fit into memory,
    so each is made when its block needs it.
    """

    def __init__(
        self, channels: int, condition_width: int, width: int, depth: int, num_heads: int, cross: bool
    ) -> None:
        super().__init__()
        self.width = width
        self.time_in = Linear(TIME_FEATURES, width)
        self.time_out = Linear(width, width)
        self.condition = Linear(condition_width, width)
        self.input = Linear(channels, width)
        self.blocks = nn.ModuleList(
            CrossBlock(width, condition_width, num_heads) if cross
            else ModulatedBlock(width, num_heads, HEAD_MLP_RATIO, bias=False)
            for _ in range(depth)
        )  # fmt: skip
        parts = [PARTS // 2 if cross else PARTS] * depth + [2]
        self.modulation = nn.ModuleList(Linear(width, count * width) for count in parts)
        self.output = Linear(width, channels)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, rotation: Rotation) -> Tensor:
        """x: [R, L, C], t: [R], condition: [R, L, D]."""
        times = self.time_table(t)
        h = self.input(x.to(times.dtype))
        return self.denoise(h, times, self.timed(times), self.remember(condition[None], rotation), rotation)

    def time_table(self, times: Tensor) -> Tensor:
        """[n] -> [n, W]."""
        features = sinusoids(times, TIME_FEATURES).to(self.time_in.bias.dtype)
        return self.time_out(self.time_in(features, activation="swish"))

    def timed(self, times: Tensor) -> list[Tensor]:
        """Times [n, W] -> modulations [n, 1, 3, W] for each block; none without cross-attention."""
        times = swish(times)[:, None]
        return [block.modulation(times).unflatten(-1, (-1, self.width)) for block in self._crossing()]

    def remember(self, condition: Tensor, rotation: Rotation) -> Memory:
        """From [P, R, L, D]."""
        pairs = [block.cross.remember(condition, rotation) for block in self._crossing()]
        return Memory(self.condition(condition), pairs)

    def denoise(self, h: Tensor, times: Tensor, timed: list[Tensor], memory: Memory, rotation: Rotation) -> Tensor:
        """h: [R, L, W] projected input, times: [1 or R, W], timed: [1 or R, 1, 3, W] each, memory: of one half."""
        mixed = swish(times[:, None] + memory.projected[0])
        for i, block in enumerate(self.blocks):
            modulation = self.modulation[i](mixed).unflatten(-1, (-1, self.width))
            if isinstance(block, CrossBlock):
                h = block(h, timed[i], modulation, rotation, memory.pairs[i][:, 0])
            else:
                h = block(h, modulation, rotation)
        shift, scale = self.modulation[-1](mixed).chunk(2, dim=-1)
        return self.output(modulated(h, shift, scale)).float()

    def _crossing(self) -> list[CrossBlock]:
        return [block for block in self.blocks if isinstance(block, CrossBlock)]


@dataclass(frozen=True)
class FlowHeadField(Field):
    """A head with its conditions and guidance: velocity = unconditional + scale (conditional - unconditional).

    The unconditional half is there only where scale > 1, and evaluated only inside the interval of time.
    """

    head: FlowHead
    memory: Memory
    rotation: Rotation
    scale: float
    interval: tuple[float, float]
    counter: Counter

    def select(self, rows: Tensor) -> FlowHeadField:
        return replace(self, memory=self.memory.select(rows))

    def on(self, grid: TimeGrid) -> Evaluate:
        return _BoundHead(self, grid)


class _BoundHead:
    """A `FlowHeadField` on one grid: what depends on time alone is computed here, for all denoising steps."""

    def __init__(self, field: FlowHeadField, grid: TimeGrid) -> None:
        self.field, self.head = field, field.head
        available = len(field.memory.projected)
        self.num_halves = [available if acts else 1 for acts in grid.within(field.interval)]
        self.memory = {count: field.memory.halves(count) for count in set(self.num_halves)}
        times = torch.tensor(grid.network_times, dtype=torch.float32, device=field.memory.projected.device)
        self.times = self.head.time_table(times)
        self.timed = self.head.timed(self.times)

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        count, now = self.num_halves[denoise_step], slice(denoise_step, denoise_step + 1)
        self.field.counter.evaluations += count * len(x)
        h = self.head.input(x.to(self.times.dtype)).repeat(count, 1, 1)
        timed = [modulation[now] for modulation in self.timed]
        velocity = self.head.denoise(h, self.times[now], timed, self.memory[count], self.field.rotation)
        if count == 2:
            conditional, unconditional = velocity.chunk(2)
            velocity = torch.lerp(unconditional, conditional, self.field.scale)
        return Prediction(velocity)


# -- official names ------------------------------------------------------------------------------------------------

_TRUNK = {
    "class_embedding": "class_emb",
    "token_in": "z_proj",
    "token_norm": "z_proj_ln",
    "encoder_positions": "encoder_pos_embed_learned",
    "encoder": "encoder_blocks",
    "decoder_in": "decoder_embed",
    "decoder_positions": "decoder_pos_embed_learned",
    "decoder": "decoder_blocks",
    "head_positions": "diffusion_pos_embed_learned",
}
_HEAD = {
    "time_in": "time_embed.mlp.0",
    "time_out": "time_embed.mlp.2",
    "condition": "cond_embed",
    "input": "input_proj",
    "output": "final_layer.linear",
    "blocks": "res_blocks",
}
_LEAVES = {
    ".mlp.gate.": ".mlp.fc1_g.",
    ".mlp.value.": ".mlp.fc1_x.",
    ".mlp.out.": ".mlp.fc2.",
    ".cross.norm.": ".norm2_1.",
    ".cross.condition_norm.": ".norm2_2.",
    ".cross.query.": ".crossattn.q.",
    ".cross.key_value.": ".crossattn.kv.",
    ".cross.proj.": ".crossattn.proj.",
    ".modulation.": ".ada_lin_attn.",
}


def official_names(config: FlowARConfig) -> NameMap:
    """Our parameter names and the official ones; the modulations of all transformer blocks are one tensor here."""
    with torch.device("meta"):
        ours = FlowAR(config).state_dict()
    return NameMap({name: _official_name(name, config) for name in ours}, _follows_from_architecture)


def _follows_from_architecture(name: str) -> bool:
    return name == "mask" or name.endswith((".rope.freqs", ".rope.freqs_cos", ".rope.freqs_sin"))


def _official_name(name: str, config: FlowARConfig) -> list[Part]:
    first, _, rest = name.partition(".")
    if first == "modulation":
        blocks = [f"{stack}_blocks.{i}" for stack in ("encoder", "decoder")
                  for i in range(getattr(config, f"{stack}_depth"))]  # fmt: skip
        return [Part(f"{block}.ada_lin.1.{rest}", PARTS * config.width) for block in blocks]
    if first != "head":
        return [Part(_leaf(".".join(filter(None, (_TRUNK.get(first, first), rest)))))]
    layer, _, rest = rest.partition(".")
    if layer != "modulation":
        return [Part(_leaf(f"flownet.{_HEAD[layer]}.{rest}"))]
    index, leaf = rest.split(".")
    if int(index) == config.head_depth:
        return [Part(f"flownet.final_layer.adaLN_modulation.1.{leaf}")]
    return [Part(f"flownet.res_blocks.{index}.{'ada_lin_mlp' if config.cross else 'ada_lin'}.{leaf}")]


def _leaf(name: str) -> str:
    """The official name of a layer inside a block."""
    for ours, official in _LEAVES.items():
        name = name.replace(ours, official)
    return name
