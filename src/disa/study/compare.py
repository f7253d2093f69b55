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

from disa.core.steps import constant
from disa.draw.sampler import Sampler, Settings, pair, pair_prompts
from disa.draw.samples import Samples, Wanted
from disa.errors import DisaError
from disa.tiny.measures import MEASURES, Measure


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
    """What `compare` returns: one `Policy` per step policy, the images of each in [0, 1], and what real data score.

    measure: what the qualities are by; None where there is none, with the reason, if any, as `unmeasured`.
    """

    policies: list[Policy]
    images: list[Tensor]
    wanted: Wanted
    settings: dict[str, Any]
    yardsticks: Any = None
    measure: Measure | None = None
    unmeasured: str = ""

    def report(self) -> dict[str, Any]:
        """Everything but images, for JSON."""
        return {
            "settings": self.settings,
            "num_images": len(self.wanted.seeds),
            **({} if self.wanted.prompts is None else {"prompts": self.wanted.prompts}),
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
    prompts: str | Sequence[str] | None = None,
    negative_prompt: str | None = None,
) -> Comparison:
    """Draw labels or prompts and seeds under every policy; `settings` says everything else.

    on_turn is called per AR step. Raises DisaError.
    """
    variants = check(sampler, step_policies, labels, seeds, settings, prompts, negative_prompt)
    if prompts is None:
        wanted = Wanted(*pair(labels, seeds))
    else:
        texts, many_seeds = pair_prompts(prompts, seeds)
        wanted = Wanted(None, many_seeds, texts, negative_prompt)
    _warm_up(sampler, settings, wanted)
    parts: dict[str, list[Samples]] = {text: [] for text in step_policies}
    for start in range(0, len(wanted.seeds), settings.batch_size):
        part = wanted.part(slice(start, start + settings.batch_size))
        for text, variant in variants.items():
            run = sampler.start(**vars(part), settings=variant)
            for _ in run:
                on_turn(text)
            parts[text].append(run.result())
    images = [torch.cat([part.images for part in parts[text]]) for text in step_policies]
    measure = MEASURES.get(sampler.preset.defaults.quality)
    unmeasured = measure.refusal(images[0], wanted) if measure else ""
    measured = measure.measure(images, wanted) if measure and not unmeasured else None
    nothing = [None] * len(images)
    first = sum(part.seconds for part in parts[step_policies[0]])
    rows = [
        _policy(text, parts[text], first, quality, difference)
        for text, quality, difference in zip(
            step_policies,
            measured.qualities if measured else nothing,
            measured.differences if measured else nothing,
            strict=True,
        )
    ]
    about = parts[step_policies[0]][0].settings | {"steps": list(step_policies), "batch_size": settings.batch_size}
    return Comparison(
        rows, images, wanted, about, measured and measured.yardsticks, measure if measured else None, unmeasured
    )


def check(
    sampler: Sampler, step_policies: Sequence[str], labels: int | Sequence[int] | None, seeds: int | Sequence[int],
    settings: Settings, prompts: str | Sequence[str] | None = None, negative_prompt: str | None = None,
) -> dict[str, Settings]:  # fmt: skip
    """Find what is wrong before any work is done; the settings of every policy."""
    if len(step_policies) < 2:
        raise DisaError("a comparison needs at least two step policies: give --steps more than once.")
    if len(set(step_policies)) != len(step_policies):
        raise DisaError(f"each step policy can be compared once, found {', '.join(step_policies)}.")
    sampler.start(labels, seeds, settings, prompts=prompts, negative_prompt=negative_prompt)
    sampler.prepare()
    return {text: sampler.with_policy(settings, text) for text in step_policies}


def _warm_up(sampler: Sampler, settings: Settings, wanted: Wanted) -> None:
    """The first calls pay for memory and kernel set-up: two AR steps, and a picture."""
    few = sampler.with_policy(settings, constant(2))
    run = sampler.start(**vars(wanted.part(slice(settings.batch_size))), settings=few)
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
        speedup=first / seconds, counts=_mean_steps(parts),
        quality=quality, difference=difference,
    )  # fmt: skip


def _mean_steps(parts: list[Samples]) -> list[float]:
    """[K] denoising steps of a row: with a policy that looks they differ from batch to batch."""
    turns = list(zip(*(part.trace for part in parts), strict=True))
    return [sum(step.steps * step.rows for step in turn) / sum(step.rows for step in turn) for turn in turns]


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
    asked: dict[str, Any] = {"labels": None, "prompts": "a prompt"} if sampler.preset.prompts else {"labels": 0}
    results: dict[tuple[str, int], list[Samples]] = {}
    for repeat in range(repeats + 1):
        for text, size, variant in cells:
            run = sampler.start(**asked, seeds=list(range(size)), settings=variant)
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
