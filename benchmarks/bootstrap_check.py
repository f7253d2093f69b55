"""Whether intervals of paired differences hold what they say: the true difference in 95 of 100 studies.

    python benchmarks/bootstrap_check.py draw harmon-shapes --images 1000   # minutes; interrupt and repeat it at will
    python benchmarks/bootstrap_check.py draw flowar-digits --images 2000
    python benchmarks/bootstrap_check.py check                              # -> benchmarks/results/bootstrap-check.json

`draw` keeps what every image is judged by, below --work: whether a picture shows its caption, or a digit's features;
for each caption or label under two sets of seeds, and equal settings. So the true difference of the two sets is 0.
`check` makes thousands of small studies of that: images of the pool drawn at random in each category, where a coin says
which of the two noises is the first policy's; and a few that share no image. It does the same with made-up outcomes and
asks of families of differences how often Holm's decisions and the corrected intervals are wrong.

Every study is judged twice: by the percentile interval of 200 resamples, which was used before, and by what
`Resampled.spread` gives.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import note, publish
from policies_plan import inputs_of
from tables import RESULTS, ROOT

from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.files import make_folder
from disa.study.certainty import corrected
from disa.study.metrics import Gaussian, Resampled, Spread, frechet_distance, resample

STEPS = {"harmon-shapes": "linear:6-1", "flowar-digits": "linear:4-2"}
"""Few evaluations: cheap, and with faults that differ from noise to noise."""
FIRST, OTHER_NOISE, CHUNK = 310_000, 20_000, 500
SIZES = {"shapes": {60: 2000, 200: 2000, 500: 1000}, "digits": {100: 300, 400: 300}}
"""Images of a study, and how many studies are made."""
DISCORDANT = (0.02, 0.05, 0.2, 0.15, 0.1, 0.2)
"""Of made-up outcomes: how often the two noises disagree, for each category."""

MADE_UP = "made up"

Statistic = Callable[..., float]


# -- outcomes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """What N images are judged by, under two noises [2, N, ...], and the stratum [N] of each."""

    outcomes: np.ndarray
    strata: np.ndarray

    def drawn(self, size: int, random: np.random.Generator) -> Pool:
        """A study of `size` images, in equal parts of each stratum, with the two noises of an image in random order."""
        kinds = np.unique(self.strata)
        counts = [len(range(i, size, len(kinds))) for i in range(len(kinds))]
        members = [np.flatnonzero(self.strata == kind) for kind in kinds]
        chosen = np.concatenate([random.choice(own, count) for own, count in zip(members, counts, strict=True)])
        first = random.integers(0, 2, len(chosen))
        return Pool(np.stack([self.outcomes[first, chosen], self.outcomes[1 - first, chosen]]), self.strata[chosen])

    def split(self, size: int) -> Iterator[Pool]:
        """Studies that share no image."""
        for start in range(0, len(self.strata) - size + 1, size):
            yield Pool(self.outcomes[:, start : start + size], self.strata[start : start + size])


def draw(model: str, num_images: int, work: Path) -> None:
    """Outcomes of `num_images` captions or labels under two noises, chunk by chunk."""
    sampler, folder = Sampler.load(model), make_folder(work / model)
    settings = sampler.settings(steps=STEPS[model], batch_size=100)
    asked = inputs_of(sampler, num_images, FIRST)
    for start in range(0, num_images, CHUNK):
        for noise in (0, 1):
            path = folder / f"{noise}-{start:05d}.npy"
            if path.exists():
                continue
            part = asked.part(slice(start, start + CHUNK))
            part = part.with_seeds(seed + noise * OTHER_NOISE for seed in part.seeds)
            images = sampler.start(part, settings).result().images * 2 - 1
            np.save(path, _outcomes(images, part))
            note(f"{model}: noise {noise}, {min(start + CHUNK, num_images)} of {num_images}")


def _outcomes(images: torch.Tensor, inputs: Inputs) -> np.ndarray:
    if inputs.prompts is None:
        from disa.tiny.quality import digit_features

        return digit_features(images).numpy()
    from disa.tiny.judge import judge

    return np.array([judge(image, caption).correct for image, caption in zip(images, inputs.prompts, strict=True)])


def pool_of(model: str, work: Path) -> Pool:
    """What `draw` kept, as far as both noises have it."""
    starts = [
        path.name[2:]
        for path in sorted((work / model).glob("0-*.npy"))
        if (work / model / f"1{path.name[1:]}").exists()
    ]
    if not starts:
        raise DisaError(f"nothing of {model} is drawn in {work}: run draw first.")
    outcomes = np.stack(
        [np.concatenate([np.load(work / model / f"{noise}-{name}") for name in starts]) for noise in (0, 1)]
    )
    kinds = 6 if model == "harmon-shapes" else 10
    return Pool(outcomes, np.arange(outcomes.shape[1]) % kinds)


def made_up(size: int, random: np.random.Generator) -> Pool:
    """Pictures that are right or wrong, six categories in turn, with no difference between two noises."""
    strata = np.arange(size) % len(DISCORDANT)
    differ = random.random(size) < np.take(DISCORDANT, strata)
    first = random.random(size) < np.where(differ, 0.5, 0.9)
    return Pool(np.stack([first, first ^ differ]), strata)


# -- studies -------------------------------------------------------------------------------------------------------


def mean_of_strata(right: torch.Tensor, strata: torch.Tensor) -> float:
    """The score of pictures: the mean of the categories' shares."""
    return (torch.bincount(strata, weights=right) / torch.bincount(strata)).mean().item()


def resampled(study: Pool, statistic: Statistic, seed: int) -> tuple[Resampled, Resampled]:
    """The first policy's value, and its difference to the second's."""
    strata = torch.from_numpy(study.strata)
    arrays = [torch.from_numpy(each).double() for each in study.outcomes]
    known = [strata] if study.outcomes.ndim == 2 else []
    smallest = int(strata.bincount().min())
    first, second = (
        resample(statistic, array, *known, strata=strata if smallest >= 10 else None, seed=seed) for array in arrays
    )
    return first, first - second


def before(found: Resampled) -> Spread:
    """The percentile interval, moved by the bias, without a correction for small samples."""
    bias = float(found.resamples.mean()) - found.value
    low, high = np.quantile(found.resamples, [0.025, 0.975]) - bias
    return Spread(found.value, float(low), float(high), float(found.resamples.std(ddof=1)), bias)


METHODS: dict[str, Callable[[Resampled], Spread]] = {"before": before, "now": Resampled.spread}


def judged(studies: Sequence[Resampled], truth: float) -> dict[str, Any]:
    """Of every method: the share of studies whose interval holds the truth, the root mean square of (value - truth) /
    std, each with its own standard error, and the mean width."""
    report: dict[str, Any] = {}
    for name, method in METHODS.items():
        spreads = [method(study) for study in studies]
        held = np.mean([truth in spread for spread in spreads])
        squares = np.array([((s.value - truth) / s.std) ** 2 for s in spreads if s.std])
        rms = squares.mean() ** 0.5
        report[name] = {
            "coverage": float(held),
            "coverage_error": float((held * (1 - held) / len(spreads)) ** 0.5),
            "rms_z": float(rms),
            "rms_z_error": float(squares.std() / len(squares) ** 0.5 / (2 * rms)),
            "width": float(np.mean([spread.high - spread.low for spread in spreads])),
        }
    return report


def cases(what: str, pool: Pool | None, statistic: Statistic, random: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Studies of every size, of a pool or made up."""
    for size, count in SIZES["digits" if what == "flowar-digits" else "shapes"].items():
        studies = (made_up(size, random) if pool is None else pool.drawn(size, random) for _ in range(count))
        found = [resampled(study, statistic, seed) for seed, study in enumerate(studies)]
        singles, differences = zip(*found, strict=True)
        about = {"images": size, "studies": count}
        yield about | {"of": "a difference"} | judged(differences, 0.0)
        yield about | {"of": "one policy"} | judged(singles, float(np.mean([single.value for single in singles])))
        if pool and len(pool.strata) >= 4 * size:
            apart = [resampled(study, statistic, seed)[1] for seed, study in enumerate(pool.split(size))]
            yield about | {"studies": len(apart), "of": "a difference, no image in two studies"} | judged(apart, 0.0)


# -- families ------------------------------------------------------------------------------------------------------


def families(comparisons: int, absent: int, count: int, random: np.random.Generator) -> dict[str, Any]:
    """How often a family of independent differences holds a false claim, or an interval without its true difference.

    absent: how many of them are 0; the others are three standard errors, where decisions go either way, or large.
    """
    freedom = 100
    truths = np.where(np.arange(comparisons) < absent, 0.0, random.choice([0.5, 3.0, 8.0], (count, comparisons)))
    stds = np.sqrt(random.chisquare(freedom, truths.shape) / freedom)
    values = truths + random.standard_normal(truths.shape)
    false = missed = missed_alone = 0
    for row in zip(values, stds, truths, strict=True):
        family = [
            (Spread(v, 0.0, 0.0, s, 0.0, freedom), truth)
            for v, s, truth in zip(*map(np.ndarray.tolist, row), strict=True)
        ]
        found = list(zip(corrected([spread for spread, _ in family]), family, strict=True))
        false += any(each.shown and (truth == 0 or spread.value * truth < 0) for each, (spread, truth) in found)
        missed += any(not each.low <= truth <= each.high for each, (_, truth) in found)
        missed_alone += any(abs(spread.value - truth) > 1.984 * spread.std for spread, truth in family)
    return {
        "comparisons": comparisons,
        "absent": absent,
        "families": count,
        "a_false_claim": false / count,
        "an_interval_that_misses": missed / count,
        "one_that_misses_uncorrected": missed_alone / count,
    }


def check(kinds: Sequence[str], work: Path, result: Path) -> None:
    """Families of differences and studies of some kinds of outcomes -> a result file, whose other kinds stay."""
    known: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {"studies": {}}
    random = np.random.default_rng(0)
    known |= {"steps": STEPS, "first_seeds": [FIRST, FIRST + OTHER_NOISE]}
    known["families"] = [
        families(comparisons, absent, 4000, random)
        for comparisons in (3, 10, 40)
        for absent in sorted({0, 1, comparisons // 2, comparisons})
    ]
    for what in kinds:
        pool = None if what == MADE_UP else pool_of(what, work)
        statistic = frechet() if what == "flowar-digits" else mean_of_strata
        found = list(cases(what, pool, statistic, np.random.default_rng(1)))
        known["studies"][what] = {"pool": len(pool.strata) if pool else None, "cases": found}
        note(f"{what} is done")
    publish(known, result)


def frechet() -> Statistic:
    """The distance of features to those of all real digits."""
    from disa.tiny.data import digits
    from disa.tiny.quality import digit_features

    real = Gaussian.fit(digit_features(digits("all")[0]))
    return lambda features: frechet_distance(features, real)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "check"))
    parser.add_argument("model", nargs="?", choices=(MADE_UP, *STEPS))
    parser.add_argument("--images", type=int, default=2000, help="captions or labels of a pool")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bootstrap-check", help="where outcomes are kept")
    parser.add_argument("--result", type=Path, default=RESULTS / "bootstrap-check.json", help="what check writes")
    given = parser.parse_args()
    try:
        if given.what == "check":
            check([given.model] if given.model else [MADE_UP, *STEPS], given.work, given.result)
        elif given.model not in STEPS:
            parser.error(f"draw needs a model: {', '.join(STEPS)}")
        else:
            draw(given.model, given.images, given.work)
    except DisaError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
