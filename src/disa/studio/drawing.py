"""One drawing under way, AR step by AR step, with what is seen of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from threading import Event

from disa.draw.folder import Layout, about_image, identities, image_file
from disa.draw.inputs import Inputs
from disa.draw.pictures import png, to_image
from disa.draw.preview import can_foresee, drawn_so_far, foreseen
from disa.draw.run import Turn
from disa.draw.sampler import Sampler
from disa.draw.samples import Samples
from disa.draw.settings import Settings, digest
from disa.draw.trace import TraceStep
from disa.studio.machine import Machine
from disa.studio.shown import Spent
from disa.studio.visitors import Picture
from disa.values import shown

LONGEST_CAPTION = 60


class Drawing:
    """A run that is drawn in the machine's thread, a turn at a time."""

    def __init__(
        self,
        machine: Machine,
        sampler: Sampler,
        inputs: Inputs,
        settings: Settings,
        watched: bool = True,
        ahead: bool = False,
    ) -> None:
        """watched: whether pictures are made of what is under way; ahead: and of what it may become.
        Raises DisaError."""
        self.machine, self.sampler, self.watched = machine, sampler, watched
        self.ahead = ahead and can_foresee(sampler)
        self.inputs, self.settings = inputs, settings
        self.run = machine.do(lambda: sampler.start(inputs, settings))
        self.names = [name.rpartition("/")[2] for name in Layout.flat(inputs).names]
        self.contents = list[bytes | None]([None] * len(inputs))
        """Of each image a PNG of what is drawn so far; once it is finished, with everything that it was drawn from."""
        self.foreseen = list[bytes | None]([None] * len(inputs))
        """Of each image under way a PNG of what it may become."""
        self.samples: Samples | None = None
        """All images, once they are finished."""
        self.counts = list[float]()
        """Denoising steps of the AR steps that are done, of the batch under way."""
        self._parts, self._steps, self._seconds = list[Samples](), list[TraceStep](), 0.0

    def turns(self, stopped: Event) -> Iterator[None]:
        """To the end, or until it is to stop: a turn after every AR step."""
        while not stopped.is_set() and self.turn():
            yield

    def turn(self) -> bool:
        """Draw an AR step; false where there is nothing left to draw. Raises DisaError."""
        return self.machine.do(self._turn)

    @property
    def spent(self) -> Spent:
        """What it took so far."""
        seconds, steps = self._seconds, self._steps
        if self.samples is not None:
            seconds = self.samples.seconds
        return Spent(
            seconds,
            sum(step.evaluations for step in steps),
            sum(step.seconds_head for step in steps),
            sum(step.seconds_backbone for step in steps),
            len(steps),
            self.run.num_turns,
        )

    @property
    def captions(self) -> list[str]:
        """Of each image."""
        return captions(self.inputs)

    def pictures(self) -> list[Picture]:
        """What is finished, to be kept."""
        assert self.samples is not None
        latents, model = self.samples.latents, self.sampler.preset.name
        whole = zip(self.names, self.contents, self.captions, latents.split(1), strict=True)
        return [
            Picture(name, content, f"{caption} · {self.settings.steps}", model, each.clone())
            for name, content, caption, each in whole
            if content is not None
        ]

    # -- in the machine's thread ---------------------------------------------------------------------------------

    def _turn(self) -> bool:
        started = time.perf_counter()
        turn = next(self.run, None)
        self._seconds += time.perf_counter() - started
        if turn is None:
            return False
        step = TraceStep.later(turn.step)()
        self.counts = [*([] if step.ar_step == 0 else self.counts), step.steps]
        self._steps.append(step)
        if turn.samples is not None:
            self._keep(turn.samples)
        elif self.watched:
            self._show(turn)
        return True

    def _show(self, turn: Turn) -> None:
        images = drawn_so_far(self.sampler, turn.step.state, slice(None)).cpu()
        for place, each in zip(turn.batch, images, strict=True):
            self.contents[place] = png(to_image(each))
        if self.ahead:
            images = foreseen(self.sampler, turn.step.state, turn.noise).cpu()
            for place, each in zip(turn.batch, images, strict=True):
                self.foreseen[place] = png(to_image(each))

    def _keep(self, samples: Samples) -> None:
        self._parts.append(samples)
        self.foreseen = list[bytes | None]([None] * len(self.inputs))
        if sum(map(len, self._parts)) < len(self.inputs):
            return
        self.samples = Samples.join(self._parts)
        if not self.watched:
            return
        about = self.run.about()
        told = identities(digest(about), self.inputs)
        words = self.samples.rewritten or [None] * len(self.samples)
        for i, each in enumerate(self.samples.images):
            self.contents[i] = image_file(each, about_image(self.inputs, i, told[i], about, words[i]))


def captions(inputs: Inputs) -> list[str]:
    """What each image is of."""
    if inputs.prompts is not None:
        words = [shown(prompt[:LONGEST_CAPTION]).strip("'\"") for prompt in inputs.prompts]
    else:
        words = [""] * len(inputs) if inputs.labels is None else [f"label {label}" for label in inputs.labels]
    return [f"{word}, seed {seed}" if word else f"seed {seed}" for word, seed in zip(words, inputs.seeds, strict=True)]


def in_turn(drawings: Sequence[Drawing], stopped: Event) -> Iterator[None]:
    """Several drawings, an AR step of each in turn, so that a machine whose speed wanders is fair to all of them."""
    left = list(drawings)
    while left and not stopped.is_set():
        for drawing in list(left):
            if stopped.is_set():
                break
            if not drawing.turn():
                left.remove(drawing)
        yield
