"""NextStep: a language model that draws one continuous token after the other (NextStep Team 2025, arXiv 2508.10711).

The prompt ends where an image begins; from there on every token that was drawn is the next word. What the language
model says at the last of them is the condition of the next token, which a small head draws along a flow. The head is
MAR's, without variance; it is fed times from 0 (noise) to 1 (data), as the official code counts them, and says data
minus noise. transformers is imported when a model is built.

Shapes: B images, L tokens per image, C token channels, E width of the language model, K = L AR steps; R rows: B, 2 B
with guidance, 3 B where a picture is edited with a scale of its own.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from disa.core.capabilities import Capabilities
from disa.core.flow import FlowMatching
from disa.core.problem import DenoisingProblem, Noise, Preview
from disa.core.request import Prompts, Request
from disa.core.work import product, ran
from disa.errors import DisaError
from disa.models.guided import Guided, halves_to_come
from disa.models.heads import HeadNetwork, VelocityHead
from disa.models.language import WithLanguageModel, check_prompts, language_model
from disa.models.layers import patchified, sinusoids, unpatchified
from disa.models.nextstep.config import NextStepConfig
from disa.models.reading import Reading, in_order, read
from disa.runtime.packing import Linear

NORM_EPS = 1e-6


@dataclass
class NextStepState:
    """One generation under way. grid: rows and columns of tokens; tokens: [B, L, C] those that were drawn; hidden:
    [R, E] after the last of them; scales: [K] guidance of each AR step; source_scales: [K] that of a picture;
    positions: [L, E] or None."""

    request: Request
    grid: tuple[int, int]
    tokens: Tensor
    readings: list[Reading]
    hidden: Tensor
    scales: list[float]
    source_scales: list[float]
    positions: Tensor | None
    ar_step: int = 0

    @property
    def num_halves(self) -> int:
        """Prompts of each image that are still read."""
        return len(self.hidden) // len(self.tokens)


class NextStep(WithLanguageModel):
    """Language model, projections and head. State lives in `NextStepState`."""

    process = FlowMatching(embedding_scale=1, from_noise=True)
    can_be_replayed = False
    """What is kept of the language model grows with every token, so that each AR step would need a graph of its own."""

    def __init__(self, config: NextStepConfig) -> None:
        super().__init__()
        self.config = c = config
        self.llm = language_model(c, "disa-grouped")
        self.image_in = Linear(c.token_channels, c.llm_width)
        self.image_out = Linear(c.llm_width, c.llm_width)
        self.head = VelocityHead(c.token_channels, c.llm_width, c.head_width, c.head_depth)

    # -- one generation ------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return self.config.capabilities

    def begin(self, request: Request, noise: Noise) -> NextStepState:
        """Check the request, and read the prompts, with room for every token of the image."""
        c, guidance, batch = self.config, request.guidance, request.batch_size
        self.capabilities.check(request)
        grid = request.token_grid or c.grid
        c.check_places(grid)
        num_tokens = math.prod(grid)
        picture = None if request.source is None else self._picture(request.source)
        halves = 3 if guidance.three_way else 2 if guidance.active else 1
        prompts = self._prompts(request, halves * batch, num_tokens)
        known = [k / num_tokens for k in range(num_tokens)]  # officially what is known before an AR step

        def embed(ids: Tensor, rows: Tensor) -> Tensor:
            return self._embedded(ids, rows, picture, batch)

        readings, hidden = read(self.llm, prompts, embed, num_tokens - 1)
        return NextStepState(
            request,
            grid,
            torch.zeros(batch, num_tokens, c.token_channels, dtype=torch.float32, device=hidden.device),
            readings,
            hidden,
            guidance.scales(known),
            guidance.of_source().scales(known),
            self._positions(grid, hidden),
        )

    def pose(self, state: NextStepState) -> DenoisingProblem:
        """The backbone pass: the token that was drawn last, after all before it.

        The unconditional prompts go on as long as this AR step or a later one is guided, since what is guided attends
        to all that was drawn before.
        """
        k, batch = state.ar_step, len(state.tokens)
        acts = [
            scale if scale != 1 else source for scale, source in zip(state.scales, state.source_scales, strict=True)
        ]
        self._drop(state, halves_to_come(acts, k, state.num_halves))
        if k:
            self._go_on(state)
        count = state.num_halves if acts[k] != 1 else 1
        heard = state.hidden[: count * batch]
        ran(0, product(len(heard), self.config.llm_width, self.config.llm_width, self.config.head_width))
        conditions = self.image_out(heard if state.positions is None else heard + state.positions[k]).split(batch)
        network = HeadNetwork.of(self.head, *conditions)
        scale, guidance = state.scales[k], state.request.guidance
        return DenoisingProblem(
            field=Guided(network, scale, guidance.interval, state.source_scales[k]),
            process=self.process,
            shape=(self.config.token_channels,),
            image=torch.arange(batch, device=heard.device),
            position=torch.full((batch,), k, device=heard.device),
            ar_step=k,
            num_ar_steps=state.request.num_ar_steps,
            condition=conditions[0],
            guidance=scale,
            rows_to_come=state.request.num_ar_steps - 1 - k,
            operations=self.head.operations,
            known=k / state.request.num_ar_steps,
        )

    def accept(self, state: NextStepState, tokens: Tensor) -> None:
        """tokens: [B, C] of the problem posed last."""
        token = tokens.to(state.tokens.dtype)
        token = F.layer_norm(token, token.shape[-1:], eps=NORM_EPS) if self.config.norm_tokens else token
        state.tokens[:, state.ar_step] = token
        state.ar_step += 1

    def preview(self, state: NextStepState) -> Preview:
        """The tokens so far, and where the others are."""
        undrawn = torch.arange(state.tokens.shape[1], device=state.tokens.device) >= state.ar_step
        return Preview(self.finish(state), undrawn.view(1, 1, *state.grid).expand(len(state.tokens), -1, -1, -1))

    def ahead(self, state: NextStepState, noise: Noise) -> NextStepState:
        """A copy that goes on token by token."""
        return deepcopy(state)

    def finish(self, state: NextStepState) -> Tensor:
        """Latents [B, C, H, W]."""
        return unpatchified(state.tokens, state.grid, self.config.patch_size)

    # -- the language model --------------------------------------------------------------------------------------

    def _go_on(self, state: NextStepState) -> None:
        """Read the token that was drawn last, in every row of its image."""
        token = state.tokens[:, state.ar_step - 1].to(self.image_in.bias.dtype)
        ran(0, product(len(token), self.config.token_channels, self.config.llm_width))
        x = self.image_in(token).repeat(state.num_halves, 1)[:, None]
        alone = len(state.readings) == 1
        hidden = [each.go_on(self.llm, x if alone else x[each.rows]) for each in state.readings]
        state.hidden = in_order(state.readings, hidden)

    def _drop(self, state: NextStepState, num_halves: int) -> None:
        """Leave out the prompts that no AR step needs from now on."""
        if num_halves < state.num_halves:
            rows = num_halves * len(state.tokens)
            state.readings = [each.first(rows) for each in state.readings if min(each.places) < rows]
            state.hidden = state.hidden[:rows]

    def _embedded(self, ids: Tensor, rows: Tensor, picture: Tensor | None, batch: int) -> Tensor:
        """Ids [N, P] -> [N, P, E], the picture's embeddings in its places; rows: [N] which of the R rows they are."""
        places = ids == self.config.placeholder_id
        words = self.llm.embed_tokens(ids.masked_fill(places, 0))
        if picture is None:
            return words
        seen = rows[rows < 2 * batch]  # the third prompt of an image knows of no picture
        given = picture[(seen if len(picture) == 2 * batch else seen % batch).to(ids.device)]
        return words.masked_scatter(places[:, :, None], given.to(words.dtype))

    def _picture(self, latents: Tensor) -> Tensor:
        """Latents of pictures [S, C, H, W] -> their embeddings [S, L, E]."""
        c = self.config
        if latents.shape[1] != c.latent_channels or any(side % c.patch_size for side in latents.shape[2:]):
            raise DisaError(
                f"a picture's latents have {c.latent_channels} channels and sides that are multiples of "
                f"{c.patch_size}, found {tuple(latents.shape)}."
            )
        tokens = patchified(latents.to(self.image_in.bias.device).float(), c.patch_size)
        tokens = F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS) if c.norm_source else tokens
        ran(0, product(tokens.shape[:2].numel(), c.token_channels, c.llm_width))
        return self.image_in(tokens.to(self.image_in.bias.dtype))

    def _prompts(self, request: Request, num_rows: int, num_tokens: int) -> Prompts:
        """The prompts that are read. Raises DisaError where their ids, lengths or places of pictures do not fit."""
        if request.prompts is None:
            raise DisaError("NextStep draws from prompts: found none. Give one prompt per image.")
        if len(request.prompts) < num_rows:
            raise DisaError(f"a picture that is edited needs {num_rows} prompts, found {len(request.prompts)}.")
        ids, lengths = request.prompts.ids[:num_rows].cpu(), request.prompts.lengths[:num_rows].cpu()
        check_prompts(self.config, Prompts(ids, lengths), num_tokens)
        source, patch = request.source, self.config.patch_size
        wanted = 0 if source is None else source.shape[2] // patch * (source.shape[3] // patch)
        counts = (ids == self.config.placeholder_id).sum(1).tolist()
        expected = [wanted if row < 2 * request.batch_size else 0 for row in range(num_rows)]
        if counts != expected:
            raise DisaError(f"prompts hold the places of a picture {expected} times, found {counts}.")
        return Prompts(ids, lengths)

    def _positions(self, grid: tuple[int, int], like: Tensor) -> Tensor | None:
        """[L, E] what is added to the hidden state before each token; None where nothing is."""
        c = self.config
        if c.positions == "none":
            return None
        number, columns = torch.arange(math.prod(grid)), c.positions_side if c.positions == "in-order" else grid[1]
        places, half = (number % columns, number // columns), c.llm_width // 2
        return torch.cat([sinusoids(each, half).roll(half // 2, 1) for each in places], dim=1).to(like)
