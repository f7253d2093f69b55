"""The original and other settings on the same seeds: drawn in turn, shown side by side, and measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from torch import Tensor

from disa.draw.inputs import Inputs
from disa.draw.pictures import png, to_image
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.studio import shown
from disa.studio.drawing import Drawing, captions, in_turn
from disa.studio.machine import Machine
from disa.studio.shown import Spent
from disa.study.certainty import what_can_be_shown
from disa.study.measures import FEWEST_IMAGES, Measured
from disa.tiny.measures import MEASURES
from disa.values import counted

MORE, MOST_MEASURED = 50, 1000


@dataclass(eq=False)
class Compared:
    """What was drawn of a comparison."""

    sampler: Sampler
    inputs: Inputs
    settings: dict[str, Settings]
    """By their titles; the first is the original."""
    drawings: list[Drawing]
    images: list[Tensor] = field(default_factory=list)
    """Of each setting, [N, channels, height, width] in [0, 1]: those that are shown, and all that were drawn more."""
    drawn: Inputs | None = None
    """What all of them were drawn from."""
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def begin(cls, machine: Machine, sampler: Sampler, inputs: Inputs, settings: dict[str, Settings]) -> Compared:
        """Raises DisaError, before anything is drawn."""
        drawings = [Drawing(machine, sampler, inputs, each) for each in settings.values()]
        return cls(sampler, inputs, settings, drawings)

    def draw(self, stopped: Event) -> Iterator[None]:
        """Draw what is shown."""
        yield from in_turn(self.drawings, stopped)
        if not stopped.is_set():
            self._add(self.inputs, self.drawings)

    def draw_more(self, machine: Machine, stopped: Event) -> Iterator[tuple[int, int]]:
        """Draw for the measure alone: a turn of each setting, and how many of them there are."""
        assert self.drawn is not None
        first = max(self.drawn.seeds) + 1
        inputs = self.inputs.with_seeds(range(first, first + MORE))
        drawings = [Drawing(machine, self.sampler, inputs, each, watched=False) for each in self.settings.values()]
        whole = drawings[0].run.num_turns
        for done, _ in enumerate(in_turn(drawings, stopped), 1):
            yield min(done, whole), whole
        if not stopped.is_set():
            self._add(inputs, drawings)

    def _add(self, inputs: Inputs, drawings: Sequence[Drawing]) -> None:
        found = [each.samples for each in drawings if each.samples is not None]
        images = [samples.images for samples in found]
        self.images = [torch.cat(both) for both in zip(self.images, images, strict=True)] if self.images else images
        times = [samples.seconds for samples in found]
        self.seconds = list(map(sum, zip(self.seconds, times, strict=True))) if self.seconds else times
        self.drawn = inputs if self.drawn is None else both_of(self.drawn, inputs)

    # -- what is shown -------------------------------------------------------------------------------------------

    def html(self, told: str = "") -> str:
        """Every setting with its pictures, and what they took. told: to stand below them."""
        cards = "".join(self._card(i, title) for i, title in enumerate(self.settings))
        return f'<div class="cards">{cards}</div>{told}'

    def _card(self, i: int, title: str) -> str:
        drawing, first = self.drawings[i], self.drawings[0]
        finished = drawing.samples is not None and first.samples is not None
        cells = "".join(
            self._cell(i, place, caption) if finished else _under_way(drawing.contents[place], caption)
            for place, caption in enumerate(captions(self.inputs))
        )
        told = "the original" if i == 0 else _faster(drawing.spent, first.spent) if finished else "drawn in turn"
        difference = f", difference {self._difference(i):.3f}" if finished and i else ""
        return (
            f'<section class="card"><h3>{shown.escape(title)}</h3><p>{told}{difference}</p>'
            f'<div class="cells n{min(4, len(self.inputs))}">{cells}</div>{shown.numbers(drawing.spent)}</section>'
        )

    def _cell(self, i: int, place: int, caption: str) -> str:
        own, first = self.drawings[i], self.drawings[0]
        assert own.samples is not None
        assert first.samples is not None
        content = own.contents[place] or b""
        if i == 0:
            return f'<div class="cell">{shown.image(content, caption, "own")}</div>'
        apart = png(to_image((own.samples.images[place] - first.samples.images[place]).abs()))
        layers = [
            shown.image(content, caption, "own"),
            shown.image(first.contents[place] or b"", f"{caption}, the original", "first"),
            shown.image(apart, f"{caption}, difference to the original", "apart"),
        ]
        return f'<div class="cell">{"".join(layers)}</div>'

    def _difference(self, i: int) -> float:
        """Of pixels in [0, 1], the mean."""
        own, first = self.drawings[i].samples, self.drawings[0].samples
        assert own is not None
        assert first is not None
        return (own.images - first.images).abs().mean().item()

    # -- quality -------------------------------------------------------------------------------------------------

    @property
    def measure(self) -> Any:
        """What measures images of this model; None where nothing that ships does."""
        return MEASURES.get(self.sampler.defaults.quality)

    def why_not(self) -> str:
        """Why there is no measured quality yet; empty where there can be."""
        if self.measure is None:
            return (
                f"No measure of quality ships for {self.sampler.preset.name}: `disa evaluate` holds pictures against "
                "real ones."
            )
        if len(self.images[0]) < FEWEST_IMAGES:
            return f"Quality is measured from {FEWEST_IMAGES} pictures on: draw {MORE} more."
        assert self.drawn is not None
        return self.measure.refusal(self.images[0], self.drawn)

    def quality(self) -> str:
        """A table of what was measured, with what it is sure of."""
        assert self.drawn is not None
        measured: Measured = self.measure.measure(self.images, self.drawn)
        headers = ["setting", "times as fast", *self.measure.columns]
        rows = [
            [title, f"{self.seconds[0] / seconds:.2f}", *self.measure.cells(quality, difference)]
            for title, seconds, quality, difference in zip(
                self.settings, self.seconds, measured.qualities, measured.of_family, strict=True
            )
        ]
        differences = [difference for difference in measured.differences if difference is not None]
        note = self.measure.note(measured.qualities[0], measured.yardsticks)
        note += f" {what_can_be_shown(differences, len(self.images[0]))}"
        count = counted(len(self.images[0]), "picture")
        return (
            f'<h3>Measured on {count} of each setting</h3>{shown.table(headers, rows)}<p class="note">'
            f"{shown.escape(note)}</p>"
        )


def both_of(one: Inputs, other: Inputs) -> Inputs:
    """Inputs of one sort, one after the other."""

    def joined(name: str) -> Any:
        values = getattr(one, name)
        return None if values is None else [*values, *getattr(other, name)]

    return Inputs(joined("seeds"), joined("labels"), joined("prompts"), one.negative_prompt)


def _faster(own: Spent, first: Spent) -> str:
    return f"{first.seconds / own.seconds:.1f} times as fast" if own.seconds else ""


def _under_way(content: bytes | None, caption: str) -> str:
    return f'<div class="cell">{shown.image(content, caption, "own") if content else ""}</div>'
