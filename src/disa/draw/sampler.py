"""`Sampler.load(...).sample(...)`: images from a model by name, whatever it is made of.

Shapes: N images of a call, B of a batch, L tokens per image, C latent channels, H x W latents, K AR steps.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import operator
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from disa.core import steps
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import ARStep
from disa.core.request import Guidance, Prompts, Request
from disa.core.solver import Solver
from disa.core.solvers import WITH_TEMPERATURE, grid_for, make_solver
from disa.core.steps import StepPolicy
from disa.draw.samples import Samples, TraceStep, check_output_type, convert
from disa.errors import DisaError
from disa.models.harmon.model import Harmon
from disa.models.harmon.text import DESCRIBE, Text, penalised, sampled
from disa.models.layers import initialise
from disa.models.registry import PRESETS, Model, Preset, find_preset
from disa.policies import adaptive
from disa.runtime import clock, packing
from disa.runtime.devices import pick_device, pick_dtype
from disa.weights import checkpoints

T = TypeVar("T")


class Codec(Protocol):
    """Images to latents and back. images: [N, channels, height, width] in [-1, 1]."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class PixelCodec:
    """For models whose tokens are patches of pixels."""

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@dataclass(frozen=True)
class Settings:
    """How to draw; `Sampler.settings` fills in the preset's choices. token_grid: None for the architecture's own.
    rewrite: whether prompts are rewritten before they are drawn."""

    policy: StepPolicy
    solver: Solver
    guidance: Guidance
    num_ar_steps: int
    batch_size: int
    token_grid: tuple[int, int] | None = None
    rewrite: bool = False

    def num_turns(self, num_images: int) -> int:
        """AR steps of all batches that so many images make."""
        return -(-num_images // self.batch_size) * self.num_ar_steps


class Sampler:
    """A model with its autoencoder, ready to draw."""

    def __init__(
        self, preset: Preset, model: Model, codec: Codec | Path | None = None,
        device: str | torch.device | None = None, dtype: str = "fp32", tokenizer: Text | Path | str | None = None,
    ) -> None:  # fmt: skip
        self.preset, self.dtype, self.device = preset, dtype, pick_device(device)
        if preset.codec is None and isinstance(codec, Path):
            raise DisaError(f"{preset.name} has no autoencoder, its tokens are pixels: leave {codec} out.")
        self._codec, self._text = codec, tokenizer
        model = model.to(self.device, pick_dtype(dtype)).requires_grad_(False).eval()
        packing.prepare(model, self.device, pick_dtype(dtype))
        self.model = model

    @classmethod
    def load(
        cls, name: str | Path, checkpoint: str | Path | None = None, vae: str | Path | None = None,
        device: str | torch.device | None = None, dtype: str = "fp32", tokenizer: Text | Path | str | None = None,
    ) -> Sampler:  # fmt: skip
        """Load a preset by name, a folder that disa wrote, or a hub repository in that layout.

        checkpoint: a file with weights for the preset (official or ours); without one, embedded weights or the hub's.
        vae: `kl16.ckpt` or its other forms; read when the first image is decoded. device: cuda, mps or cpu; the best
        there is if None. dtype: `fp32` or `bf16`. tokenizer: a folder or a hub id, for models that draw from prompts;
        the folder's or the preset's if None; read with the first prompt. Raises DisaError.
        """
        name, vae_path = str(name), None if vae is None else Path(vae)
        # Weights can be large: what is quick to find comes first.
        pick_device(device)
        pick_dtype(dtype)
        if name in PRESETS:
            preset = PRESETS[name]
            model = checkpoints.load_model(preset, None if checkpoint is None else Path(checkpoint))
            return cls(preset, model, vae_path, device, dtype, tokenizer)
        if checkpoint is not None:
            raise DisaError(f"a checkpoint needs the name of its model, one of {', '.join(PRESETS)}; found {name!r}.")
        folder = Path(name)
        if not folder.is_dir():
            if name.count("/") != 1 or name.startswith((".", "/", "~")):
                find_preset(name)
            folder = checkpoints.download_folder(name)
        preset, model, codec = checkpoints.load_folder(folder)
        inside = folder / checkpoints.TOKENIZER
        return cls(preset, model, vae_path or codec, device, dtype, tokenizer or (inside if inside.is_dir() else None))

    from_pretrained = load

    @classmethod
    def untrained(
        cls, name: str, seed: int = 0, device: str | None = None, dtype: str = "fp32", tokenizer: Text | None = None
    ) -> Sampler:
        """The preset's architecture with random weights: for measuring speed without a checkpoint."""
        preset = find_preset(name)
        pick_device(device)
        pick_dtype(dtype)
        model = preset.build()
        initialise(model, seed)
        return cls(preset, model, PixelCodec(), device, dtype, tokenizer)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `config.json` and `model.safetensors`; beside them autoencoder and tokenizer if given or used."""
        path = checkpoints.save_model(Path(folder), self.preset, self.model.state_dict())
        codec = self.codec if isinstance(self._codec, Path) else self._codec
        if isinstance(codec, checkpoints.LatentCodec):
            checkpoints.save_codec(path / checkpoints.CODEC, codec)
        if self._text is not None:
            self.text.save(path / checkpoints.TOKENIZER)
        return path

    @property
    def codec(self) -> Codec:
        """The autoencoder, read at first use: drawing latents does not need it."""
        if self.preset.codec is None:
            self._codec = self._codec or PixelCodec()
        elif self._codec is None or isinstance(self._codec, Path):
            codec = checkpoints.load_codec(self.preset, self._codec)
            self._codec = codec.to(self.device, pick_dtype(self.dtype))
        assert self._codec is not None
        assert not isinstance(self._codec, Path)
        return self._codec

    @property
    def text(self) -> Text:
        """The tokenizer, read at first use."""
        if not isinstance(self.model, Harmon):
            raise DisaError(f"{self.preset.name} takes labels, not prompts: it has no tokenizer.")
        if not isinstance(self._text, Text):
            config = self.model.config
            source = self._text or checkpoints.tokenizer_source(self.preset)
            self._text = Text.load(source, config.vocab_size, config.max_positions)
        return self._text

    def prepare(self) -> None:
        """Read the autoencoder now, so that a missing one is found before drawing."""
        _ = self.codec

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image, if not asked otherwise."""
        return self._image_shape(self.preset.token_grid)

    def shape_of(self, settings: Settings) -> tuple[int, int, int]:
        """The same of an image that is drawn with these settings."""
        return self._image_shape(settings.token_grid)

    def _image_shape(self, token_grid: tuple[int, int] | None) -> tuple[int, int, int]:
        codec, (height, width) = self.preset.codec, self._latent_size(token_grid)
        channels = self.model.config.latent_channels if codec is None else codec.in_channels
        return channels, height * self._stride, width * self._stride

    @property
    def _stride(self) -> int:
        """Pixels of an image along one side of a latent."""
        return 1 if self.preset.codec is None else self.preset.codec.stride

    @property
    def _patch(self) -> int:
        return getattr(self.model.config, "patch_size", 1)

    def _latent_size(self, token_grid: tuple[int, int] | None) -> tuple[int, int]:
        if token_grid is None:
            return self.model.config.latent_size
        return token_grid[0] * self._patch, token_grid[1] * self._patch

    def _token_grid(self, height: int | None, width: int | None) -> tuple[int, int] | None:
        """Rows and columns of tokens of an image of so many pixels; None for the architecture's own."""
        if height is None and width is None:
            return self.preset.token_grid
        _, own_height, own_width = self.image_shape
        size = own_height if height is None else height, own_width if width is None else width
        side = self._stride * self._patch
        if not self.preset.any_size and size != (own_height, own_width):
            only, found = f"{own_height}x{own_width}", f"{size[0]}x{size[1]}"
            raise DisaError(f"{self.preset.name} draws images of {only} only, found {found}.")
        if min(size) < 1 or size[0] % side or size[1] % side:
            raise DisaError(f"height and width must be multiples of {side}, found {size[0]}x{size[1]}.")
        return (size[0] // side, size[1] // side) if self.preset.any_size else None

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens, each of which can be kept or drawn again. Raises DisaError where none can."""
        self.model.capabilities.check_keeps_tokens()
        height, width = self._latent_size(self.preset.token_grid)
        return height // self._patch, width // self._patch

    def settings(
        self, policy: str | StepPolicy | None = None, solver: str | None = None, grid: str | None = None,
        guidance: float | None = None, ramp: str | None = None, temperature: float | None = None,
        num_ar_steps: int | None = None, batch_size: int | None = None,
        interval: tuple[float, float] | None = None, height: int | None = None, width: int | None = None,
        rewrite: bool | None = None, eta: float | None = None,
    ) -> Settings:  # fmt: skip
        """The preset's choices, except for those that are given; everything that can be wrong is found here."""
        preset = self.preset
        policy = preset.steps if policy is None else policy
        policy = self._policy(policy)
        name = preset.solver if solver is None else solver
        chosen = make_solver(
            name,
            preset.grid if grid is None and name == preset.solver else grid,
            temperature if temperature is not None else preset.temperature if name in WITH_TEMPERATURE else 1.0,
            eta,
        )
        size = num_ar_steps if num_ar_steps is not None else preset.num_ar_steps
        token_grid = self._token_grid(height, width)
        self.model.capabilities.check_ar_steps(size, None if token_grid is None else math.prod(token_grid))
        if batch_size is not None and batch_size < 1:
            raise DisaError(f"the batch size must be 1 or more, found {batch_size}.")
        given = {"scale": guidance, "ramp": ramp, "interval": interval}
        chosen_guidance = replace(
            preset.guidance, **{name: value for name, value in given.items() if value is not None}
        )
        if rewrite and not preset.prompts:
            raise DisaError(f"{preset.name} draws from labels: there are no prompts to rewrite.")
        settings = Settings(
            policy, chosen, chosen_guidance, size, batch_size or preset.batch_size, token_grid,
            preset.rewrite if rewrite is None else rewrite,
        )  # fmt: skip
        return self.with_policy(settings, policy)

    def with_policy(self, settings: Settings, policy: str | StepPolicy) -> Settings:
        """The same settings with another step policy; every count of a schedule must fit the grid."""
        chosen = self._policy(policy)
        counts = chosen.counts(settings.num_ar_steps) if isinstance(chosen, steps.Schedule) else [1]
        for count in set(counts):
            grid_for(settings.solver, self.model.process, count)
        if isinstance(chosen, adaptive.Adaptive):
            chosen = chosen.fitted_to(settings.solver, self.model.process)
        if isinstance(chosen, steps.Table | adaptive.Adaptive) and chosen.measured_for:
            self._warn_of_others(chosen, settings)
        return replace(settings, policy=chosen)

    def _policy(self, policy: str | StepPolicy) -> StepPolicy:
        """A policy by its text, adaptive ones with what was fitted for this model."""
        if not isinstance(policy, str):
            return policy
        if adaptive.names(policy):
            return adaptive.parse(policy, self.preset, lambda: self.weights_hash)
        return steps.parse(policy)

    def facts(self, settings: Settings) -> dict[str, Any]:
        """What a calibrated table is measured for; another number of AR steps is not told here, it shows."""
        guidance, grid = settings.guidance, settings.token_grid
        return {
            "model": self.preset.name, "weights": self.weights_hash, "solver": str(settings.solver),
            "guidance": guidance.scale, "ramp": guidance.ramp, "interval": list(guidance.interval),
            "token_grid": None if grid is None else list(grid), "rewrite": settings.rewrite,
        }  # fmt: skip

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the weights as bfloat16, so that it is the same in fp32 and in bf16."""
        found = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            found.update(name.encode())
            found.update(value.detach().cpu().to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def _warn_of_others(self, table: steps.Table | adaptive.Adaptive, settings: Settings) -> None:
        facts = self.facts(settings)
        others = [
            f"{name} {str(table.measured_for[name])[:48]} (here {str(here)[:48]})"
            for name, here in facts.items()
            if table.measured_for.get(name, here) != here
        ]
        if others:
            warnings.warn(f"{table} was measured for {', '.join(others)}: its counts may not fit", stacklevel=3)

    def sample(
        self, labels: int | Sequence[int] | None = None, seeds: int | Sequence[int] = 0, *,
        steps: str | StepPolicy | None = None, solver: str | None = None, grid: str | None = None,
        guidance: float | None = None, ramp: str | None = None, temperature: float | None = None,
        num_ar_steps: int | None = None, batch_size: int | None = None, interval: tuple[float, float] | None = None,
        known: Tensor | None = None, mask: Tensor | None = None, output_type: str = "pt",
        prompts: str | Sequence[str] | None = None, negative_prompt: str | None = None,
        height: int | None = None, width: int | None = None, rewrite: bool | None = None, eta: float | None = None,
    ) -> Samples:  # fmt: skip
        """Draw images; labels or prompts and seeds are paired one to one, a single one is repeated.

        labels: class indices, or None for unconditional images. prompts: for models that draw from them, with a
        negative prompt that guidance leads away from. rewrite: draw what `rewrite` makes of the prompts, unless
        known latents are kept; the preset says so if None. height, width: of the images, in pixels.
        steps: a policy or its text (`linear:50-5`). eta: of ddim, 0 to 1, how much noise it adds: none, or as much
        as ddpm. interval: the times (low, high) within 0 (data) and 1 (noise) where guidance acts. known:
        latents [N or 1, C, H, W] to keep, and mask: [N or 1, h, w] booleans over tokens, True where to draw: for
        inpainting and editing (`encode` makes latents). output_type: `pt`, `np`, `pil` or `latent`. Raises DisaError.
        """
        check_output_type(output_type)
        settings = self.settings(
            steps, solver, grid, guidance, ramp, temperature, num_ar_steps, batch_size, interval, height, width,
            rewrite, eta,
        )  # fmt: skip
        run = self.start(labels, seeds, settings, known, mask, prompts, negative_prompt)
        if output_type != "latent":
            self.prepare()
        for _ in run:
            pass
        return run.result(output_type)

    def start(
        self, labels: int | Sequence[int] | None, seeds: int | Sequence[int], settings: Settings,
        known: Tensor | None = None, mask: Tensor | None = None,
        prompts: str | Sequence[str] | None = None, negative_prompt: str | None = None,
    ) -> Run:  # fmt: skip
        """The same as an iterator: every turn is one `ARStep` of one batch; then `run.result()`."""
        if (prompts is not None) != self.preset.prompts or (prompts is not None and labels is not None):
            wanted, other = ("prompts", "labels") if self.preset.prompts else ("labels", "prompts")
            raise DisaError(f"{self.preset.name} draws from {wanted}: give {wanted}, and no {other}.")
        if prompts is None and negative_prompt is not None:
            raise DisaError(f"{self.preset.name} draws from labels: leave the negative prompt out.")
        if prompts is None:
            return Run(self, *pair(labels, seeds), settings, known, mask)
        texts, many_seeds = pair_prompts(prompts, seeds)
        return Run(self, None, many_seeds, settings, known, mask, texts, negative_prompt)

    def describe(
        self, images: Tensor, prompt: str = DESCRIBE, *, temperature: float | None = None,
        seeds: int | Sequence[int] = 0, max_tokens: int = 1024, repetition_penalty: float = 1.0,
    ) -> list[str]:  # fmt: skip
        """A text about each image: images [N, channels, height, width] in [0, 1], sides multiples of a token's.

        temperature: None takes the likeliest token every time; above 0 tokens are drawn, by each image's seed.
        repetition_penalty: above 1 makes tokens that a text already has less likely.
        Officially images are padded to a square with gray (127) and resized to 512x512. Raises DisaError.
        """
        turns = list(self.describe_steps(
            images, prompt, temperature=temperature, seeds=seeds, max_tokens=max_tokens,
            repetition_penalty=repetition_penalty,
        ))  # fmt: skip
        return [self.text.decode(ids) for ids in torch.stack(turns, dim=1).tolist()]

    def describe_steps(
        self, images: Tensor, prompt: str = DESCRIBE, *, temperature: float | None = None,
        seeds: int | Sequence[int] = 0, max_tokens: int = 1024, repetition_penalty: float = 1.0,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The same as an iterator: every turn is one token id per image [N]; `text.decode` makes words of them."""
        text, model = self.text, self.model
        assert isinstance(model, Harmon)
        if max_tokens < 1:
            raise DisaError(f"a text has at least one token, found max_tokens={max_tokens}.")
        grid = self._token_grid(*images.shape[-2:])
        ids = torch.tensor(text.to_describe(prompt, model.config.num_image_tokens(grid)))
        _, many_seeds = pair([0] * len(images), seeds)
        choose = penalised(_choice(temperature, many_seeds), repetition_penalty)
        return model.describe(self.encode(images), ids, text.image_token, choose, text.stop_ids, max_tokens)

    def rewrite(
        self, prompts: str | Sequence[str], seeds: int | Sequence[int] = 0, *, temperature: float | None = 1.0,
        max_tokens: int = 256,
    ) -> list[str]:  # fmt: skip
        """What the language model makes of prompts when it is asked to say more: prompt upsampling, as Betker et al.
        2023 have it done by another model. What a prompt leaves open is decided before the first token is drawn.

        Prompts and seeds are paired as `sample` pairs them, and a rewritten prompt follows from its own two alone.
        temperature: None takes the likeliest token every time. The published weights of Harmon were not trained for
        this; harmon-shapes was. A prompt of which nothing usable is made stays as it is. Raises DisaError.
        """
        text, model = self.text, self.model
        assert isinstance(model, Harmon)
        texts, many_seeds = pair_prompts(prompts, seeds)
        asked = [text.to_rewrite(prompt) for prompt in texts]
        for length in {len(ids) for ids in asked}:
            rows = [i for i, ids in enumerate(asked) if len(ids) == length]
            choose = _choice(temperature, [many_seeds[i] for i in rows])
            ids = torch.tensor([asked[i] for i in rows])
            turns = list(model.answer(ids, choose, text.stop_ids, max_tokens))
            for i, answer in zip(rows, torch.stack(turns, dim=1).tolist(), strict=True):
                texts[i] = text.usable(answer) or texts[i]
        return texts

    def encode(self, images: Tensor) -> Tensor:
        """images [N, channels, height, width] in [0, 1] -> latents [N, C, H, W]."""
        return self.codec.encode(images.to(self.device) * 2 - 1)

    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """latents [N, C, H, W] -> images [N, channels, height, width] in [0, 1]."""
        parts = [self.codec.decode(part) for part in latents.split(batch_size)]
        return (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1)


class Run:
    """One call of `sample` under way: an iterator over AR steps, batch after batch. Mistakes are found at its start."""

    def __init__(
        self, sampler: Sampler, labels: list[int] | None, seeds: list[int], settings: Settings,
        known: Tensor | None, mask: Tensor | None,
        prompts: list[str] | None = None, negative_prompt: str | None = None,
    ) -> None:  # fmt: skip
        sampler.model.capabilities.check_labels(labels or ())
        SeededNoise(seeds)
        self.sampler, self.labels, self.seeds, self.settings = sampler, labels, seeds, settings
        self.prompts, self.negative_prompt = prompts, negative_prompt
        # What is kept has decided what a rewritten prompt would decide.
        self.rewritten = list(prompts) if prompts and settings.rewrite and known is None else None
        self._asked = self._tokenised(prompts, negative_prompt)
        self.known, self.mask = _per_image(sampler, known, mask, len(seeds), settings.token_grid)
        self.batches = self._plan()
        self.turns_made = 0
        self.latents = torch.empty(0)
        self.seconds = 0.0
        self.trace = [TraceStep(k, 0, 0.0, 0, 0.0, 0.0) for k in range(settings.num_ar_steps)]
        self._turns = (step for batch in self.batches for step in self._batch(batch))

    @property
    def num_turns(self) -> int:
        return len(self.batches) * self.settings.num_ar_steps

    def __iter__(self) -> Iterator[ARStep]:
        return self

    def __next__(self) -> ARStep:
        started = time.perf_counter()
        step = next(self._turns)
        self.seconds += time.perf_counter() - started
        self.turns_made += 1
        return step

    def _tokenised(self, prompts: list[str] | None, negative: str | None) -> tuple[list[list[int]], list[int]] | None:
        """Token ids of every prompt, and of the one that guidance leads away from."""
        if prompts is None:
            return None
        text, count = self.sampler.text, self._num_image_tokens
        return [text.to_draw(prompt, count) for prompt in prompts], text.unconditional(negative, count)

    @property
    def _num_image_tokens(self) -> int:
        model = self.sampler.model
        assert isinstance(model, Harmon)
        return model.config.num_image_tokens(self.settings.token_grid)

    def _rewrite(self, batch: list[int]) -> None:
        """Rewrite the prompts of a batch, and draw them so."""
        if self.rewritten is None or self._asked is None:
            return
        texts = self.sampler.rewrite([self.rewritten[i] for i in batch], [self.seeds[i] for i in batch])
        for i, words in zip(batch, texts, strict=True):
            self.rewritten[i] = words
            self._asked[0][i] = self.sampler.text.to_draw(words, self._num_image_tokens)

    def _plan(self) -> list[list[int]]:
        """Image indices of each batch: images of one batch must have equally many tokens to draw."""
        groups: dict[int, list[int]] = {}
        for i in range(len(self.seeds)):
            groups.setdefault(-1 if self.mask is None else int(self.mask[i].sum()), []).append(i)
        for count in groups:
            if count == 0:
                raise DisaError("a mask leaves no token to draw: it must be true where tokens are drawn.")
            grid = self.settings.token_grid
            everything = None if grid is None else math.prod(grid)
            self.sampler.model.capabilities.check_ar_steps(
                self.settings.num_ar_steps, everything if count < 0 else count
            )
        size = self.settings.batch_size
        return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]

    def _batch(self, batch: list[int]) -> Iterator[ARStep]:
        sampler, settings = self.sampler, self.settings
        labels = None if self.labels is None else torch.tensor([self.labels[i] for i in batch])
        known, mask = (None if value is None else value[batch] for value in (self.known, self.mask))
        prompts = None
        self._rewrite(batch)
        if self._asked is not None:
            asked, empty = self._asked
            guided = [empty] * len(batch) if settings.guidance.active else []
            prompts = Prompts.of([*(asked[i] for i in batch), *guided])
        request = Request(
            len(batch), settings.num_ar_steps, labels, settings.guidance, known, mask, prompts, settings.token_grid
        )
        noise = SeededNoise([self.seeds[i] for i in batch], sampler.device)
        for step in generate_steps(sampler.model, request, settings.policy, settings.solver, noise, clock.now):
            self._record(step)
            if step.ar_step == settings.num_ar_steps - 1:
                self._keep(batch, sampler.model.finish(step.state))
            yield step

    def _keep(self, batch: list[int], latents: Tensor) -> None:
        if not torch.isfinite(latents).all():
            raise DisaError("the model drew values that are not finite numbers: are these the right weights?")
        if not len(self.latents):
            self.latents = torch.empty(len(self.seeds), *latents.shape[1:])
        self.latents[batch] = latents.float().cpu()

    def _record(self, step: ARStep) -> None:
        old, rows = self.trace[step.ar_step], step.problem.num_rows
        asked = float(step.steps) if isinstance(step.steps, int) else step.steps.cpu().double().mean().item()
        self.trace[step.ar_step] = replace(
            old,
            rows=old.rows + rows,
            steps=(old.steps * old.rows + asked * rows) / (old.rows + rows),
            evaluations=old.evaluations + step.evaluations,
            seconds_backbone=old.seconds_backbone + step.seconds_backbone,
            seconds_head=old.seconds_head + step.seconds_head,
        )

    def result(self, output_type: str = "pt") -> Samples:
        """Decode what was drawn, once every turn is made."""
        check_output_type(output_type)
        if self.turns_made < self.num_turns:
            raise DisaError(f"only {self.turns_made} of {self.num_turns} turns are made: iterate to the end first.")
        started = time.perf_counter()
        images = None if output_type == "latent" else self.sampler.decode(self.latents).cpu()
        decode = time.perf_counter() - started
        evaluations, rows = (sum(getattr(s, name) for s in self.trace) for name in ("evaluations", "rows"))
        return Samples(
            images=convert(images, output_type), latents=self.latents, labels=self.labels, seeds=self.seeds,
            evaluations=evaluations, evaluations_per_row=evaluations / rows,
            seconds=self.seconds + decode,
            seconds_backbone=sum(s.seconds_backbone for s in self.trace),
            seconds_head=sum(s.seconds_head for s in self.trace),
            seconds_decode=decode, trace=self.trace, settings=self._about(), prompts=self.prompts,
            rewritten=self.rewritten,
        )  # fmt: skip

    def _about(self) -> dict[str, Any]:
        sampler, settings = self.sampler, self.settings
        return {
            "model": sampler.preset.name, "steps": str(settings.policy), "solver": str(settings.solver),
            "guidance": settings.guidance.scale, "ramp": settings.guidance.ramp,
            "num_ar_steps": settings.num_ar_steps, "batch_size": settings.batch_size,
            "device": str(sampler.device), "dtype": sampler.dtype, "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **({} if settings.token_grid is None else {"token_grid": list(settings.token_grid)}),
            **({} if self.rewritten is None else {"rewrite": True}),
            **({} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt}),
        }  # fmt: skip


def pair(labels: int | Sequence[int] | None, seeds: int | Sequence[int]) -> tuple[list[int] | None, list[int]]:
    """Labels and seeds of equal length; a single one of either is repeated."""
    many_seeds = _whole_numbers(seeds, "seeds")
    if labels is None:
        if not many_seeds:
            raise DisaError("nothing to draw: give at least one seed.")
        return None, many_seeds
    return _paired(_whole_numbers(labels, "labels"), many_seeds, "label")


def pair_prompts(prompts: str | Sequence[str], seeds: int | Sequence[int]) -> tuple[list[str], list[int]]:
    """The same with prompts."""
    many = [prompts] if isinstance(prompts, str) else list(prompts)
    wrong = [prompt for prompt in many if not isinstance(prompt, str)]
    if wrong:
        raise DisaError(f"prompts must be texts, found {wrong[0]!r}.")
    return _paired(many, _whole_numbers(seeds, "seeds"), "prompt")


def _paired(values: list[T], seeds: list[int], what: str) -> tuple[list[T], list[int]]:
    if not values or not seeds:
        raise DisaError(f"nothing to draw: give at least one {what} and one seed.")
    count = max(len(values), len(seeds))
    if {len(values), len(seeds)} - {1, count}:
        raise DisaError(
            f"{what}s and seeds are paired one to one, but there are {len(values)} and {len(seeds)}: "
            "give as many of both, or a single one of either."
        )
    return values * (count // len(values)), seeds * (count // len(seeds))


def _whole_numbers(values: Any, what: str) -> list[int]:
    """One or many, of Python, NumPy or PyTorch."""
    with contextlib.suppress(TypeError):
        return [operator.index(values)]
    try:
        return [operator.index(value) for value in values]
    except TypeError as error:
        raise DisaError(f"{what} must be whole numbers, found {values!r}.") from error


def _choice(temperature: float | None, seeds: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """How the next token of each text is chosen; None for the likeliest."""
    return (lambda logits: logits.argmax(-1)) if temperature is None else sampled(seeds, temperature)


def _per_image(
    sampler: Sampler, known: Tensor | None, mask: Tensor | None, count: int, token_grid: tuple[int, int] | None
) -> tuple[Tensor | None, Tensor | None]:
    """Known latents and masks, one per image."""
    if (known is None) != (mask is None):
        raise DisaError("known latents and a mask of tokens to draw go together: give both or neither.")
    if known is None or mask is None:
        return None, None
    config, own = sampler.model.config, sampler.token_grid
    wanted = {"known": (config.latent_channels, *sampler._latent_size(token_grid)), "mask": token_grid or own}
    for (name, shape), value in zip(wanted.items(), (known, mask), strict=True):
        if len(value) not in (1, count) or tuple(value.shape[1:]) != tuple(shape):
            first = "1" if count == 1 else f"{count} or 1"
            raise DisaError(f"{name} must be ({first}, {', '.join(map(str, shape))}), found {tuple(value.shape)}.")
    return known.expand(count, *known.shape[1:]), mask.bool().expand(count, *mask.shape[1:])
