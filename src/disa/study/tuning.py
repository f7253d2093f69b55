"""`disa tune`: the fastest settings of those whose images are like the original's, found in a time that is given.

Images are compared with those of the original setting alone (likeness.py): no labels, no reference. A *loss* is their
energy distance as a share of that of a crude setting, `constant:5` or fewer on the original's solver: 0 is like the
original, 1 as far from it as the crude one.

1. *alone*: every way of saving (ways.py) on top of the mildest steps, with a few images.
2. *together*: losses of ways add up, times multiply; the mixes that promise to be fastest within the tolerance are
   drawn, and of those that do no worse the faster half with twice the images, again and again.
3. *confirmed*: what is left is drawn beside the original for seeds that chose nothing. Only these numbers are reported.

What was drawn is kept as features: an interrupted search goes on. Seconds are wall time, of batches that alternate.

Shapes: N images, D features.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from disa.core.plans import StepPlan
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.runtime.surroundings import undisturbed
from disa.study.likeness import halves
from disa.study.metrics import Spread, student_quantile
from disa.study.pool import Features, Pool
from disa.study.tuned import Found, Tuned
from disa.study.ways import Mix, Way, mixes, ways_for

FIRST_SEED, CONFIRM_SEED = 200_000, 600_000
CRUDE = (5, 3, 2, 1)
SEARCHING = 0.45
"""The share of the time after which what is left is confirmed."""
TRIED_TOGETHER, CONFIRMED = 12, 3
CAUTION = 1.5
"""How far above the tolerance the foreseen loss of a mix may be."""
SURE = 4
"""Standard deviations that a crude setting is away."""
FIRST, DOUBLED, MOST_IMAGES = 32, 5, 4096
"""Images of a setting: the fewest, how often they are doubled until a crude setting is surely unlike the original, and
the most in each of the two parts."""
MOST_ALONE = 128
"""Images of each way alone."""
GAINED = 1.05
"""What a larger batch must gain in speed."""


class Tuning:
    """A search under way."""

    def __init__(
        self, sampler: Sampler, pools: tuple[Pool, Pool], base: Settings, over: Callable[[float], bool]
    ) -> None:
        """pools: to search in, to confirm in. base: the original's settings. over: whether a share of the time is."""
        self.sampler, self.base, self.over = sampler, base, over
        self.search, self.confirm = pools
        self.first = min(base.batch_size, FIRST)

    def settings(self, mix: Mix) -> Settings:
        with warnings.catch_warnings(action="ignore"):  # what was measured for other settings is measured here
            return self.sampler.settings(self.base, **mix.options)

    def draw(self, pool: Pool, wanted: Sequence[Settings], count: int, share: float) -> int:
        """Draw `count` images of each, a batch of each in turn; how many there are of all. It stops where that share of
        the time is over."""
        runs = [pool.batches(settings, count) for settings in wanted]
        with warnings.catch_warnings(action="ignore"):
            while runs and not self.over(share):
                runs = [run for run in runs if next(run, self) is not self]
        return min(count, *(len(pool.of(settings)) for settings in wanted))

    # -- the unit ------------------------------------------------------------------------------------------------

    def measure_crude(self) -> None:
        """The unit of losses: the first crude setting that is surely unlike the original. Raises DisaError."""
        for steps in CRUDE:
            self.crude = f"constant:{steps}"
            settings = self.sampler.settings(self.base, steps=self.crude)
            for count in (self.first << doubled for doubled in range(DOUBLED + 1)):
                drawn = self.draw(self.search, [self.base, settings], count, SEARCHING / 2)
                self.unit = self.search.distance(settings, self.base, drawn) if drawn > 1 else Spread(0, 0, 0, 0)
                if self.unit.value > SURE * self.unit.std > 0 or self.over(SEARCHING / 2):
                    self.first = min(drawn, MOST_ALONE)  # fewer would say nothing of other settings either
                    return
        raise DisaError(
            f"{self.first << DOUBLED} images do not tell even one denoising step from the original: these features see "
            "nothing of it. Give others."
        )

    def loss(self, pool: Pool, settings: Settings, count: int) -> Spread:
        return self.of_unit(pool.distance(settings, self.base, count))

    def of_unit(self, distance: Spread) -> Spread:
        """A distance as a loss."""
        values = (part / self.unit.value for part in (distance.value, distance.low, distance.high, distance.std))
        return Spread(*values, freedom=distance.freedom)

    def seen(self, tried: Sequence[Mix]) -> list[tuple[str, float, float]]:
        """Of the mixes of the search, for a plot: name, speed-up, loss."""
        before, found = self.search.of(self.base).seconds_per_image, list[tuple[str, float, float]]()
        for mix in tried:
            settings = self.settings(mix)
            drawn = self.search.of(settings)
            if len(drawn) > 1:
                loss = self.loss(self.search, settings, min(len(drawn), len(self.search.of(self.base))))
                found.append((str(mix), before / drawn.seconds_per_image, loss.value))
        return found

    # -- the search ----------------------------------------------------------------------------------------------

    def measure_alone(self, axes: dict[str, list[Way]], share: float) -> dict[Way, tuple[float, float]]:
        """Of every way the factor on seconds and the loss it adds: steps beside the original, others beside the mildest
        steps."""
        mildest, found = axes["steps"][0], dict[Way, tuple[float, float]]()
        mixes_of = {
            way: Mix((way,) if axis == "steps" else (mildest, way)) for axis, ways in axes.items() for way in ways
        }
        settings = {way: self.settings(mix) for way, mix in mixes_of.items()}
        self.draw(self.search, list(settings.values()), self.first, share)
        start = self.settings(Mix((mildest,)))
        count = len(self.search.of(start))
        below = (
            (self.search.of(start).seconds_per_image, self.loss(self.search, start, count).value) if count else (1, 0)
        )
        for way, each in settings.items():
            drawn = self.search.of(each)
            if len(drawn) > 1:
                loss = self.loss(self.search, each, len(drawn)).value
                found[way] = (
                    (drawn.seconds_per_image, loss)
                    if way.axis == "steps"
                    else (drawn.seconds_per_image / below[0], loss - below[1])
                )
        return found

    def promising(
        self, axes: dict[str, list[Way]], alone: dict[Way, tuple[float, float]], tolerance: float
    ) -> list[Mix]:
        """The mixes that are foreseen to be fastest within the tolerance, the fastest first, and the mildest."""
        known = {axis: [way for way in ways if way in alone] for axis, ways in axes.items()}
        foreseen = list[tuple[float, Mix]]()
        for mix in mixes(known):
            seconds, loss = 1.0, 0.0
            for way in mix.ways:
                seconds, loss = seconds * alone[way][0], loss + max(0.0, alone[way][1])
            if loss <= CAUTION * tolerance:
                foreseen.append((seconds, mix))
        found = [mix for _, mix in sorted(foreseen, key=lambda each: each[0])[: TRIED_TOGETHER - 1]]
        mildest = Mix((known["steps"][0],))
        return [*found, *([] if mildest in found else [mildest])]

    def halved(self, tried: Sequence[Mix], tolerance: float, share: float) -> list[Mix]:
        """Those that are left of several, the fastest first: of what is not surely worse the faster half each time, and
        the one that loses least."""
        count, left = self.first, list(tried)
        while True:
            settings = {mix: self.settings(mix) for mix in left}
            drawn = self.draw(self.search, [self.base, *settings.values()], count, share)
            if drawn < 2:
                return left[:CONFIRMED]
            losses = {mix: self.loss(self.search, each, drawn) for mix, each in settings.items()}
            fast = sorted(left, key=lambda mix: self.search.of(settings[mix]).seconds_per_image)
            mildest = min(fast, key=lambda mix: losses[mix].high)
            fit = [mix for mix in fast if losses[mix].low <= tolerance and losses[mix].value <= CAUTION * tolerance]
            room = max(CONFIRMED, len(left) // 2)
            kept = list(dict.fromkeys([mildest, *fit]))[:room]
            left = [mix for mix in fast if mix in kept]
            if len(left) <= CONFIRMED and self.over(share):
                return left
            if self.over(share) or 2 * count > len(self.search.inputs):
                return _spread_out(left, losses, tolerance)
            count *= 2

    # -- what is reported ----------------------------------------------------------------------------------------

    def confirmed(self, left: Sequence[Mix]) -> tuple[Found, list[Found]]:
        """The original, and what is left of it drawn again for other seeds, the fastest first."""
        settings = {mix: self.settings(mix) for mix in left}
        everything = [self.base, *settings.values()]
        count = self.draw(self.confirm, everything, len(self.confirm.inputs), 1.0)
        if count < 2:
            raise DisaError("the time was too short to confirm anything: give more minutes.")
        original = self._found("original", {}, self.base, Spread(0, 0, 0, 0), 0.0, count)
        found = []
        for mix, each in settings.items():
            loss = self.loss(self.confirm, each, count)
            # One-sided, at 5 % for all together (Bonferroni).
            bound = loss.value + student_quantile(1 - 2 * 0.05 / len(settings), loss.freedom) * loss.std
            found.append(self._found(str(mix), mix.options, each, loss, bound, count))
        return original, sorted(found, key=lambda each: each.seconds_per_image)

    def _found(
        self, name: str, options: dict[str, Any], settings: Settings, loss: Spread, bound: float, count: int
    ) -> Found:
        own, theirs = self.confirm.of(settings), self.confirm.of(self.base)
        seconds, before = own.seconds_per_image, theirs.seconds_per_image
        return Found(name, options, seconds, before / seconds, own.evaluations_per_row, loss, bound, count)


def _spread_out(left: Sequence[Mix], losses: dict[Mix, Spread], tolerance: float) -> list[Mix]:
    """At most so many of them as are confirmed: the fastest, the fastest that already looks sure, and the mildest."""
    sure = next((mix for mix in left if losses[mix].high <= tolerance), left[0])
    mildest = min(left, key=lambda mix: losses[mix].high)
    found = dict.fromkeys([left[0], sure, mildest, *left])
    chosen = list(found)[:CONFIRMED]
    return [mix for mix in left if mix in chosen]


@undisturbed()
def tune(
    sampler: Sampler,
    inputs: Callable[[int, int], Inputs],
    features: Features,
    settings: Settings,
    minutes: float,
    plan: StepPlan | None = None,
    tolerance: float = 0.1,
    keep: Path | None = None,
    on_turn: Callable[[float], object] = lambda share: None,
) -> Tuned:
    """Find them. inputs: a number of images and a first seed to what is drawn. settings: the original's own, filled in.
    plan: whose steps are tried; None for the official solver with fewer. tolerance: the largest loss. keep: a folder
    that a search which was interrupted goes on from. on_turn: told the share of the time that is over. Raises
    DisaError.
    """
    started = time.monotonic()

    def over(share: float) -> bool:
        spent = (time.monotonic() - started) / (60 * minutes)
        on_turn(min(1.0, spent))
        return spent >= share

    search, confirm = (Pool(sampler, inputs(MOST_IMAGES, seed), features, keep) for seed in (FIRST_SEED, CONFIRM_SEED))
    tuning = Tuning(sampler, (search, confirm), settings, over)
    axes = ways_for(sampler, settings, plan)
    if not axes["steps"]:
        raise DisaError("no steps are left to try: the model takes none of those that could be faster.")
    tuning.measure_crude()
    if over(SEARCHING / 2):
        needed = math.ceil((time.monotonic() - started) / 60 / (SEARCHING / 8))
        raise DisaError(f"the time is too short for this model: give {needed} minutes or more.")
    alone = tuning.measure_alone(axes, SEARCHING / 2)
    tried = tuning.promising(axes, alone, tolerance)
    left = tuning.halved(tried, tolerance, SEARCHING)
    original, front = tuning.confirmed(left)
    own, groups = tuning.confirm.of(settings).first(original.images), tuning.confirm.groups
    chance = halves(own, None if groups is None else groups[: original.images])
    return Tuned(
        original,
        front,
        tolerance,
        tuning.crude,
        tuning.of_unit(chance),
        [(str(Mix((way,))), 1 / factor, loss) for way, (factor, loss) in alone.items() if way.axis != "steps"],
        tuning.seen(tried),
        time.monotonic() - started,
    )


def fastest_batch(sampler: Sampler, inputs: Inputs, settings: Settings, most: int = 1024) -> int:
    """The batch size that draws most images in a second, of the settings' own and its doubles, as far as memory and
    the inputs go."""
    size, best, found = settings.batch_size, 0.0, settings.batch_size
    while size <= min(most, len(inputs)):
        try:
            with warnings.catch_warnings(action="ignore"):
                samples = sampler.start(inputs.part(slice(size)), replace(settings, batch_size=size)).result()
        except DisaError:  # too little memory
            break
        if size / samples.seconds < GAINED * best:
            break
        best, found, size = size / samples.seconds, size, 2 * size
    return found
