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

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from disa.core.diffusion import CosineDiffusion, LossTerms, TrainingLoss
from disa.core.problem import DenoisingProblem, Noise
from disa.core.request import Prompts, Request
from disa.errors import DisaError
from disa.models.layers import Linear, Swish, adopt, attend, linear
from disa.models.mar import model as mar
from disa.models.mar.model import MAR, MARConfig, MARState, Positions
from disa.models.naming import NameMap, Part

IGNORED = -100
"""The target of a token that is not learned."""


@dataclass(frozen=True)
class HarmonConfig(MARConfig):
    """Architecture: MAR's, whose classes are not used, and the language model's. tied: its two tables are one."""

    vocab_size: int = 151_936
    llm_width: int = 896
    llm_hidden: int = 4864
    llm_depth: int = 24
    llm_heads: int = 14
    llm_kv_heads: int = 2
    rope_base: float = 1_000_000.0
    llm_norm_eps: float = 1e-6
    max_positions: int = 32_768
    tied: bool = True

    def num_image_tokens(self, grid: tuple[int, int] | None = None) -> int:
        """Places that an image takes in the language model, buffer included; grid: None for the model's own."""
        return math.prod(grid or self.grid) + self.buffer_size

    @classmethod
    def from_official(cls, arguments: dict) -> HarmonConfig:
        """From `mar_config`, arguments of the official MAR class, and `llm_config`, those of Qwen2's configuration."""
        llm = arguments["llm_config"]
        return cls(
            **vars(MARConfig.from_official(arguments["mar_config"])),
            vocab_size=llm["vocab_size"],
            llm_width=llm["hidden_size"],
            llm_hidden=llm["intermediate_size"],
            llm_depth=llm["num_hidden_layers"],
            llm_heads=llm["num_attention_heads"],
            llm_kv_heads=llm["num_key_value_heads"],
            rope_base=llm["rope_theta"],
            llm_norm_eps=llm["rms_norm_eps"],
            max_positions=llm["max_position_embeddings"],
            tied=llm["tie_word_embeddings"],
        )


@dataclass(frozen=True)
class Prefix:
    """Prompts that the language model has read together.

    rows: [R] which of the B' they are; lengths: [R] real tokens; width: of the longest; mask: [R or 1, 1, F, width + F]
    of 0 and -inf, what the F tokens that may follow see; cache: keys and values, [R, heads, width, d] in every layer.
    """

    rows: Tensor
    lengths: Tensor
    width: int
    mask: Tensor
    cache: Any


@dataclass
class HarmonState(MARState):
    """One generation under way; the embedding is that of no class, [B, D]."""

    prefixes: list[Prefix] = field(default_factory=list)


class Projection(nn.Module):
    """Two linear layers with a SiLU between them."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x, activation="swish"))


class Harmon(nn.Module):
    """MAR, language model and projections. All methods but the losses are for inference; `HarmonState` holds state."""

    process = CosineDiffusion()

    def __init__(self, config: HarmonConfig) -> None:
        super().__init__()
        self.config = c = config
        self.mar = MAR(c)
        self.llm = _language_model(c)
        self.lm_head = None if c.tied else Linear(c.llm_width, c.vocab_size, bias=False)
        self.proj_in = Projection(c.encoder_width, c.llm_width, c.llm_width)
        self.proj_out = Projection(c.llm_width, c.llm_width, c.encoder_width)

    # -- one generation ------------------------------------------------------------------------------------------

    def check(self, num_ar_steps: int, num_unknown: int | None) -> None:
        """Every AR step draws at least one of the unknown tokens; None if all are. Raises DisaError."""
        self.mar.check(num_ar_steps, num_unknown)

    def begin(self, request: Request, noise: Noise) -> HarmonState:
        """Check the request, plan every AR step, and run the prompts through the language model."""
        request.check_fits("Harmon", "prompts", "token_grid")
        if request.prompts is None:
            raise DisaError("Harmon draws from prompts: found none. Give one prompt per image.")
        planned = self.mar.plan(request, noise, self.mar.no_class.expand(request.batch_size, -1))
        rows = request.batch_size * (2 if request.guidance.active else 1)
        prompts = Prompts(request.prompts.ids[:rows], request.prompts.lengths[:rows])
        self._check_prompts(prompts, planned.tokens.shape[1] + self.config.buffer_size)
        longest = self.config.buffer_size + planned.visible[-1].shape[1]
        return HarmonState(**vars(planned), prefixes=self.read(prompts, longest))

    def pose(self, state: HarmonState) -> DenoisingProblem:
        """The backbone pass: condition vectors of the tokens that this AR step draws."""
        visible, drawn = state.visible[state.ar_step], state.drawn[state.ar_step]
        # Nothing before the language model depends on the prompt, so the encoder sees each image once.
        x = self.continued(self.mar.encode(state.tokens, state.embedding, visible, state.positions), state.prefixes)
        return self.mar.problem(state, self.mar.decode(x, visible, drawn, state.positions))

    def accept(self, state: HarmonState, tokens: Tensor) -> None:
        """tokens: [B N, C] of the problem posed last."""
        self.mar.accept(state, tokens)

    def finish(self, state: HarmonState) -> Tensor:
        """Latents [B, C, H, W]."""
        return self.mar.finish(state)

    def _check_prompts(self, prompts: Prompts, num_following: int) -> None:
        """Ids must be in the vocabulary, and what follows a prompt must have positions left."""
        ids, longest = prompts.ids, int(prompts.lengths.max())
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.config.vocab_size:
            raise DisaError(f"token ids must be 0 to {self.config.vocab_size - 1}, found {ids.min()} to {ids.max()}: "
                            "the prompts were made with another model's tokenizer.")  # fmt: skip
        if longest + num_following > self.config.max_positions:
            room = self.config.max_positions - num_following
            raise DisaError(f"a prompt may have at most {room} tokens here, found {longest}: shorten it.")

    # -- the language model --------------------------------------------------------------------------------------

    def read(self, prompts: Prompts, longest: int) -> list[Prefix]:
        """Keys and values of prompts, padding included: nothing real attends to it. At most `longest` tokens follow.

        On a CPU prompts of equal length go together, so that no key is padding and an image does not depend on its
        batch: masked keys would change the order in which a kernel sums. Elsewhere, and in training, one call reads
        them all.
        """
        device = self.mar.no_class.device
        ids, lengths = prompts.ids.to(device), prompts.lengths.to(device)
        everything = torch.arange(len(ids), device=device)
        apart = [everything[lengths == length] for length in lengths.unique()]
        together = device.type != "cpu" or torch.is_grad_enabled()
        return [self._read(ids, lengths, rows, longest) for rows in ([everything] if together else apart)]

    def _read(self, ids: Tensor, lengths: Tensor, rows: Tensor, longest: int) -> Prefix:
        lengths = lengths[rows]
        shortest, width = (int(end) for end in lengths.aminmax())
        cache = _empty_cache()
        positions = torch.arange(width, device=ids.device)[None]
        x = self.llm.embed_tokens(ids[rows, :width])
        self._run(x, positions, _causal(width, x), cache)
        past = x.new_zeros(1, 1, 1, width)
        if shortest < width:
            past = past.masked_fill((positions >= lengths[:, None])[:, None, None], float("-inf"))
        following = _causal(longest, x).expand(len(past), -1, -1, -1)
        mask = torch.cat([past.expand(-1, -1, longest, -1), following], dim=3)
        return Prefix(rows, lengths, width, mask, cache)

    def continued(self, x: Tensor, prefixes: list[Prefix]) -> Tensor:
        """[B, P + V, D] of the encoder, buffer first -> [B', P + V, D]: with what the language model adds to it.

        The caches are as they were before, of the prompts alone.
        """
        buffer = self.config.buffer_size
        rows = torch.cat([prefix.rows for prefix in prefixes])
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
        grid = self._grid(latents)
        tokens = self.mar.patchify(latents.to(self.mar.no_class.device).float(), grid)
        everything = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        positions = self.mar.positions(grid)
        x = self.mar.encode(tokens, self.mar.no_class.expand(len(tokens), -1), everything, positions)
        return self.proj_in(x).roll(-self.config.buffer_size, 1)

    @torch.no_grad()
    def describe(
        self, latents: Tensor, ids: Tensor, image_token: int,
        choose: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(-1),
        stop_ids: Collection[int] = (), max_tokens: int = 1024,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Token ids [B] of a text about each image, one turn a token.

        latents: [B, C, H, W]; ids: [B, T] or [T] prompts in which `image_token` stands L + P times. choose: logits
        [B, vocabulary] -> ids [B]. It ends when every text has had one of `stop_ids`, which a finished text repeats;
        after `max_tokens`; or where the positions end. Raises DisaError where ids and images do not fit.
        """
        return self._written(self._filled(self.look(latents), ids, image_token), choose, stop_ids, max_tokens)

    @torch.no_grad()
    def answer(
        self, ids: Tensor, choose: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(-1),
        stop_ids: Collection[int] = (), max_tokens: int = 1024,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The same of an answer to each text [B, T], without an image."""
        x = self.llm.embed_tokens(ids.to(self.mar.no_class.device))
        return self._written(x, choose, stop_ids, max_tokens)

    @torch.no_grad()
    def _written(
        self, x: Tensor, choose: Callable[[Tensor], Tensor], stop_ids: Collection[int], max_tokens: int
    ) -> Iterator[Tensor]:
        """Token ids [B] that follow embeddings [B, T, E]."""
        length, cache = x.shape[1], _empty_cache()
        self._check_prompts(Prompts(torch.zeros_like(x[..., 0]).long(), torch.full((len(x),), length)), 1)
        hidden = self._run(x, torch.arange(length, device=x.device)[None], _causal(length, x), cache)
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
            raise DisaError(f"a prompt about these images holds the image token {visual.shape[1]} times, "
                            f"found {counts.tolist()}.")  # fmt: skip
        words = self.llm.embed_tokens(ids.masked_fill(places, 0))
        return words.masked_scatter(places[:, :, None], visual.to(words.dtype))

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        patch = self.config.patch_size
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    # -- training ------------------------------------------------------------------------------------------------

    def loss(
        self, objective: TrainingLoss, latents: Tensor, prompts: Prompts, visible: Tensor, wanted: Tensor,
        t: Tensor, noise: Tensor,
    ) -> LossTerms:  # fmt: skip
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
        return self.mar.decode(self.continued(x, self.read(prompts, x.shape[1])), visible, wanted, positions)

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
        hidden = self._run(x, positions, _causal(length, x), _empty_cache())[:, :-1]
        following = targets[:, 1:].to(x.device)
        learned = following != IGNORED
        return functional.cross_entropy(self.logits(hidden[learned]), following[learned])


# -- Qwen2 ---------------------------------------------------------------------------------------------------------


class Rotary(nn.Module):
    """Cosines and sines of rotary positions [R, T] -> [R, T, head width] each; it has no buffers to be lost or rounded.

    On a CPU they are taken in float64: a vector kernel may round the end of a tensor differently from its body.
    """

    def __init__(self, head_width: int, base: float) -> None:
        super().__init__()
        self.head_width, self.base = head_width, base

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self.head_width, 2, device=x.device).float() / self.head_width
        angles = positions[:, :, None].float() * (1.0 / self.base**exponents)
        angles = torch.cat([angles, angles], dim=-1)
        angles = angles.double() if x.device.type == "cpu" else angles
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _language_model(config: HarmonConfig) -> Any:
    """Qwen2 without its output layer, on our leaves, which do not let a row depend on the number of rows."""
    try:
        from transformers import AttentionInterface, Qwen2Config, Qwen2Model
    except ImportError as error:
        raise DisaError('Harmon needs transformers: pip install "disa[harmon]".') from error
    AttentionInterface.register("disa", _attention)
    arguments: dict[str, Any] = {
        "vocab_size": config.vocab_size, "hidden_size": config.llm_width, "intermediate_size": config.llm_hidden,
        "num_hidden_layers": config.llm_depth, "num_attention_heads": config.llm_heads,
        "num_key_value_heads": config.llm_kv_heads, "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.llm_norm_eps, "hidden_act": "silu", "attn_implementation": "disa",
    }  # fmt: skip
    model: Any = Qwen2Model(Qwen2Config(**arguments))
    model.rotary_emb = Rotary(config.llm_width // config.llm_heads, config.rope_base)
    for layer in model.layers:
        layer.mlp.act_fn = Swish()
    return adopt(model)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """Grouped-query attention as transformers asks for it: [R, heads, T, d] -> [R, T, heads, d]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return attend(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _causal(count: int, like: Tensor) -> Tensor:
    """[1, 1, T, T] of 0 and -inf."""
    return like.new_full((count, count), float("-inf")).triu(1)[None, None]


def _empty_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


# -- official names ------------------------------------------------------------------------------------------------

_LLM_LAYER = (
    *(f"self_attn.{name}_proj.{leaf}" for name in "qkv" for leaf in ("weight", "bias")),
    "self_attn.o_proj.weight",
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
_TABLE, _OUTPUT = "llm.model.embed_tokens.weight", "llm.lm_head.weight"


def official_names(config: HarmonConfig) -> NameMap:
    """Our parameter names and the official ones. A tied table is twice in official files, or once; an autoencoder that
    lies in them is not ours to read here. It does without transformers."""
    parts = {
        f"mar.{name}": [Part(f"mar.{part.name}", part.rows) for part in parts]
        for name, parts in mar.official_names(config).parts.items()
    }
    layers = [f"layers.{i}.{leaf}" for i in range(config.llm_depth) for leaf in _LLM_LAYER]
    parts |= {f"llm.{name}": [Part(f"llm.model.{name}")] for name in ("embed_tokens.weight", *layers, "norm.weight")}
    parts |= {} if config.tied else {"lm_head.weight": [Part(_OUTPUT)]}
    for name in ("proj_in", "proj_out"):
        for ours, theirs in (("fc1", "0"), ("fc2", "2")):
            parts |= {f"{name}.{ours}.{leaf}": [Part(f"{name}.{theirs}.{leaf}")] for leaf in ("weight", "bias")}
    return NameMap(
        parts,
        ignored=lambda name: name.startswith("vae.") or name.endswith(".inv_freq"),
        copies={_OUTPUT: _TABLE} if config.tied else {},
    )
