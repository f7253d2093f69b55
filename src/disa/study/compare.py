"""The same inputs under several step policies: time, evaluations, and quality against the first of them.

Batches of all policies alternate, so that a machine whose speed wanders is fair to all of them.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

import torch
from torch import Tensor

from disa.core.steps import constant, describe, of
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.samples import Samples
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.runtime.surroundings import undisturbed
from disa.study.certainty import LEVEL, POWER, Corrected, smallest_seen, what_can_be_shown
from disa.study.measures import Measure, Measured
from disa.study.metrics import Spread
from disa.values import counted, percent


@dataclass(frozen=True)
class PolicyResult:
    """What one step policy took, and how good its images are."""

    steps: str
    evaluations: int
    evaluations_per_row: float
    seconds: float
    seconds_backbone: float
    seconds_head: float
    speedup: float
    """Seconds of the first policy divided by its own."""
    counts: list[float]
    """[K] denoising steps of a row; the mean, where a policy that looks gives each row its own."""
    quality: Any = None
    difference: Any = None
    """To the first policy, on its own; None for itself."""
    corrected: Corrected | None = None
    """The same, as one of as many differences as there are policies but the first."""

    @property
    def corrected_difference(self) -> Spread | None:
        """The difference to the first with the interval that is corrected for the number of comparisons."""
        of_family = self.corrected
        return of_family and replace(self.difference, low=of_family.low, high=of_family.high)

    @classmethod
    def of(
        cls,
        steps: str,
        samples: Samples,
        first: float,
        quality: Any = None,
        difference: Spread | None = None,
        corrected: Corrected | None = None,
    ) -> PolicyResult:
        """first: seconds of the first policy."""
        return cls(
            steps=steps,
            evaluations=samples.evaluations,
            evaluations_per_row=samples.evaluations_per_row,
            seconds=samples.seconds,
            seconds_backbone=samples.seconds_backbone,
            seconds_head=samples.seconds_head,
            speedup=first / samples.seconds,
            counts=[step.steps for step in samples.trace],
            quality=quality,
            difference=difference,
            corrected=corrected,
        )


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns."""

    policies: list[PolicyResult]
    images: list[Tensor]
    """Of each policy, in [0, 1]."""
    inputs: Inputs
    settings: dict[str, Any]
    yardsticks: Any = None
    """What real data score."""
    measure: Measure | None = None
    """What the qualities are by; None where there is none."""
    unmeasured: str = ""
    """Why nothing was measured, if there is a reason."""
    headline: Spread | None = None
    """What the first policy scores."""

    @property
    def differences(self) -> list[Spread]:
        """Of every policy to the first, where there is a measure: the family that is corrected for."""
        return [policy.difference for policy in self.policies if policy.difference is not None]

    @property
    def certainty(self) -> dict[str, Any] | None:
        """How many differences were looked at, and how large one must be for so many images to show it."""
        differences = self.differences
        if not differences:
            return None
        smallest = smallest_seen(max(difference.std for difference in differences), len(differences))
        return {"comparisons": len(differences), "level": LEVEL, "power": POWER, "smallest_difference": smallest}

    @property
    def too_few(self) -> str:
        """A sentence where so few images leave open what there is: where an interval, of the first score or of a
        difference to it, is wider than that score. Nothing elsewhere."""
        own = self.headline
        differing = [policy for policy in self.policies if policy.difference is not None]
        if own is None or max([_width(own), *(_width(policy.difference) for policy in differing)]) <= abs(own.value):
            return ""
        return (
            f"{counted(len(self.inputs), 'image')} are few: what {self.policies[0].steps} scores lies between "
            f"{own.low:.2f} and {own.high:.2f}, and "
            + ", ".join(f"{p.steps} differs by {p.difference.low:.2f} to {p.difference.high:.2f}" for p in differing)
            + ". Draw more to tell small differences."
        )

    def __repr__(self) -> str:
        policies = ", ".join(f"{policy.steps}: {policy.speedup:.2f}x" for policy in self.policies)
        return f"Comparison({counted(len(self.inputs), 'image')}, {policies})"

    # -- for readers ---------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        about = self.settings
        return (
            f"{about['model']}: {counted(len(self.inputs), 'image')}, {counted(about['num_ar_steps'], 'AR step')}, "
            f"guidance {about['guidance']:g}"
        )

    @property
    def headers(self) -> list[str]:
        """Of the columns of the table."""
        measured = self.measure.columns if self.measure else ()
        return ["steps", "seconds", "speedup", "evaluations/row", "head", *measured]

    @property
    def rows(self) -> list[list[str]]:
        """The cells of each step policy."""
        return [
            [
                policy.steps,
                f"{policy.seconds:.2f}",
                f"{policy.speedup:.2f}x",
                f"{policy.evaluations_per_row:.1f}",
                percent(policy.seconds_head, policy.seconds),
                *(self.measure.cells(policy.quality, policy.corrected_difference) if self.measure else ()),
            ]
            for policy in self.policies
        ]

    @property
    def notes(self) -> list[str]:
        """What a reader of the table must know."""
        if self.measure is None:
            return [f"quality is not measured: {self.unmeasured}."] if self.unmeasured else []
        count = len(self.differences)
        told = f"{count} comparisons: the intervals of the differences are wider for that (Holm)." if count > 1 else ""
        shown = f"{told} {what_can_be_shown(self.differences, len(self.inputs))}".strip()
        texts = [self.measure.note(self.policies[0].quality, self.yardsticks), shown, self.too_few]
        return [text for text in texts if text]

    def _repr_html_(self) -> str:
        """The table, what must be known of it, and the plot, for notebooks."""
        from disa.study.plots import steps_plot  # matplotlib is needed for nothing else here

        plot = b64encode(steps_plot({policy.steps: policy.counts for policy in self.policies})).decode()
        return (
            f"<p>{escape(self.title)}</p><table><thead>{_html_row('th', self.headers)}</thead>"
            f"<tbody>{''.join(_html_row('td', row) for row in self.rows)}</tbody></table>"
            f"{''.join(f'<p>{escape(note)}</p>' for note in self.notes)}"
            f'<img alt="denoising steps of each AR step" src="data:image/png;base64,{plot}">'
        )

    # -- for JSON ------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Everything but images, for JSON."""
        return {
            "settings": self.settings,
            "num_images": len(self.inputs),
            **self.inputs.numbers(),
            "policies": [asdict(policy) for policy in self.policies],
            "certainty": self.certainty,
            "yardsticks": None if self.yardsticks is None else asdict(self.yardsticks),
        }


def _html_row(kind: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"


def _width(spread: Spread) -> float:
    return spread.high - spread.low


@undisturbed()
def compare(
    sampler: Sampler,
    step_policies: Sequence[Any],
    inputs: Inputs,
    settings: Settings,
    measure: Measure | None = None,
    on_turn: Callable[[str], object] = lambda policy: None,
) -> Comparison:
    """Draw the inputs under every policy; `settings` says everything else.

    step_policies: objects or texts; a result is named by the text. measure: of quality; nothing is measured where it
    refuses the images. on_turn is called per AR step. Raises DisaError.
    """
    variants = check(sampler, step_policies, inputs, settings)
    _warm_up(sampler, settings, inputs)
    runs = [
        sampler.start(inputs, variant).batches(lambda text=text: on_turn(text)) for text, variant in variants.items()
    ]
    turns = list(zip(*runs, strict=True))
    samples = [Samples.join(parts) for parts in zip(*turns, strict=True)]
    images = [each.images for each in samples]
    unmeasured = measure.refusal(images[0], inputs) if measure else ""
    measured = measure.measure(images, inputs) if measure and not unmeasured else None
    told = {name: value for name, value in samples[0].settings.items() if name not in ("step_counts", "probe")}
    about = told | {"steps": list(variants)}
    return Comparison(
        _results(list(variants), samples, measured),
        images,
        inputs,
        about,
        measured.yardsticks if measured else None,
        measure if measured else None,
        unmeasured,
        measured.headline(0) if measured else None,
    )


def check(sampler: Sampler, step_policies: Sequence[Any], inputs: Inputs, settings: Settings) -> dict[str, Settings]:
    """Find what is wrong before any work is done; the settings of every policy, by its text."""
    if len(step_policies) < 2:
        raise DisaError("a comparison needs at least two step policies: give --steps more than once.")
    texts = [policy_text(policy) for policy in step_policies]
    if len(set(texts)) != len(texts):
        raise DisaError(f"each step policy can be compared once, found {', '.join(texts)}.")
    sampler.start(inputs, settings)
    return {text: sampler.settings(settings, steps=policy) for text, policy in zip(texts, step_policies, strict=True)}


def policy_text(policy: Any) -> str:
    """What a report calls a step policy that was given as an object or as its text."""
    return policy if isinstance(policy, str) else describe(of(policy))


def _warm_up(sampler: Sampler, settings: Settings, inputs: Inputs) -> None:
    """The first calls pay for memory and kernel set-up: two AR steps, and a picture."""
    run = sampler.start(inputs.part(slice(settings.batch_size)), replace(settings, steps=constant(2)))
    for _ in zip(range(2), run, strict=False):
        pass
    config = sampler.model.config
    sampler.decode(torch.zeros(1, config.latent_channels, *config.latent_size))


def _results(step_policies: Sequence[str], samples: Sequence[Samples], measured: Measured | None) -> list[PolicyResult]:
    judged: list[tuple[Any, ...]] = [() for _ in samples]
    if measured:
        judged = list(zip(measured.qualities, measured.differences, measured.corrected, strict=True))
    found = zip(step_policies, samples, judged, strict=True)
    return [PolicyResult.of(text, each, samples[0].seconds, *about) for text, each, about in found]
