"""One call of drawing under way: batches, and the AR steps of each.

Shapes: N images of a call, B of a batch, C latent channels, H x W latents.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.orders import COSINE, RANDOM
from disa.core.problem import ARStep
from disa.core.request import Request
from disa.core.reuse import NONE
from disa.draw.conditioning import Condition
from disa.draw.inputs import Inputs
from disa.draw.loaded import Loaded
from disa.draw.room import check_kept, check_room
from disa.draw.samples import Samples, check_output_type, convert
from disa.draw.settings import Settings
from disa.draw.trace import TraceStep
from disa.errors import DisaError
from disa.runtime import clock, fused
from disa.runtime.surroundings import Turns, undisturbed
from disa.values import counted


@dataclass(frozen=True, eq=False)
class Turn:
    """One AR step of one batch."""

    batch: list[int]
    """[B] places of the images in the inputs."""
    step: ARStep
    noise: SeededNoise
    """All random numbers of the batch."""
    samples: Samples | None = None
    """The finished batch, at its last AR step."""

    def __repr__(self) -> str:
        done = "" if self.samples is None else ", finished"
        return f"Turn({counted(len(self.batch), 'image')}, {self.step}{done})"


class Run:
    """An iterator over turns, batch after batch; `batches` yields what is finished. Nothing is kept of a batch that
    was handed out. Mistakes are found when it is made."""

    @undisturbed()
    def __init__(
        self, loaded: Loaded, inputs: Inputs, settings: Settings, output_type: str = "pt", room: bool = True
    ) -> None:
        """settings: filled in for this model. output_type: `pt`, `np`, `pil`, or `latent`, which decodes nothing. room:
        whether to refuse what does not fit in the memory that is free now."""
        check_output_type(output_type)
        SeededNoise(inputs.seeds)  # refuses what is no seed
        self.loaded, self.inputs, self.settings, self.output_type = loaded, inputs, settings, output_type
        self.token_grid = loaded.token_grid_of(settings.size)
        self._check_known()
        loaded.conditioner.check(inputs, settings, self.token_grid)
        self.batches_of = self._plan()
        if room:
            check_room(loaded, settings, max(map(len, self.batches_of)))
        self.turns_made, self._place, self._broken = 0, (loaded.device, loaded.dtype), False
        # A loop would keep the last turn of a batch, with all that the model holds of it, while the next one begins.
        self._lock = RLock()
        self._turns = Turns(chain.from_iterable(map(self._draw, self.batches_of)), loaded.tf32)

    @property
    def num_turns(self) -> int:
        """AR steps of all batches."""
        return len(self.batches_of) * self.settings.num_ar_steps

    def __iter__(self) -> Iterator[Turn]:
        return self

    def __next__(self) -> Turn:
        with self._lock:  # who waits while a batch breaks off must learn of it
            if self._broken:
                raise DisaError("this run broke off within a batch, which is lost: start another one.")
            if self._place != (self.loaded.device, self.loaded.dtype):
                raise DisaError("the sampler was moved while this run was under way: start another one.")
            try:
                turn = next(self._turns)
            except StopIteration:
                raise
            except BaseException:
                self._broken = True  # the next turn would be one of the next batch
                raise
            self.turns_made += 1
            return turn

    def __repr__(self) -> str:
        batches = counted(len(self.batches_of), "batch", "batches")
        images = counted(len(self.inputs), "image")
        return f"Run({images} in {batches}, {self.turns_made} of {self.num_turns} AR steps drawn)"

    def __reduce_ex__(self, protocol: Any) -> str:
        raise DisaError("a run under way cannot be copied: copy its sampler, inputs and settings, and start another.")

    def batches(self, on_turn: Callable[[], object] = lambda: None) -> Iterator[Samples]:
        """The samples of each batch as it is finished; on_turn is called after every AR step."""
        for samples in map(attrgetter("samples"), self):
            on_turn()
            if samples is not None:
                yield samples
            del samples

    def only(self, places: Sequence[int]) -> Run:
        """The same for some of the images, by their places in the inputs."""
        return Run(self.loaded, self.inputs.part(places), self.settings, self.output_type)

    def result(self, on_turn: Callable[[], object] = lambda: None) -> Samples:
        """Draw to the end: all that was not handed out yet. Raises DisaError."""
        if self.output_type != "latent":
            check_kept(self.loaded, self.settings, len(self.inputs))
        return Samples.join(list(self.batches(on_turn)))

    # -- batches -------------------------------------------------------------------------------------------------

    def _check_known(self) -> None:
        """Known latents and masks must have the sizes of what is drawn; a picture to edit must be one of the model."""
        inputs, loaded, able = self.inputs, self.loaded, self.loaded.model.capabilities
        if inputs.source is not None:
            able.check_edits(self.settings.guidance)
        elif self.settings.guidance.three_way:
            raise DisaError("source_guidance goes with a picture to edit: give one as source, or leave it out.")
        source = inputs.source if able.in_place else None
        if inputs.known is None and source is None:
            return
        able.check_keeps_tokens()
        grid, stride = self.token_grid or loaded.token_grid, loaded.stride
        pixels, latents = (tuple(side * share for side in grid) for share in (stride, loaded.patch))
        pooled = f"Tokens have {stride}x{stride} pixels: torch.nn.functional.max_pool2d(mask.float(), {stride})."
        channels, encoded = loaded.model.config.latent_channels, "`encode` makes latents of images."
        wanted = (
            ("known", inputs.known, (channels, *latents), encoded),
            ("mask", inputs.mask, grid, pooled),
            ("source", source, (channels, *latents), encoded),
        )
        for name, value, shape, hint in wanted:
            found = () if value is None else tuple(value.shape)
            if found and found[1:] != tuple(shape):
                first = "1" if len(inputs) == 1 else f"{len(inputs)} or 1"
                also = f" {hint}" if found[-2:] == pixels else ""
                raise DisaError(f"{name} must be ({first}, {', '.join(map(str, shape))}), found {found}.{also}")

    def _plan(self) -> list[list[int]]:
        """Places of the images of each batch: those of one batch have equally many tokens to draw."""
        mask, capabilities = self.inputs.mask, self.loaded.model.capabilities
        grid, groups = self.token_grid, dict[int, list[int]]()
        counts = None if mask is None else mask.flatten(1).sum(1).expand(len(self.inputs)).tolist()
        for i in range(len(self.inputs)):
            groups.setdefault(-1 if counts is None else counts[i], []).append(i)
        for count in groups:
            if count == 0:
                raise DisaError("a mask leaves no token to draw: it must be true where tokens are drawn.")
            everything = None if grid is None else math.prod(grid)
            capabilities.check_ar_steps(self.settings.num_ar_steps, everything if count < 0 else count)
            if count > 0 and self.settings.counts is not None:
                self.settings.counts.masked(count, self.settings.num_ar_steps)
        size = self.settings.batch_size
        return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]

    def _draw(self, batch: list[int]) -> Iterator[Turn]:
        loaded, settings, inputs = self.loaded, self.settings, self.inputs.part(batch)
        timer = _Timer()
        condition = loaded.conditioner.condition(inputs, settings, self.token_grid)
        noise, trace = SeededNoise(inputs.seeds, loaded.device, fused.normals), list[Callable[[], TraceStep]]()
        request, now = self._request(inputs, condition), clock.clock_of(loaded.device)
        begin = loaded.beginning(settings.graphs)
        for step in generate_steps(loaded.model, request, settings.steps, settings.solver, noise, now, begin):
            trace.append(TraceStep.later(step))
            samples = None
            if step.ar_step == settings.num_ar_steps - 1:
                latents = loaded.model.finish(step.state)
                samples = self._finished(batch, inputs, condition.rewritten, latents, trace, timer)
            turn = Turn(batch, step, noise, samples)
            del step  # what nobody holds may be written over
            with timer.paused():
                yield turn
            del turn

    def _request(self, inputs: Inputs, condition: Condition) -> Request:
        known, mask, source = (
            value if value is None else value.expand(len(inputs), *value.shape[1:])
            for value in (inputs.known, inputs.mask, inputs.source)
        )
        return Request(
            len(inputs),
            self.settings.num_ar_steps,
            condition.labels,
            self.settings.guidance,
            known,
            mask,
            condition.prompts,
            self.token_grid,
            self.settings.order or RANDOM,
            self.settings.counts or COSINE,
            self.settings.reuse or NONE,
            source,
        )

    def _finished(
        self,
        batch: list[int],
        inputs: Inputs,
        rewritten: list[str] | None,
        latents: Tensor,
        trace: list[Callable[[], TraceStep]],
        timer: _Timer,
    ) -> Samples:
        """A batch, decoded."""
        if not torch.isfinite(latents).all():
            raise DisaError("the model drew values that are not finite numbers: are these the right weights?")
        drawing = timer.seconds()
        images = None if self.output_type == "latent" else self.loaded.decode(latents).cpu()
        if images is not None and not torch.isfinite(images).all():
            raise DisaError("decoding gave values that are not finite numbers: is this the right autoencoder?")
        return Samples(
            inputs=inputs,
            places=batch,
            images=convert(images, self.output_type),
            latents=latents.float().cpu(),
            trace=[tell() for tell in trace],
            seconds=timer.seconds(),
            seconds_decode=timer.seconds() - drawing,
            about=self._about_later(),
            rewritten=rewritten,
        )

    def about(self) -> dict[str, Any]:
        """The model, and every option, for JSON."""
        return self._about_later()()

    def _about_later(self) -> Callable[[], dict[str, Any]]:
        loaded, settings = self.loaded.about_later(), self.settings.to_json()
        return lambda: loaded() | settings


class _Timer:
    """Wall time, without what a consumer does between turns. What a GPU still does meanwhile is left out with it."""

    def __init__(self) -> None:
        self._started, self._before = time.perf_counter(), 0.0

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def paused(self) -> _Timer:
        return self

    def __enter__(self) -> None:
        self._before = self.seconds()

    def __exit__(self, *_: object) -> None:
        self._started = time.perf_counter()
