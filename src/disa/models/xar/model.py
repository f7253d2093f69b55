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
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from disa.core.flow import FlowLoss, FlowMatching
from disa.core.problem import Counter, DenoisingProblem, Evaluate, Field, Noise, Prediction, TimeGrid
from disa.core.request import Request
from disa.errors import DisaError
from disa.models.heads import LOOKAHEAD_VALUES, TIME_FEATURES
from disa.models.layers import Linear, sinusoids, swish, table
from disa.models.naming import NameMap, Part
from disa.models.transformer import NORM_EPS, PARTS, KVCache, ModulatedBlock, Rotation, causal_mask

OFFICIAL_CLASSES = 1000
"""Classes that the official table holds, whatever its arguments say; one more row stands for no class."""
_CONSTRAINED = (
    "patch_size", "clusters", "encoder_embed_dim", "decoder_embed_dim", "encoder_num_heads", "decoder_num_heads",
)  # fmt: skip


@dataclass(frozen=True)
class XARConfig:
    """Architecture. latent_size: rows and columns of the latent image, and so of tokens; cells: how many of them, down
    and across."""

    latent_size: tuple[int, int] = (16, 16)
    latent_channels: int = 16
    cells: tuple[int, int] = (2, 2)
    width: int = 768
    encoder_depth: int = 8
    decoder_depth: int = 8
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if any(size % count for size, count in zip(self.latent_size, self.cells, strict=True)):
            raise DisaError(f"latents of {self.latent_size} tokens cannot be cut into {self.cells} equal cells.")

    @property
    def num_tokens(self) -> int:
        return math.prod(self.latent_size)

    @property
    def cell_size(self) -> tuple[int, int]:
        """Rows and columns of tokens in a cell."""
        return self.latent_size[0] // self.cells[0], self.latent_size[1] // self.cells[1]

    @property
    def num_ar_steps(self) -> int:
        """One AR step per cell."""
        return math.prod(self.cells)

    @property
    def depth(self) -> int:
        return self.encoder_depth + self.decoder_depth

    @classmethod
    def from_official(cls, arguments: dict) -> XARConfig:
        """From the constructor arguments of the official xAR class. Raises DisaError."""
        side, across = arguments["img_size"] // arguments["vae_stride"], math.isqrt(arguments["clusters"])
        shape = {name: arguments[name] for name in _CONSTRAINED}
        same = all(shape[f"encoder_{name}"] == shape[f"decoder_{name}"] for name in ("embed_dim", "num_heads"))
        if shape["patch_size"] != 1 or not same or across**2 != shape["clusters"]:
            raise DisaError("xAR needs patches of 1, encoder and decoder of one width and number of heads, and "
                            f"a square number of cells; found {shape}.")  # fmt: skip
        return cls(
            latent_size=(side, side),
            latent_channels=arguments["vae_embed_dim"],
            cells=(across, across),
            width=arguments["encoder_embed_dim"],
            encoder_depth=arguments["encoder_depth"],
            decoder_depth=arguments["decoder_depth"],
            num_heads=arguments["encoder_num_heads"],
            mlp_ratio=arguments["mlp_ratio"],
            num_classes=OFFICIAL_CLASSES,
        )


@dataclass
class XARState:
    """One generation under way. tokens: [B, L, C] those of finished cells; embedding: [B', D] of the classes."""

    request: Request
    tokens: Tensor
    embedding: Tensor
    rotation: Rotation
    cache: KVCache
    ar_step: int = 0
    counter: Counter = field(default_factory=Counter)


class XAR(nn.Module):
    """The transformer. All methods but `loss` are for inference; state lives in `XARState`."""

    process = FlowMatching()

    def __init__(self, config: XARConfig) -> None:
        super().__init__()
        self.config = c = config
        self.class_embedding = table(c.num_classes + 1, c.width)
        self.time_in = Linear(TIME_FEATURES, c.width)
        self.time_out = Linear(c.width, c.width)
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
        self.output = Linear(c.width, c.latent_channels)

    # -- one generation ------------------------------------------------------------------------------------------

    def begin(self, request: Request, noise: Noise) -> XARState:
        """Check the request, and make room for the keys and values of every cell."""
        c = self.config
        request.check_fits("xAR", "labels")
        self.check(request.num_ar_steps, None if request.known is None else c.num_tokens)
        embedding = self._embedding(request)
        tokens = torch.zeros(request.batch_size, c.num_tokens, c.latent_channels, device=embedding.device)
        cache = KVCache.empty(c.depth, len(embedding), c.num_heads, c.num_tokens, embedding, c.width // c.num_heads)
        return XARState(request, tokens, embedding, self.rotation(embedding.device), cache)

    def check(self, num_ar_steps: int, num_unknown: int | None) -> None:
        """num_unknown: tokens to draw where others are given, or None. Raises DisaError."""
        if num_ar_steps != self.config.num_ar_steps:
            raise DisaError(f"this xAR draws one cell an AR step: the number of AR steps must be "
                            f"{self.config.num_ar_steps}, found {num_ar_steps}.")  # fmt: skip
        if num_unknown is not None:
            raise DisaError("xAR draws whole cells in a fixed order and cannot keep known tokens; use a MAR model.")

    def pose(self, state: XARState) -> DenoisingProblem:
        """The backbone pass: keys and values of the cell that was drawn last."""
        cell, guidance, batch = state.ar_step, state.request.guidance, state.request.batch_size
        if cell:
            self._keep(state, cell - 1)
        last = self.config.num_ar_steps - 1
        scale = guidance.at(cell / last if last else 1.0)
        num_halves = len(state.embedding) // batch if scale > 1 else 1
        embedding = state.embedding[: num_halves * batch]
        return DenoisingProblem(
            field=CellField(self, cell, state.cache, embedding, num_halves, scale, guidance.interval, state.counter),
            process=self.process,
            shape=(math.prod(self.config.cell_size), self.config.latent_channels),
            image=torch.arange(batch, device=embedding.device),
            position=torch.zeros(batch, dtype=torch.int64, device=embedding.device),
            ar_step=cell,
            num_ar_steps=self.config.num_ar_steps,
            condition=embedding[:batch],
            guidance=scale,
            rows_to_come=last - cell,
        )

    def accept(self, state: XARState, tokens: Tensor) -> None:
        """tokens: [B, N, C] of the problem posed last."""
        state.tokens[:, self.span(state.ar_step)] = tokens.to(state.tokens.dtype)
        state.ar_step += 1

    def finish(self, state: XARState) -> Tensor:
        """Latents [B, C, H, W]."""
        return self.to_latents(state.tokens)

    def _keep(self, state: XARState, cell: int) -> None:
        """Pass a finished cell, at time 0, and keep its keys and values: it does not see the next one."""
        span = self.span(cell)
        times = self.time_table(torch.zeros(1, device=state.embedding.device))
        modulation = self.modulations(state.embedding + times)[:, None]
        self.transform(state.tokens[:, span], modulation, span, state.rotation, state.cache)
        state.cache.advance(span.stop - span.start)

    def _embedding(self, request: Request) -> Tensor:
        """[B', D] class embeddings; the second half is there only where guidance will act in some AR step."""
        empty = self.class_embedding.weight[-1:].expand(request.batch_size, -1)
        if request.labels is None:
            return empty
        labels = request.labels.to(empty.device)
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.config.num_classes:
            raise DisaError(f"labels must be 0 to {self.config.num_classes - 1}, found {labels.tolist()}.")
        embedding = self.class_embedding(labels)
        return torch.cat([embedding, empty]) if request.guidance.scale > 1 else embedding

    # -- the network ---------------------------------------------------------------------------------------------

    def time_table(self, times: Tensor) -> Tensor:
        """[n] -> [n, D]."""
        features = sinusoids(times, TIME_FEATURES).to(self.time_in.bias.dtype)
        return self.time_out(self.time_in(features, activation="swish"))

    def modulations(self, condition: Tensor) -> Tensor:
        """Class plus time [..., D] -> [..., depth, 6, D], of all blocks: they depend on no token."""
        return self.modulation(swish(condition)).unflatten(-1, (self.config.depth, PARTS, self.config.width))

    def transform(
        self, x: Tensor, modulation: Tensor, span: slice, rotation: Rotation, cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Through all blocks: tokens x [B, n N, C] at `span`, modulations [B', n, depth, 6, D] -> [B', n N, D].

        Both halves of B' share x; n is 1, or the number of cells in training. rotation: of all L tokens.
        """
        x, rotation = self.token_in(x.to(self.encoder_positions.dtype)), rotation.select(span)
        h = self.token_norm(x + self.encoder_positions[:, span]).repeat(len(modulation) // len(x), 1, 1)
        parts = modulation.unbind(2)
        for layer, block in enumerate(self.encoder):
            h = block(h, _spread(parts[layer], h), rotation, cache, layer, mask)
        h = self.decoder_in(self.encoder_norm(h)) + self.decoder_positions[:, span]
        for layer, block in enumerate(self.decoder, self.config.encoder_depth):
            h = block(h, _spread(parts[layer], h), rotation, cache, layer, mask)
        return h

    def velocity(self, h: Tensor) -> Tensor:
        """[B', N, D] of `transform` -> [B', N, C], float32."""
        return self.output(self.decoder_norm(h)).float()

    # -- cells ---------------------------------------------------------------------------------------------------

    def span(self, cell: int) -> slice:
        """The tokens of a cell."""
        count = math.prod(self.config.cell_size)
        return slice(cell * count, (cell + 1) * count)

    def rotation(self, device: torch.device) -> Rotation:
        """Of all tokens: where they stand in the whole image."""
        places = torch.cartesian_prod(*(torch.arange(size) for size in self.config.latent_size))
        rows, columns = self.to_tokens(places.T.reshape(1, 2, *self.config.latent_size))[0].to(device).unbind(1)
        return Rotation.of(rows, columns, self.config.width // self.config.num_heads)

    def to_tokens(self, latents: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L, C], cell by cell."""
        if latents.shape[2:] != self.config.latent_size:
            size = self.config.latent_size
            raise DisaError(f"expected latents of {size} tokens, found shape {tuple(latents.shape)}.")
        (down, across), (rows, columns) = self.config.cells, self.config.cell_size
        x = latents.reshape(*latents.shape[:2], down, rows, across, columns)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(1, 4)

    def to_latents(self, tokens: Tensor) -> Tensor:
        """[B, L, C] -> [B, C, H, W]."""
        x = tokens.reshape(len(tokens), *self.config.cells, *self.config.cell_size, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, *self.config.latent_size)

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
        modulation = self.modulations(embedding[:, None] + times.view(*t.shape, -1))
        mask = causal_mask([math.prod(self.config.cell_size)] * self.config.num_ar_steps, x.device)
        everything = slice(0, self.config.num_tokens)
        return self.velocity(
            self.transform(x, modulation, everything, self.rotation(x.device), mask=mask.to(embedding.dtype))
        )

    def embed(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """[B, D] class embeddings, that of no class where `dropped` [B] is true."""
        return self.class_embedding(labels.masked_fill(dropped, self.config.num_classes))


def _blocks(depth: int, config: XARConfig) -> nn.ModuleList:
    return nn.ModuleList(ModulatedBlock(config.width, config.num_heads, config.mlp_ratio) for _ in range(depth))


def _spread(modulation: Tensor, h: Tensor) -> Tensor:
    """[B', n, 6, D] for the tokens of h [B', n N, D]; as it is where n is 1."""
    count = modulation.shape[1]
    return modulation if count == 1 else modulation.repeat_interleave(h.shape[1] // count, dim=1)


# -- the field -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellField(Field):
    """The velocity of a cell given those before it, with guidance inside the interval of time.

    cache: [.., B', ..]; embedding: [num_halves R, D]. Valid until the generation poses its next problem, which writes
    to the same cache; `select` makes a copy that stays valid.
    """

    model: XAR
    cell: int
    cache: KVCache
    embedding: Tensor
    num_halves: int
    scale: float
    interval: tuple[float, float]
    counter: Counter

    @property
    def num_rows(self) -> int:
        return len(self.embedding) // self.num_halves

    def select(self, rows: Tensor) -> CellField:
        both = torch.cat([rows + half * self.num_rows for half in range(self.num_halves)])
        return CellField(
            self.model, self.cell, self.cache.select(both), self.embedding[both], self.num_halves,
            self.scale, self.interval, self.counter,
        )  # fmt: skip

    def on(self, grid: TimeGrid) -> Evaluate:
        return _BoundCell(self, grid)


class _BoundCell:
    """A `CellField` on one grid."""

    def __init__(self, bound: CellField, grid: TimeGrid) -> None:
        self.field, self.model = bound, bound.model
        self.span, self.rotation = bound.model.span(bound.cell), bound.model.rotation(bound.embedding.device)
        self.num_halves = [bound.num_halves if acts else 1 for acts in grid.within(bound.interval)]
        times = torch.tensor(grid.network_times, dtype=torch.float32, device=bound.embedding.device)
        self.times = self.model.time_table(times)
        values = len(bound.embedding) * self.model.modulation.out_features
        self.lookahead = max(1, LOOKAHEAD_VALUES // values)
        self.first, self.modulations = -1, times

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        if self.field.cache.length != self.span.start:
            raise DisaError(f"the problem of AR step {self.field.cell} is over: its generation went on.")
        num_halves = self.num_halves[denoise_step]
        count = num_halves * self.field.num_rows
        self.field.counter.evaluations += count
        modulation = self._modulation(denoise_step)[:, None]
        cache = self.field.cache.select(slice(count))
        value = self.model.velocity(self.model.transform(x, modulation, self.span, self.rotation, cache))
        if num_halves == 2:
            conditional, unconditional = value.chunk(2)
            value = torch.lerp(unconditional, conditional, self.field.scale)
        return Prediction(value)

    def _modulation(self, denoise_step: int) -> Tensor:
        """Modulations [num_halves R, depth, 6, D], computed for a stretch of steps with as many halves."""
        if not 0 <= denoise_step - self.first < len(self.modulations) or self.first < 0:
            self.first, self.modulations = denoise_step, self.times  # the old stretch makes room for the new
            ahead = self.num_halves[denoise_step : denoise_step + self.lookahead]
            stretch = next((i for i, halves in enumerate(ahead) if halves != ahead[0]), len(ahead))
            times = self.times[denoise_step : denoise_step + stretch, None]
            self.modulations = self.model.modulations(times + self.field.embedding[: ahead[0] * self.field.num_rows])
        return self.modulations[denoise_step - self.first]


# -- official names ------------------------------------------------------------------------------------------------

_TRUNK = {
    "class_embedding": "class_emb",
    "time_in": "time_embed.mlp.0",
    "time_out": "time_embed.mlp.2",
    "token_in": "z_proj",
    "token_norm": "z_proj_ln",
    "encoder_positions": "encoder_pos_embed_learned",
    "encoder": "encoder_blocks",
    "decoder_in": "decoder_embed",
    "decoder_positions": "decoder_pos_embed_learned",
    "decoder": "decoder_blocks",
    "output": "pred",
}
_MLP = {"gate": "fc1_g", "value": "fc1_x", "out": "fc2"}


def official_names(config: XARConfig) -> NameMap:
    """Our parameter names and the official ones; the modulations of all blocks are one tensor here."""
    with torch.device("meta"):
        ours = XAR(config).state_dict()
    return NameMap({name: _official_name(name, config) for name in ours}, ignored=_is_buffer)


def _is_buffer(name: str) -> bool:
    return name == "mask" or ".rope." in name


def _official_name(name: str, config: XARConfig) -> list[Part]:
    first, _, rest = name.partition(".")
    if first == "modulation":
        depths = {"encoder_blocks": config.encoder_depth, "decoder_blocks": config.decoder_depth}
        blocks = [f"{part}.{i}" for part, depth in depths.items() for i in range(depth)]
        return [Part(f"{block}.ada_lin.1.{rest}", PARTS * config.width) for block in blocks]
    if ".mlp." in name:
        index, _, layer, leaf = rest.split(".")
        rest = f"{index}.mlp.{_MLP[layer]}.{leaf}"
    return [Part(".".join(filter(None, (_TRUNK.get(first, first), rest))))]
