"""The same seeds under several step policies: time, evaluations, and quality against the first of them.

Batches of all policies alternate, so that a machine whose speed wanders is fair to all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from disa.errors import DisaError
from disa.sampler import Sampler, Settings, pair
from disa.samples import Samples
from disa.steps import constant


@dataclass(frozen=True)
class Policy:
    """One policy's result. speedup: seconds of the first policy divided by its own."""

    steps: str
    evaluations: int
    evaluations_per_row: float
    seconds: float
    seconds_backbone: float
    seconds_head: float
    speedup: float
    counts: list[float]
    quality: Any = None
    difference: Any = None

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns: one `Policy` per step policy, the images of each in [0, 1], and what real data score."""

    policies: list[Policy]
    images: list[Tensor]
    labels: list[int] | None
    seeds: list[int]
    settings: dict[str, Any]
    yardsticks: Any = None

    def report(self) -> dict[str, Any]:
        """Everything but images, for JSON."""
        return {
            "settings": self.settings,
            "num_images": len(self.seeds),
            "policies": [policy.row() for policy in self.policies],
            "yardsticks": None if self.yardsticks is None else asdict(self.yardsticks),
        }


def compare(
    sampler: Sampler,
    step_policies: Sequence[str],
    labels: int | Sequence[int] | None,
    seeds: int | Sequence[int],
    settings: Settings,
    on_turn: Callable[[str], None] = lambda policy: None,
) -> Comparison:
    """Draw labels and seeds under every policy; `settings` says everything else. on_turn is called per AR step."""
    variants = check(sampler, step_policies, labels, seeds, settings)
    wanted_labels, wanted_seeds = pair(labels, seeds)
    _warm_up(sampler, settings, wanted_labels)
    parts: dict[str, list[Samples]] = {text: [] for text in step_policies}
    for start in range(0, len(wanted_seeds), settings.batch_size):
        chosen = slice(start, start + settings.batch_size)
        for text, variant in variants.items():
            run = sampler.start(wanted_labels and wanted_labels[chosen], wanted_seeds[chosen], variant)
            for _ in run:
                on_turn(text)
            parts[text].append(run.result())
    images = [torch.cat([part.images for part in parts[text]]) for text in step_policies]
    qualities, differences, real = _measure(sampler, images, wanted_labels)
    first = sum(part.seconds for part in parts[step_policies[0]])
    rows = [
        _policy(text, parts[text], first, quality, difference)
        for text, quality, difference in zip(step_policies, qualities, differences, strict=True)
    ]
    about = parts[step_policies[0]][0].settings | {"steps": list(step_policies), "batch_size": settings.batch_size}
    return Comparison(rows, images, wanted_labels, wanted_seeds, about, real)


def check(
    sampler: Sampler, step_policies: Sequence[str], labels: int | Sequence[int] | None, seeds: int | Sequence[int],
    settings: Settings,
) -> dict[str, Settings]:  # fmt: skip
    """Find what is wrong before any work is done; the settings of every policy."""
    if len(step_policies) < 2:
        raise DisaError("a comparison needs at least two step policies: give --steps more than once.")
    if len(set(step_policies)) != len(step_policies):
        raise DisaError(f"each step policy can be compared once, found {', '.join(step_policies)}.")
    sampler.start(labels, seeds, settings)
    sampler.prepare()
    return {text: sampler.with_policy(settings, text) for text in step_policies}


def _warm_up(sampler: Sampler, settings: Settings, labels: list[int] | None) -> None:
    """The first calls pay for memory and kernel set-up: two AR steps, and a picture."""
    few = sampler.with_policy(settings, constant(2))
    run = sampler.start(labels and labels[0], list(range(settings.batch_size)), few)
    for _ in zip(range(2), run, strict=False):
        pass
    config = sampler.model.config
    sampler.decode(torch.zeros(1, config.latent_channels, *config.latent_size))


def _policy(text: str, parts: list[Samples], first: float, quality: Any, difference: Any) -> Policy:
    seconds, evaluations = sum(part.seconds for part in parts), sum(part.evaluations for part in parts)
    rows = sum(step.rows for part in parts for step in part.trace)
    return Policy(
        steps=text, evaluations=evaluations, evaluations_per_row=evaluations / rows, seconds=seconds,
        seconds_backbone=sum(part.seconds_backbone for part in parts),
        seconds_head=sum(part.seconds_head for part in parts),
        speedup=first / seconds, counts=[step.steps for step in parts[0].trace],
        quality=quality, difference=difference,
    )  # fmt: skip


def _measure(sampler: Sampler, images: list[Tensor], labels: list[int] | None) -> tuple[list[Any], list[Any], Any]:
    """Quality per policy, its paired difference from the first, and yardsticks, where the preset has a measure."""
    nothing = [None] * len(images)
    if sampler.preset.quality != "digits" or len(images[0]) < 20:
        return nothing, nothing, None
    from disa.tiny.quality import digit_difference, digit_quality, yardsticks

    scaled = [part * 2 - 1 for part in images]
    wanted = None if labels is None else torch.tensor(labels)
    differences = [None, *(digit_difference(part, scaled[0], wanted) for part in scaled[1:])]
    return [digit_quality(part, wanted) for part in scaled], differences, yardsticks()


@dataclass(frozen=True)
class Timing:
    """One row of `bench`: medians over repeats."""

    steps: str
    batch_size: int
    seconds_per_image: float
    images_per_second: float
    share_head: float
    evaluations_per_row: float


def bench(
    sampler: Sampler, step_policies: Sequence[str], batch_sizes: Sequence[int], settings: Settings, repeats: int = 5,
    on_run: Callable[[], None] = lambda: None,
) -> list[Timing]:  # fmt: skip
    """Seconds per image of every policy and batch size, decoding included; one warm-up, then interleaved repeats."""
    cells = [
        (text, size, replace(sampler.with_policy(settings, text), batch_size=size))
        for size in batch_sizes
        for text in step_policies
    ]
    sampler.prepare()
    results: dict[tuple[str, int], list[Samples]] = {}
    for repeat in range(repeats + 1):
        for text, size, variant in cells:
            run = sampler.start(0, list(range(size)), variant)
            for _ in run:
                pass
            result = run.result()
            if repeat:
                results.setdefault((text, size), []).append(result)
            on_run()
    return [_timing(text, size, samples) for (text, size), samples in results.items()]


def _timing(text: str, size: int, samples: list[Samples]) -> Timing:
    seconds = statistics.median(sample.seconds for sample in samples) / size
    head = statistics.median(sample.seconds_head / sample.seconds for sample in samples)
    return Timing(text, size, seconds, 1 / seconds, head, samples[0].evaluations_per_row)
