"""Seconds per image of step policies and batch sizes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.samples import Samples
from disa.draw.settings import Settings
from disa.study.compare import policy_text


@dataclass(frozen=True)
class Timing:
    """One row of `bench`: medians over repeats."""

    steps: str
    batch_size: int
    seconds_per_image: float
    images_per_second: float
    share_head: float
    evaluations_per_row: float
    backbone_tokens: float
    """Of an image, see `disa.core.work`."""
    operations: float
    """Of an image, likewise."""

    @classmethod
    def of(cls, steps: str, batch_size: int, repeats: list[Samples]) -> Timing:
        """From repeats of one cell."""
        seconds = statistics.median(samples.seconds for samples in repeats) / batch_size
        work = repeats[0].backbone_tokens / batch_size, repeats[0].operations / batch_size
        head = statistics.median(samples.seconds_head / samples.seconds for samples in repeats)
        return cls(steps, batch_size, seconds, 1 / seconds, head, repeats[0].evaluations_per_row, *work)


def bench(
    sampler: Sampler,
    step_policies: Sequence[Any],
    batch_sizes: Sequence[int],
    settings: Settings,
    repeats: int = 5,
    on_run: Callable[[], object] = lambda: None,
) -> list[Timing]:
    """Seconds per image of every policy and batch size, decoding included; one warm-up, then interleaved repeats.

    step_policies: objects or texts; a timing is named by the text.
    """
    cells = {
        (policy_text(policy), size): sampler.settings(settings, steps=policy, batch_size=size)
        for size in batch_sizes
        for policy in step_policies
    }
    asked = {"prompts": "a prompt"} if sampler.preset.prompts else {"labels": 0}
    results: dict[tuple[str, int], list[Samples]] = {cell: [] for cell in cells}
    for repeat in range(repeats + 1):
        for (text, size), variant in cells.items():
            samples = sampler.start(Inputs.paired(range(size), **asked), variant).result()
            if repeat:
                results[text, size].append(samples)
            on_run()
    return [Timing.of(text, size, samples) for (text, size), samples in results.items()]
