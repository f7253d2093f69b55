"""Harmon: MAR with a language model between its encoder and its decoder (Wu et al. 2025, arXiv 2503.21979).

Text to image: the prompt is run through the language model (Qwen2.5) once; in every AR step the encoder's tokens
follow it there and what comes back is added to them before the decoder. Image to text: the encoder's tokens of a whole
image take places in the prompt, and the language model goes on writing. Both ways the buffer tokens come after the
image's. transformers is imported when a model is built, by nothing else here.

Shapes: B images, L tokens per image, V visible and N drawn tokens of an AR step, P buffer tokens, T prompt tokens,
C token channels, D width of MAR, E width of the language model, K AR steps; B' is B, or 2 B with guidance: conditional
images first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from disa.core.capabilities import Capabilities
from disa.core.constants import constant
from disa.core.diffusion import CosineDiffusion, LossTerms, TrainingLoss
from disa.core.problem import DenoisingProblem, Noise, Preview
from disa.core.request import Prompts, Request
from disa.core.work import product, ran
from disa.errors import DisaError
from disa.models.harmon.config import HarmonConfig
from disa.models.harmon.language import Prefix, conditional, empty_cache
from disa.models.language import WithLanguageModel, causal, check_positions, check_prompts, language_model
from disa.models.mar.model import MAR
from disa.models.mar.state import MARState, Positions
from disa.runtime.kernels import linear
from disa.runtime.packing import Linear
from disa.runtime.tiles import sums_vary

IGNORED = -100
"""The target of a token that is not learned."""
Embed = Callable[[Tensor, Tensor], Tensor]
"""Ids [R, T] of the prompts at `rows` [R] -> embeddings [R, T, E]."""


@dataclass
class HarmonState(MARState):
    """One generation under way; the embedding is that of no class, [B, D]."""

    prefixes: list[Prefix] = field(default_factory=list)
    blank: Tensor | None = None
    """[B', P + L, D] what the decoder has where no token is visible; None for the mask token."""


class Projection(nn.Module):
    """Two linear layers with a SiLU between them."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x, activation="swish"))


def numbers(values: list[int], device: torch.device) -> Tensor:
    """Whole numbers [N] on a device, which follow from the shape of a batch."""
    return constant(("numbers", *values, device), lambda: torch.tensor(values).to(device, non_blocking=True))


class Harmon(WithLanguageModel):
    """MAR, language model and projections. All methods but the losses are for inference; `HarmonState` holds state."""

    process = CosineDiffusion()

    def __init__(self, config: HarmonConfig) -> None:
        super().__init__()
        self.config = c = config
        self.mar = MAR(c)
        self.mar.process = self.process
        self.llm = language_model(c)
        self.lm_head = None if c.tied else Linear(c.llm_width, c.vocab_size, bias=False)
        self.proj_in = Projection(c.encoder_width, c.llm_width, c.llm_width)
        self.proj_out = Projection(c.llm_width, c.llm_width, c.encoder_width)

    # -- one generation ------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return self.config.capabilities

    def begin(self, request: Request, noise: Noise) -> HarmonState:
        """Check the request, plan every AR step, and run the prompts through the language model."""
        planned, ids, lengths, longest = self.planned(request, noise)
        return HarmonState(**vars(planned), prefixes=self.read(ids, lengths, longest))

    def planned(self, request: Request, noise: Noise) -> tuple[MARState, Tensor, list[int], int]:
        """What MAR plans; of the B' prompts the ids and lengths, and the most tokens that follow them."""
        self.capabilities.check(request)
        if request.prompts is None:
            raise DisaError(f"{self.capabilities.family} draws from prompts: found none. Give one prompt per image.")
        planned = self.mar.plan(request, noise, self.mar.no_class.expand(request.batch_size, -1), True)
        rows = request.batch_size * (2 if request.guidance.active else 1)
        ids, lengths = request.prompts.ids[:rows], request.prompts.lengths.tolist()[:rows]
        buffer = self.config.buffer_size
        check_positions(self.config, max(lengths), planned.tokens.shape[1] + buffer)
        return planned, ids, lengths, buffer + planned.visible[-1].shape[1]

    def pose(self, state: HarmonState) -> DenoisingProblem:
        """The backbone pass: condition vectors of the tokens that this AR step draws."""
        visible, wanted = state.visible[state.ar_step], state.wanted
        # Nothing before the language model depends on the prompt, so the encoder sees each image once.
        x = self.mar.encode(state.tokens, state.embedding, visible, state.positions)
        prefixes = state.prefixes if state.turn.num_halves > 1 else conditional(state.prefixes, len(wanted))
        x = self.continued(x, prefixes)
        blank = None if state.blank is None else state.blank[: len(x)]
        return self.mar.problem(state, self.mar.decode(x, visible, wanted, state.positions, blank=blank))

    def accept(self, state: HarmonState, tokens: Tensor) -> None:
        """tokens: [B N, C] of the problem posed last."""
        self.mar.accept(state, tokens)

    def preview(self, state: HarmonState) -> Preview:
        """What is drawn so far, and which tokens are not."""
        return self.mar.preview(state)

    def ahead(self, state: HarmonState, noise: Noise) -> HarmonState:
        """A state that draws all that is left in one AR step, without guidance."""
        return self.begin(self.mar.rest(state), noise)

    def finish(self, state: HarmonState) -> Tensor:
        """Latents [B, C, H, W]."""
        return self.mar.finish(state)

    # -- the language model --------------------------------------------------------------------------------------

    def read(self, ids: Tensor, lengths: list[int], longest: int, embed: Embed | None = None) -> list[Prefix]:
        """Keys and values of prompts, padding included: nothing real attends to it. At most `longest` tokens follow.
        embed: where some of the ids are not those of words.

        ids: [N, T]; lengths: [N] without padding. Where masked keys would change the order in which a kernel sums,
        prompts of equal length go together, so that no key is padding and an image does not depend on its batch.
        Elsewhere, and in training, one call reads all.
        """
        ids = ids.to(self.mar.no_class.device)
        groups = [{length} for length in sorted(set(lengths))] if sums_vary(ids.device) else [set(lengths)]
        return [self._read(ids, lengths, group, longest, embed) for group in groups]

    def _read(
        self, ids: Tensor, lengths: list[int], group: set[int], longest: int, embed: Embed | None = None
    ) -> Prefix:
        """Of the prompts whose length is in a group."""
        places = [place for place, length in enumerate(lengths) if length in group]
        shortest, width, cache = min(group), max(group), empty_cache()
        rows, real = numbers(places, ids.device), numbers([lengths[place] for place in places], ids.device)
        positions = torch.arange(width, device=ids.device)[None]
        ids = ids[rows, :width]
        x = self.llm.embed_tokens(ids) if embed is None else embed(ids, rows)
        self._run(x, positions, causal(width, x), cache)
        past = x.new_zeros(1, 1, 1, width)
        if shortest < width:
            past = past.masked_fill((positions >= real[:, None])[:, None, None], float("-inf"))
        following = causal(longest, x).expand(len(past), -1, -1, -1)
        mask = torch.cat([past.expand(-1, -1, longest, -1), following], dim=3)
        return Prefix(places, rows, real, width, mask, cache)

    def continued(self, x: Tensor, prefixes: list[Prefix]) -> Tensor:
        """[B, P + V, D] of the encoder, buffer first -> [B', P + V, D]: with what the language model adds to it.

        The caches are as they were before, of the prompts alone.
        """
        buffer = self.config.buffer_size
        rows = torch.cat([prefix.rows for prefix in prefixes])
        width, llm = self.config.encoder_width, self.config.llm_width
        ran(0, product(len(x) * x.shape[1], width, llm, llm) + product(len(rows) * x.shape[1], llm, llm, width))
        z = self.proj_in(x).roll(-buffer, 1)
        heard = torch.cat([self._continued(z[prefix.rows % len(z)], prefix) for prefix in prefixes])[rows.argsort()]
        return x.repeat(len(rows) // len(x), 1, 1) + self.proj_out(heard.roll(buffer, 1))

    def _continued(self, z: Tensor, prefix: Prefix) -> Tensor:
        """[R, P + V, E] after the prompts -> hidden states of the same shape."""
        count = z.shape[1]
        mask = prefix.mask[:, :, :count, : prefix.width + count]
        positions = prefix.lengths[:, None] + torch.arange(count, device=z.device)
        hidden = self._run(z, positions, mask, prefix.cache)
        prefix.cache.crop(-count)
        return hidden

    def _run(self, x: Tensor, positions: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """[R, T, E] -> final hidden states; positions: [R or 1, T], mask: [R or 1, 1, T, keys] added to the scores."""
        return self.llm(
            inputs_embeds=x, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., E] -> [..., vocabulary], float32."""
        if self.lm_head is not None:
            return self.lm_head(hidden).float()
        return linear(hidden, self.llm.embed_tokens.weight).float()

    # -- image to text -------------------------------------------------------------------------------------------

    def look(self, latents: Tensor) -> Tensor:
        """Visual embeddings [B, L + P, E] of latents [B, C, H, W] of any size: image tokens first, buffer last."""
        return self.visual(self.encoded(latents, self._grid(latents)))

    def encoded(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the encoder makes of whole images of a grid of tokens: [B, P + L, D], buffer first."""
        tokens = self.mar.patchify(latents.to(self.mar.no_class.device).float(), grid)
        everything = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        positions = self.mar.positions(grid)
        return self.mar.encode(tokens, self.mar.no_class.expand(len(tokens), -1), everything, positions)

    def visual(self, x: Tensor) -> Tensor:
        """[B, P + L, D] of the encoder -> [B, L + P, E] embeddings, image tokens first."""
        return self.proj_in(x).roll(-self.config.buffer_size, 1)

    @torch.no_grad()
    def describe(
        self,
        latents: Tensor,
        ids: Tensor,
        image_token: int,
        choose: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(-1),
        stop_ids: Collection[int] = (),
        max_tokens: int = 1024,
    ) -> Iterator[Tensor]:
        """Token ids [B] of a text about each image, one turn a token.

        latents: [B, C, H, W]; ids: [B, T] or [T] prompts in which `image_token` stands L + P times. choose: logits
        [B, vocabulary] -> ids [B]. It ends when every text has had one of `stop_ids`, which a finished text repeats;
        after `max_tokens`; or where the positions end. Raises DisaError where ids and images do not fit.
        """
        return self._written(self._filled(self.look(latents), ids, image_token), choose, stop_ids, max_tokens)

    @torch.no_grad()
    def answer(
        self,
        ids: Tensor,
        choose: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(-1),
        stop_ids: Collection[int] = (),
        max_tokens: int = 1024,
    ) -> Iterator[Tensor]:
        """The same of an answer to each text [B, T], without an image."""
        x = self.llm.embed_tokens(ids.to(self.mar.no_class.device))
        return self._written(x, choose, stop_ids, max_tokens)

    @torch.no_grad()
    def _written(
        self, x: Tensor, choose: Callable[[Tensor], Tensor], stop_ids: Collection[int], max_tokens: int
    ) -> Iterator[Tensor]:
        """Token ids [B] that follow embeddings [B, T, E]."""
        length, cache = x.shape[1], empty_cache()
        check_prompts(self.config, Prompts(torch.zeros_like(x[..., 0]).long(), torch.full((len(x),), length)), 1)
        hidden = self._run(x, torch.arange(length, device=x.device)[None], causal(length, x), cache)
        stop = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=x.device)
        chosen, finished = stop.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for position in range(length, min(length + max_tokens, self.config.max_positions)):
            chosen = torch.where(finished, chosen, choose(self.logits(hidden[:, -1])))
            yield chosen
            finished |= torch.isin(chosen, stop)
            if finished.all():
                return
            here = torch.full((1, 1), position, device=x.device)
            hidden = self._run(self.llm.embed_tokens(chosen)[:, None], here, x.new_zeros(1, 1, 1, position + 1), cache)

    def _filled(self, visual: Tensor, ids: Tensor, image_token: int) -> Tensor:
        """[B, T, E] embeddings of the prompts, the visual ones in the places of the image token."""
        ids = ids.to(visual.device).expand(len(visual), -1)
        places = ids == image_token
        counts = places.sum(1)
        if (counts != visual.shape[1]).any():
            raise DisaError(
                f"a prompt about these images holds the image token {visual.shape[1]} times, found {counts.tolist()}."
            )
        words = self.llm.embed_tokens(ids.masked_fill(places, 0))
        return words.masked_scatter(places[:, :, None], visual.to(words.dtype))

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        patch = self.config.patch_size
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    # -- training ------------------------------------------------------------------------------------------------

    def loss(
        self,
        objective: TrainingLoss,
        latents: Tensor,
        prompts: Prompts,
        visible: Tensor,
        wanted: Tensor,
        t: Tensor,
        noise: Tensor,
    ) -> LossTerms:
        """Text to image: `MAR.loss` with one prompt per image instead of a class; latents may be of any size.

        visible: [B, V], wanted: [B, N], t: [m B N], noise: [m B N, C]. Officially a tenth of the prompts is the
        unconditional one.
        """
        grid = self._grid(latents)
        tokens = self.mar.patchify(latents, grid)
        z = self.condition(tokens, prompts, visible, wanted, self.mar.positions(grid))
        return self.mar.head_loss(objective, tokens, z, wanted, t, noise)

    def condition(
        self, tokens: Tensor, prompts: Prompts, visible: Tensor, wanted: Tensor, positions: Positions | None = None
    ) -> Tensor:
        """`MAR.condition` with one prompt per image instead of a class, in training."""
        positions = positions or self.mar.positions()
        x = self.mar.encode(tokens, self.mar.no_class.expand(len(tokens), -1), visible, positions)
        prefixes = self.read(prompts.ids, prompts.lengths.tolist(), x.shape[1])
        return self.mar.decode(self.continued(x, prefixes), visible, wanted, positions)

    def describing_loss(
        self, latents: Tensor, ids: Tensor, targets: Tensor, image_token: int, visual_gradient: float = 1.0
    ) -> Tensor:
        """Image to text: mean cross-entropy of the next token.

        ids: [B, T] prompts and answers, padded on the right; targets: [B, T] the same ids where they are to be
        learned, `IGNORED` elsewhere. visual_gradient: what the gradient of the visual embeddings is multiplied by;
        officially 0.1.
        """
        visual = self.look(latents)
        visual = visual * visual_gradient + visual.detach() * (1 - visual_gradient)
        return self._writing_loss(self._filled(visual, ids, image_token), targets)

    def answering_loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The same of texts without an image."""
        return self._writing_loss(self.llm.embed_tokens(ids), targets)

    def _writing_loss(self, x: Tensor, targets: Tensor) -> Tensor:
        length = x.shape[1]
        positions = torch.arange(length, device=x.device)[None]
        hidden = self._run(x, positions, causal(length, x), empty_cache())[:, :-1]
        following = targets[:, 1:].to(x.device)
        learned = following != IGNORED
        return functional.cross_entropy(self.logits(hidden[learned]), following[learned])
