"""docs/accelerators.md from what `confirm.py confirm accelerators-MODEL.json` and `composed.py` measured:

python benchmarks/accelerators_write.py
"""

from __future__ import annotations

import json
from typing import Any

from composed import show
from confirm_write import claim_cell, claim_cells
from tables import RESULTS, ROOT, options_cell, table

from disa.files import write_text

MODELS = ("mar-digits", "harmon-shapes")
CRUDE, GUIDED = "constant:5", "guided original"
FOLDER = RESULTS / "accelerators"
CLOSER = FOLDER / "closer"
TENTH = 0.1
"""Of what the crude setting makes unlike: an interval as narrow as that says that nothing is lost."""
COMPOSED = (
    "composed-mar-base.json",
    "composed-mar-base-4.json",
    "composed-mar-huge.json",
    "composed-mar-huge-4.json",
    "composed-harmon-0.5b.json",
)

INTRODUCTION = """# Less backbone, measured

What the savings of [Less work in the backbone](backbone.md) cost and bring, alone and composed with annealing.

{summary}

*Less the original's* is the paired difference of the quality, with an interval that holds together with all others of
its model (95 %, Holm). Fréchet distances (mar-digits) are better if smaller, scores (harmon-shapes) if larger. *Unlike*
is the energy distance between the images of a setting and the original's, as a share of that of `constant:5`, with an
interval of its own: of digits by the classifier and within each label, of scenes by EfficientNet and whatever their
caption. {scale}

The budgets of plans were chosen on seeds 300000-301999, `linear:50-5` of scenes on 303000-303999, what is looked at
*closer* on 303000-304999, all else beforehand. All images are of seeds from 500000 on.
[How sure a difference is](certainty.md) has the method. Seconds are of one thread on a machine that was busy otherwise.

    python benchmarks/confirm.py confirm benchmarks/accelerators-MODEL.json --results benchmarks/results/accelerators
    python benchmarks/confirm.py confirm benchmarks/accelerators-closer.json \\
        --results benchmarks/results/accelerators/closer
    python benchmarks/composed.py mar-base --repeats 1 --ar-steps 6 \\
        --only "few steps, random, residual:9" "few steps, stages, residual:9" \\
        --result benchmarks/results/composed-mar-base.json  # and --batch 4 --ar-steps 3
    python benchmarks/composed.py mar-huge --clock cpu --threads 1 --repeats 1 --ar-steps 4 \\
        --only "few steps, stages, residual:9" \\
        --result benchmarks/results/composed-mar-huge.json  # and --batch 4 --ar-steps 3
    python benchmarks/composed.py harmon-0.5b --clock cpu --threads 1 --repeats 1 \\
        --only "annealed, residual:9" "few steps, residual:3" --result benchmarks/results/composed-harmon-0.5b.json
    python benchmarks/accelerators_write.py
"""

FINDINGS = """## What was found on mar-digits

- **Fewer AR steps**: in a random order, along a Halton sequence or in stages, the Fréchet distance shows no loss. The
  energy distance sees a little: 16 AR steps along Halton or a checkerboard lose a fifth of what `constant:5` does;
  in a random order, and in stages, none is shown. Drawn row by row, or with many tokens first and few last, the same
  AR steps are far worse.
- **Reuse costs next to nothing**: less the same setting without it, `tokens:2`, `residual:3` and `residual:9` differ by
  at most 0.01, with intervals of 0.005 to 0.017 on each side.
- **Together** (a plan, stages, `residual:9`, with guidance) they draw in less than half of the time of the guided plan;
  no Fréchet distance tells them apart from it, the energy distance has them at a quarter of what `constant:5` loses.
  `linear:12-3` of `dpm-solver++-2` in place of the plan is as good: -0.021 [-0.190, 0.148] of the guided original's.
  That is what `--recipe fast` takes for published MAR models.
- **The tuned recipe** (`disa tune`, 15 minutes: `plan@2.8` in 24 AR steps) shows no loss on these seeds either. At its
  setting, `mlp` gains nothing on its table of counts, and `linear:4-1`, with fewer evaluations, is not told from it.
- **Rows that get counts of their own** gain nothing here: `mlp` is not told apart from `linear` at equal evaluations,
  and `frequency` is worse.
- **Closer**, with 4 000 digits and guidance: few steps of `dpm-solver++-2` with `residual:9` are at 6 % [-1, 12] of
  what `constant:5` makes unlike; in 20 of 32 AR steps at random at 6 % [0, 13]; in stages, of 20 AR steps or of 16, at
  a fifth. No Fréchet distance tells any of them from the original's, to within 0.1, where `constant:5` is at +0.64. So
  AR steps at random likely suit published MAR models better than the stages of their fast recipe.
- **How sure this is.** No interval is narrower than a tenth of what `constant:5` makes unlike yet, which takes six to
  eight thousand digits.

## What was found on harmon-shapes

- **Annealing with `residual:9` keeps everything.** `linear:50-5` with it is at 0 % [-2, 1] of what `constant:5` makes
  unlike, an interval far narrower than a tenth, and at +0.000 of the score. `linear:20-4` is at 0 % [-2, 3] and +0.003,
  in about a third of the original's time; published Harmon models are drawn so by `--recipe fast`. `linear:25-3` is
  told apart, 4 % [2, 7]: three steps at the end are too few.
- **Plans of few steps draw what is asked as well, on lighter grounds.** `plan@9`, and the tuned recipe (`disa tune`,
  20 minutes: `plan@6.2` with `residual:3`), show no loss of score on 3 000 fresh captions. EfficientNet tells them from
  the original: 36 % of their grounds are dark, of the original's 39 %, of `constant:5` 33 %, of real scenes
  38 %. What `disa tune` compares on this model, shapes and places, does not see that.
- **DPM-Solver++ in place of the plan**, with `residual:3`, is more like the original, 5 % [1, 8], but its score is at
  -0.016 [-0.034, 0.002], alone [-0.028, -0.003].
- **Reuse costs next to nothing**: `residual:9` changes the plan's score by -0.002 [-0.008, 0.003], and saves a fifth.
- **Fewer AR steps and raster order lose**: 12 of 24 AR steps -0.096 [-0.116, -0.076], row by row -0.099
  [-0.123, -0.076]. Scenes need their AR steps, and their random order.
"""

SIZES = """Time of one whole image with each setting: of MAR-B wall time, two threads, nothing beside it. *CPU s* are
seconds of one thread, of one round, each on a machine of its own: of MAR-H, and of Harmon at 512 px. Of MAR's original
(guidance 2.9, 256 AR steps, `constant:100`, the plain order of work) some AR steps were taken, and scaled: six of MAR-B
and four of MAR-H at batch 1, three at batch 4. *Annealed* is `linear:50-5` in 64 AR steps; *few steps* is `linear:12-3`
with `dpm-solver++-2` on `logsnr`, in stages of 24, 6 and 2 AR steps or in 34 at random where it says so; on Harmon they
likely lose (above). How often as fast they are depends on the processor: with AVX2 and other work beside it, stages
were [4.1 and 4.6 times](LOG.md#random-ar-steps-are-three-times-as-fast-as-annealing-not-four) as fast as annealed."""


def point_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    """The point of that name."""
    return next(each for each in report["points"] if each["name"] == name)


def original_of(report: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """The original setting that a point is held against: of what is guided, the guided one."""
    first = report["points"][0]
    return first if point["options"].get("guidance") == first["options"].get("guidance") else point_of(report, GUIDED)


def kept(point: dict[str, Any]) -> bool:
    """Whether no difference to its original is told even by an interval of its own, which is narrower."""
    own = to_original(point)
    return own["low"] <= 0 <= own["high"]


def to_original(point: dict[str, Any]) -> dict[str, Any]:
    """The difference to the original setting; of what is guided, to the guided original where it was drawn."""
    return point["to_base"] if (point["base"] or "").endswith("original") else point["to_original"]


def summary(reports: list[dict[str, Any]], closer: list[dict[str, Any]]) -> str:
    """Of each model its plan, the fastest setting that shows no loss, the fastest of these with guidance reused, and
    what `disa tune` found; at last the fastest that surely loses nothing, of the studies that look closer."""
    rows = []
    for report in reports:
        others = [each for each in report["points"][1:] if each["name"] != GUIDED]
        shown = [each for each in others if kept(each) and each["name"] != "plan"]
        shown.sort(key=lambda each: each["cpu_seconds_per_image"])
        plan = point_of(report, "plan")
        reusing = [each for each in shown[1:] if "residual" in each["name"]]
        for point in [plan, *shown[:1], *reusing[:1], *[each for each in shown[1:] if each["name"] == "tuned"]]:
            rows.append(_summed(report, point, report["model"]))
    for report in closer:
        crude = point_of(report, CRUDE)["energy_distance"]
        sure = [each for each in report["points"][1:] if kept(each) and known(each, crude)]
        fastest = sorted(sure, key=lambda each: each["cpu_seconds_per_image"])[:1]
        rows += [_summed(report, point, closer_title(report)) for point in fastest]
    columns = ["model", "setting", "times as fast", "times fewer operations"]
    return table([*columns, "less the original's", "unlike"], rows)


def known(point: dict[str, Any], crude: dict[str, float]) -> bool:
    """Whether an interval narrower than a tenth of what the crude setting makes unlike holds 0."""
    distance = point["energy_distance"]
    return distance["low"] <= 0 <= distance["high"] <= distance["low"] + TENTH * crude["value"]


def _summed(report: dict[str, Any], point: dict[str, Any], title: str) -> list[str]:
    original = original_of(report, point)
    return [
        title,
        point["name"],
        f"{original['cpu_seconds_per_image'] / point['cpu_seconds_per_image']:.1f}",
        f"{original['gflop_per_image'] / point['gflop_per_image']:.1f}",
        claim_cell(to_original(point)),
        _unlike(point, point_of(report, CRUDE)["energy_distance"]),
    ]


def closer_title(report: dict[str, Any]) -> str:
    """Of a study of few settings with more images."""
    return f"{report['model']}, {'guided, ' if 'guidance' in report['points'][0]['options'] else ''}closer"


def section(report: dict[str, Any], title: str) -> str:
    """The table of a model."""
    crude = point_of(report, CRUDE)["energy_distance"]
    first, last = report["seeds"]
    name = "Fréchet distance" if "frechet" in report["points"][0]["quality"] else "score"
    columns = [
        "setting",
        "options",
        "evaluations per row",
        "backbone tokens",
        "GFLOP",
        "CPU s per image",
        name,
        "less the original's",
        "less",
        "unlike",
    ]
    return "\n".join(
        [
            f"## {title}\n",
            f"{report['num_images']} images per setting, seeds {first}-{last}. They can show a difference of "
            f"{report['smallest_difference']:.2g} (power 0.8).\n",
            table(columns, [_row(point, crude) for point in report["points"]]),
            "",
        ]
    )


def _row(point: dict[str, Any], crude: dict[str, float]) -> list[str]:
    return [
        point["name"],
        options_cell(point["options"]),
        f"{point['evaluations_per_row']:.1f}",
        f"{point['backbone_tokens_per_image']:.0f}",
        f"{point['gflop_per_image']:.2f}",
        f"{point['cpu_seconds_per_image']:.3f}",
        f"{point['headline']['value']:.3f}",
        *claim_cells(point),
        _unlike(point, crude),
    ]


def _unlike(point: dict[str, Any], crude: dict[str, float]) -> str:
    """The energy distance to the original, as a share of that of the crude setting."""
    distance = point["energy_distance"]
    if distance is None:
        return ""
    shares = (f"{distance[part] / crude['value']:.0%}" for part in ("value", "low", "high"))
    value, low, high = (share.replace("-0%", "0%") for share in shares)
    return f"{value} [{low}, {high}]"


def scale(reports: list[dict[str, Any]]) -> str:
    """What `constant:5` loses, beside what a difference is known to."""
    told = []
    for report in reports:
        crude, plan = (point_of(report, name)["to_original"] for name in (CRUDE, "plan"))
        half = (plan["high"] - plan["low"]) / 2
        told.append(
            f"{crude['value']:+.3f} [{crude['low']:.3f}, {crude['high']:.3f}] on {report['model']}, where a plan's is "
            f"known to within {half:.3f}"
        )
    return f"In quality `constant:5` differs by {'; by '.join(told)} (each alone, 95 %)."


def composed() -> str:
    """Wall time and operations at real sizes."""
    runs = [
        run for name in COMPOSED if (FILE := RESULTS / name).exists() for run in json.loads(FILE.read_text())["runs"]
    ]
    return "\n\n".join(map(show, runs))


def main() -> None:
    reports, closer = (
        [json.loads(path.read_text()) for model in MODELS if (path := folder / f"confirm-{model}.json").exists()]
        for folder in (FOLDER, CLOSER)
    )
    parts = [INTRODUCTION.format(summary=summary(reports, closer), scale=scale(reports)), FINDINGS]
    parts += [section(report, report["model"]) for report in reports]
    parts += [section(report, closer_title(report)) for report in closer]
    if runs := composed():
        parts.append(f"## At real sizes, random weights\n\n{SIZES}\n\n{runs}\n")
    write_text(ROOT / "docs" / "accelerators.md", "\n".join(parts))


if __name__ == "__main__":
    main()
