"""Why annealing works: the three measurements of the paper, on a few images of the loaded model."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

from disa.draw.inputs import Inputs
from disa.draw.pictures import png, to_image
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.runtime.surroundings import undisturbed
from disa.studio import shown
from disa.studio.machine import Machine
from disa.studio.plot import curve_plot
from disa.study.evidence import EXPECTED, Curve, Effort, Evidence, measure, work

NUM_IMAGES = 6
EFFORT = Effort(draws=6, draw_steps=10, varied=3, path_steps=12, fit_images=32)
CLEAR = 0.3
"""Spearman's correlation from which on a curve is said to rise or fall."""
PANELS = (
    ("r2", "How well the rest is known", "How much of a token is predicted (R²)"),
    ("relative_variance", "What is left to chance", "Variance between draws, as a share of that of the tokens"),
    (
        "relative_straightness",
        "How straight the way is",
        "How much denoising paths bend (S, by the same measure)",
    ),
)


class GivenUp(Exception):
    """A measurement that is to stop."""


def explain(
    machine: Machine,
    sampler: Sampler,
    inputs: Inputs,
    settings: Settings,
    stopped: Event,
    on_turn: Callable[[float], object],
) -> Evidence | None:
    """Measure, in a thread which has nothing else to do; None where it is to stop. on_turn: told which share is done.
    Raises DisaError."""
    costs = work(sampler, inputs, settings, EFFORT)
    whole, done = sum(costs), 0.0
    left = iter(costs)

    def go_on() -> None:
        if stopped.is_set():
            raise GivenUp

    def measured(next_turn: Callable[[], None]) -> Evidence:
        def turn() -> None:
            nonlocal done
            go_on()
            done += next(left, 0.0)
            on_turn(done / whole)
            next_turn()
            go_on()

        go_on()
        # It computes between the turns of others, too, as far as PyTorch's settings go: TF32 must stay theirs to use.
        with undisturbed(tf32=sampler.tf32):
            return measure(sampler, inputs, settings, EFFORT, turn)

    try:
        return machine.do_in_turns(measured)
    except GivenUp:
        return None


def images_of(inputs: Inputs) -> Inputs:
    """As many as are measured: other seeds beside those asked for, with labels or prompts in turn."""
    first = inputs.seeds[0]
    if first > 2**63:
        raise DisaError(f"a first seed of at most 2^63 leaves room for others, found {first}.")
    return inputs.with_seeds(range(first, first + NUM_IMAGES))


def html(evidence: Evidence) -> str:
    """A panel for each measurement, and what can be foreseen of the images."""
    panels = "".join(_panel(evidence.curves[name], name, title, what) for name, title, what in PANELS)
    return f'<div class="panels">{panels}</div>{_foresight(evidence)}'


def _panel(curve: Curve, name: str, title: str, what: str) -> str:
    said = sentence(curve, name, what)
    return (
        f'<section class="card"><h3>{title}</h3>{curve_plot(curve.mean, curve.low, curve.high, said)}<p>{said}</p>'
        "</section>"
    )


def sentence(curve: Curve, name: str, what: str) -> str:
    """What was measured, whether or not it is what the paper finds."""
    way = curve.correlation * EXPECTED[name]
    found = "as in the paper" if way > CLEAR else "the other way round than in the paper" if way < -CLEAR else "unclear"
    return (
        f"{what}: {curve.mean[0]:.2g} in the first AR step, {curve.mean[len(curve.mean) // 2]:.2g} in the middle, "
        f"{curve.mean[-1]:.2g} in the last; {found} (Spearman {curve.correlation:+.2f})."
    )


def _foresight(evidence: Evidence) -> str:
    """At some AR steps what is drawn of an image, and the same with the rest predicted."""
    last = len(evidence.token_variance)
    pairs = [
        (f"{part.num_ar_steps} of {last} AR steps", part.drawn[0], part.predicted[0]) for part in evidence.foresight
    ]
    pairs.append((f"all {last}", evidence.samples.images[0], evidence.samples.images[0]))
    columns = "".join(
        f'<figure class="pair">{shown.image(png(to_image(drawn)), f"drawn after {title}")}'
        f"{shown.image(png(to_image(rest)), f'foreseen after {title}')}<figcaption>{title}</figcaption></figure>"
        for title, drawn, rest in pairs
    )
    return (
        '<section class="card"><h3>What can be foreseen</h3><p>Above: what is drawn. Below: the same, with the rest '
        f'predicted by {shown.escape(evidence.predictor)}.</p><div class="foresight">{columns}</div></section>'
    )
