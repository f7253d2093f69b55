"""`disa tune`: the fastest settings of those whose images are like the original's, found in a time that is given.

Images are compared with those of the original setting alone (likeness.py): no labels, no reference. A *loss* says by
what share an image of a setting and one of the original differ more than two images of one setting do, of the same
label or prompt. It is half their energy distance over the mean distance of two images of the original.

1. *alone*: every way of saving (ways.py) on top of the mildest steps, with a few images.
2. *together*: losses of ways add up, times multiply; some mixes are drawn, from the mildest to the fastest, and of
   those that are not told apart from the original the faster half with twice the images, again and again.
3. *confirmed*: what is left is drawn beside the original for seeds that chose nothing. Only these numbers are reported.

What was drawn is kept as features: an interrupted search goes on. Seconds are wall time, of batches that alternate.

Shapes: N images, D features.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from disa.core.plans import StepPlan
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.runtime.surroundings import undisturbed
from disa.study.likeness import energy_distance, halves
from disa.study.metrics import Spread, student_quantile
from disa.study.pool import Drawn, Features, Pool
from disa.study.tuned import Found, Tuned, is_worse
from disa.study.ways import Mix, Way, ladders, mixes, ways_for

FIRST_SEED, CONFIRM_SEED = 200_000, 600_000
SEARCHING = 0.4
"""The share of the time after which what is left is confirmed."""
TRIED_TOGETHER, CONFIRMED = 12, 5
FIRST, ALONE, MOST_IMAGES = 64, 256, 4096
"""Images: of the original before anything else, of each way alone, and the most of a setting in each of the two
parts."""
FEWEST_CONFIRMED = 4
"""Images that make two halves with a distance between them."""
GAINED = 1.05
"""What a larger batch or another dtype must gain in speed."""


@dataclass(frozen=True)
class Alone:
    """What a way does by itself. seconds: an image's for steps, else a factor. adds: to the loss."""

    seconds: float
    adds: float
    loss: Spread


class Tuning:
    """A search under way."""

    def __init__(
        self,
        sampler: Sampler,
        pools: tuple[Pool, Pool],
        base: Settings,
        tolerance: float,
        over: Callable[[float], bool],
    ) -> None:
        """pools: to search in, to confirm in. base: the original's settings. over: whether a share of the time is."""
        self.sampler, self.base, self.tolerance, self.over = sampler, base, tolerance, over
        self.search, self.confirm = pools
        self.first = 0
        """Images of each way alone."""
        self.unit = 0.0
        """The distance that is a loss of 1."""

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

    def measure_unit(self) -> int:
        """The unit of losses, from the first images of the original; of how many. Raises DisaError."""
        drawn = self.draw(self.search, [self.base], FIRST, SEARCHING / 4)
        self.unit = 2 * self.search.spread(self.base, drawn) if drawn > 1 else 0.0
        if drawn == FIRST and not self.unit:
            raise DisaError("all images of the original have the same features: give others with --features.")
        return drawn

    def loss(self, pool: Pool, settings: Settings, count: int) -> Spread:
        return as_share(pool.distance(settings, self.base, count), self.unit)

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

    def measure_alone(self, axes: dict[str, list[Way]], share: float) -> dict[Way, Alone]:
        """What every way does: steps beside the original, others beside the mildest steps."""
        mildest, found = axes["steps"][0], dict[Way, Alone]()
        mixes_of = {
            way: Mix((way,) if axis == "steps" else (mildest, way)) for axis, ways in axes.items() for way in ways
        }
        settings = {way: self.settings(mix) for way, mix in mixes_of.items()}
        self.first = self.draw(self.search, [self.base, *settings.values()], ALONE, share)
        if self.first < 2:
            return found
        start = self.settings(Mix((mildest,)))
        seconds, before = self.search.of(start).seconds_per_image, self.loss(self.search, start, self.first).value
        for way, each in settings.items():
            own, loss = self.search.of(each).seconds_per_image, self.loss(self.search, each, self.first)
            if way.axis == "steps":
                found[way] = Alone(own, loss.value, loss)
            else:
                found[way] = Alone(own / seconds, loss.value - before, loss)
        return found

    def promising(self, axes: dict[str, list[Way]], alone: dict[Way, Alone]) -> list[Mix]:
        """Mixes of ways that are not told apart from the original, from the fastest to the mildest: of about equal
        speed the one that is foreseen to lose least."""
        mildest, known, adds = Mix((axes["steps"][0],)), dict[str, list[Way]](), _adds(axes, alone)
        for axis, ways in axes.items():
            known[axis] = [way for way in ways if way in mildest.ways or not is_worse(alone[way].loss, self.tolerance)]
        seconds = {mix: math.prod(alone[way].seconds for way in mix.ways) for mix in mixes(known)}
        fastest, slowest = min(seconds.values()), max(seconds.values())
        best = dict[int, tuple[float, Mix]]()
        for mix, taken in seconds.items():
            # What a way loses is known to within its spread only, so that each of them is a risk.
            risk = sum(max(0.0, adds[way]) + alone[way].loss.std for way in mix.ways)
            share = math.log(taken / fastest) / math.log(slowest / fastest) if slowest > fastest else 0.0
            place = min(int(share * TRIED_TOGETHER), TRIED_TOGETHER - 1)
            if place not in best or risk < best[place][0]:
                best[place] = risk, mix
        found = dict.fromkeys([*(mix for _, (_, mix) in sorted(best.items())), mildest])
        return sorted(found, key=lambda mix: seconds[mix])

    def halved(self, tried: Sequence[Mix], share: float) -> list[Mix]:
        """Those of several that are worth confirming, the fastest first. Each time the fastest that are not told apart
        from the original are drawn, half as many as before, with twice the images."""
        count, room, left, losses = self.first, len(tried), list(tried), dict[Mix, Spread]()
        settings = {mix: self.settings(mix) for mix in tried}
        while not self.over(share) and count <= len(self.search.inputs):
            drawn = self.draw(self.search, [self.base, *(settings[mix] for mix in left[:room])], count, share)
            if drawn < 2:
                break
            losses |= {mix: self.loss(self.search, settings[mix], drawn) for mix in left[:room]}
            kept = [mix for mix in left if not is_worse(losses[mix], self.tolerance)]
            # Where all are told apart, the one that is least so.
            left = sorted(
                kept or [min(left, key=lambda mix: losses[mix].high)],
                key=lambda mix: self.search.of(settings[mix]).seconds_per_image,
            )
            count, room = 2 * count, max(CONFIRMED, room // 2)
        return _spread_out(left)

    # -- what is reported ----------------------------------------------------------------------------------------

    def confirmed(self, left: Sequence[Mix]) -> tuple[Found, list[Found]]:
        """The original, and what is left of it drawn again for other seeds, the fastest first."""
        settings = {mix: self.settings(mix) for mix in left}
        everything = [self.base, *settings.values()]
        count = self.draw(self.confirm, everything, len(self.confirm.inputs), 1.0)
        if count < FEWEST_CONFIRMED:
            raise DisaError("the time was too short to confirm anything: give more minutes.")
        before = self.confirm.of(self.base).seconds_per_image
        original = found_of("original", {}, self.confirm.of(self.base), before, Spread(0, 0, 0, 0), count)
        found = []
        for mix, each in settings.items():
            loss, drawn = self.loss(self.confirm, each, count), self.confirm.of(each)
            found.append(found_of(str(mix), mix.options, drawn, before, loss, count))
        return original, sorted(found, key=lambda each: each.seconds_per_image)


def found_of(name: str, options: dict[str, Any], drawn: Drawn, before: float, loss: Spread, count: int) -> Found:
    """What is reported of a setting. before: seconds of an image of the original."""
    seconds, bound = drawn.seconds_per_image, bound_of(loss)
    return Found(name, options, seconds, before / seconds, drawn.evaluations_per_row, loss, bound, count)


def as_share(distance: Spread, unit: float) -> Spread:
    """A distance as a loss."""
    values = (part / unit for part in (distance.value, distance.low, distance.high, distance.std))
    return Spread(*values, freedom=distance.freedom)


def bound_of(loss: Spread) -> float:
    """What a loss is below, one-sided and at 5 %."""
    return loss.value + student_quantile(0.9, loss.freedom) * loss.std


def _adds(axes: dict[str, list[Way]], alone: dict[Way, Alone]) -> dict[Way, float]:
    """What every way adds to the loss, where no way loses less than a milder one of its kind: what says otherwise is
    chance (isotonic regression)."""
    from scipy.optimize import isotonic_regression  # heavy

    found = dict[Way, float]()
    for ways in ladders(axes):
        smooth = isotonic_regression([alone[way].adds for way in ways]).x
        found |= dict(zip(ways, map(float, smooth), strict=True))
    return found


def _spread_out(left: Sequence[Mix]) -> list[Mix]:
    """What is confirmed of them: some from the fastest to the slowest."""
    places = {round(i * (len(left) - 1) / (CONFIRMED - 1)) for i in range(CONFIRMED)}
    return [left[place] for place in sorted(places)]


@undisturbed()
def tune(
    sampler: Sampler,
    inputs: Callable[[int, int], Inputs],
    features: Features,
    settings: Settings,
    minutes: float,
    plan: StepPlan | None = None,
    tolerance: float = 0.005,
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
    tuning = Tuning(sampler, (search, confirm), settings, tolerance, over)
    axes = ways_for(sampler, settings, plan)
    if not axes["steps"]:
        raise DisaError("no steps are left to try: the model takes none of those that could be faster.")
    drawn, alone = tuning.measure_unit(), dict[Way, Alone]()
    if drawn == FIRST:
        alone, drawn = tuning.measure_alone(axes, SEARCHING / 2), tuning.first
    if drawn < FIRST:
        needed = (time.monotonic() - started) / 60 / (SEARCHING / 2) * FIRST / max(1, drawn)
        raise DisaError(f"the time is too short for this model: give {math.ceil(needed)} minutes or more.")
    tried = tuning.promising(axes, alone)
    left = tuning.halved(tried, SEARCHING)
    original, front = tuning.confirmed(left)
    own, count = tuning.confirm.of(settings), original.images
    chance = halves(own.first(count), tuning.confirm.groups_of(count))
    return Tuned(
        original,
        front,
        tolerance,
        tuning.unit,
        as_share(chance, tuning.unit),
        [(str(Mix((way,))), 1 / each.seconds, each.adds) for way, each in alone.items() if way.axis != "steps"],
        tuning.seen(tried),
        time.monotonic() - started,
    )


@undisturbed()
def in_dtype(
    sampler: Sampler,
    dtype: str,
    inputs: Callable[[int, int], Inputs],
    features: Features,
    base: Settings,
    tuned: Tuned,
    keep: Path,
) -> Found | None:
    """The best setting for the seeds that confirmed it, with the model in another dtype, in which it stays; None if
    that is no faster. keep: what `tune` was given, which has the original's images. Other arguments are its own."""
    best, pool = tuned.best, Pool(sampler, inputs(MOST_IMAGES, CONFIRM_SEED), features, keep)
    assert best is not None
    original = pool.of(base).first(best.images)
    with warnings.catch_warnings(action="ignore"):
        settings = sampler.settings(base, **best.options)
        sampler.to(dtype=dtype)
        for count in (2 * settings.batch_size, best.images):
            for _ in pool.batches(settings, count):
                pass
            if GAINED * pool.of(settings).seconds_per_image > best.seconds_per_image:
                return None
    drawn, before = pool.of(settings), tuned.original.seconds_per_image
    loss = as_share(energy_distance(drawn.first(best.images), original, pool.groups_of(best.images)), tuned.unit)
    return found_of(f"{best.name}, {dtype}", best.options, drawn, before, loss, best.images)


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
