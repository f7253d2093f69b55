"""`disa tune`: the fastest settings that lose little, found on a model itself."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from disa.cli.calibration import MEASURED
from disa.cli.options import AsJSON, AskedInTurn, Out, Source, path_option
from disa.cli.output import line, print_json, table
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.progress import progress
from disa.values import command, counted

if TYPE_CHECKING:
    from disa.core.plans import StepPlan
    from disa.draw.inputs import Inputs
    from disa.draw.sampler import Sampler
    from disa.evaluate.spaces import Space
    from disa.models.spec import Preset
    from disa.study.tuned import Found, Tuned

PLAN, COUNTS = "plan.json", "counts.json"
DRAWN = "drawn"
"""A folder with the features of what was drawn, of each kind, from which an interrupted search goes on."""
MOST_TOGETHER = 512
OF_EACH = 16
"""Images of a label or prompt before it is the next one's turn: 15 times as many pairs as of two, and as many labels as
that leaves."""


def tune(
    source: Source,
    asked: AskedInTurn,
    settings: Settings,
    minutes: Annotated[float, typer.Option(min=1, max=10_000, help="How long to search and to confirm.")] = 20.0,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.0001,
            max=1,
            help="The largest loss: by what share images may be less like the original's than those "
            "are like each other.",
        ),
    ] = 0.005,
    features: Annotated[
        str | None,
        typer.Option(
            help="What images are compared by: digits-classifier (usual for 32x32), shapes-judge (usual for 48x48), "
            "efficientnet-lite0 (usual for others), inception:FILE or dinov2:FILE.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        path_option("--plan", "A plan that `disa calibrate` wrote; else the model's own, or one that is made first."),
    ] = None,
    out: Out = Path("tuned"),
    as_json: AsJSON = False,
) -> None:
    """Find the fastest settings whose images are like the original's, and write them as a recipe.

    Needs no labels and no reference: images are compared with those of the original setting, within each label or
    prompt. Steps, AR steps and their order, guidance and reuse of the backbone are tried alone, then together; what is
    left is confirmed on other seeds, and the best also measured in bf16. Options that are given are the original's.
    Draw with --recipe OUT/recipe.json. An interrupted search goes on where it was.
    """
    from disa import __version__
    from disa.files import json_bytes, make_folder, write_together
    from disa.runtime.devices import gains_by_bf16
    from disa.study.plots import tuned_plot
    from disa.study.tuning import in_dtype
    from disa.study.tuning import tune as run_tune

    if asked.seeds is not None or asked.per_label is not None or asked.per_prompt is not None:
        raise DisaError(
            f"tune takes seeds of its own, {OF_EACH} of each label or prompt in turn: leave seeds and numbers out."
        )
    if settings.steps is not None or settings.recipe is not None:
        raise DisaError("tune finds steps, beside those of the original: leave --steps and --recipe out.")
    sampler = source.load(lambda preset: _all_of(asked, preset).in_turn(preset, 1))
    base = sampler.settings(settings, steps=sampler.defaults.original)
    space = _space(features, sampler, sampler.shape_of(base.size))
    inputs = partial(_inputs, sampler, _all_of(asked, sampler.preset))
    make_folder(out)
    chosen = _plan(sampler, inputs, base, plan, out)
    keep = make_folder(out / DRAWN / sha256(space.identity.encode()).hexdigest()[:16])
    with progress("tuning, seconds", int(60 * minutes)) as advance:

        def on_turn(share: float) -> None:
            advance(int(60 * minutes * share))

        tuned = run_tune(sampler, inputs, space.features, base, minutes, chosen, tolerance, keep, on_turn)
    report = tuned.report() | {"model": sampler.preset.name, "features": space.name, "disa": __version__}
    files, halved = dict[str, bytes](), None
    if tuned.best is not None:
        found = _batched(sampler, inputs, base, tuned.best)
        about = {"model": sampler.preset.name, "weights": sampler.weights_hash, "features": space.name}
        files |= _recipe(settings, found, tuned, chosen, about | {"disa": __version__})
        if source.dtype == "fp32" and gains_by_bf16(sampler.device):
            halved = in_dtype(sampler, "bf16", inputs, space.features, base, tuned, keep)
            report["bf16"] = halved and halved.report()
    files["tuned.json"] = json_bytes(report)
    write_together(out, files, {"tuned.png": tuned_plot(report, f"{sampler.preset.name}, by {space.name}")})
    if tuned.best is not None:
        shutil.rmtree(out / DRAWN, ignore_errors=True)
    if as_json:
        print_json(report | {"out": str(out)})
    else:
        _print(tuned, halved, out)


def _all_of(asked: AskedInTurn, preset: Preset) -> AskedInTurn:
    """All classes, where none are given."""
    if preset.prompts or asked.labels is not None or asked.entries:
        return asked
    return replace(asked, labels=f"0-{preset.spec.architecture.num_classes - 1}")


def _inputs(sampler: Sampler, asked: AskedInTurn, count: int, first_seed: int) -> Inputs:
    """Some images of each label or prompt in turn: only within one are images compared."""
    each = asked.in_turn(sampler.preset, -(-count // OF_EACH), first_seed)
    return replace(each.part([i // OF_EACH for i in range(count)]), seeds=list(range(first_seed, first_seed + count)))


def _space(name: str | None, sampler: Sampler, shape: tuple[int, int, int]) -> Space:
    """The space of that name, or one that is at hand. Raises DisaError where it cannot take images of this shape."""
    from disa.evaluate.features import check_takes
    from disa.evaluate.spaces import load_space, space_at_hand

    space = load_space(name or space_at_hand(shape[1:]), sampler.device)
    check_takes(space, shape, "those of this model")
    return space


def _plan(
    sampler: Sampler, inputs: Callable[[int, int], Inputs], base: Settings, given: Path | None, out: Path
) -> StepPlan:
    """That of the file, the model's own, or one that is made now."""
    from disa.core.plans import read_plan
    from disa.draw.resolve import shipped_plan
    from disa.files import write_json
    from disa.study.planning import DEFAULT_BUDGET, NUM_IMAGES, make_plan, work
    from disa.study.planning import FIRST_SEED as PLANNING_SEED

    made, shipped = out / PLAN, shipped_plan(sampler)
    if given is None and shipped is not None:
        return read_plan(shipped, "plan")
    if given is None and not made.is_file():
        images = inputs(NUM_IMAGES, PLANNING_SEED)
        with progress("making a plan", work(base, len(images))) as advance:
            plan = make_plan(sampler, images, base, str(DEFAULT_BUDGET), keep=out / MEASURED, on_turn=advance)
        write_json(made, dict(plan.content))
        (out / MEASURED).unlink(missing_ok=True)
    return read_plan(given or made, f"plan:{given or made}")


def _batched(sampler: Sampler, inputs: Callable[[int, int], Inputs], base: Settings, best: Found) -> Settings:
    """All options of the best setting, with the batch size that is fastest."""
    from disa.study.tuning import FIRST_SEED, fastest_batch

    with warnings.catch_warnings(action="ignore"):
        found = sampler.settings(base, **best.options)
    return replace(found, batch_size=fastest_batch(sampler, inputs(MOST_TOGETHER, FIRST_SEED), found))


def _recipe(given: Settings, found: Settings, tuned: Tuned, plan: StepPlan, about: dict[str, Any]) -> dict[str, bytes]:
    """The files of a recipe: its own, and those that it names, which lie beside it. given: the options of the command.
    found: all options of the best setting."""
    from disa.core.steps import is_planned
    from disa.draw.recipes import FORMAT, RECIPE, parts_of
    from disa.files import json_bytes

    best, files = tuned.best, dict[str, bytes]()
    assert best is not None
    options = given.given() | best.options | {"batch_size": found.batch_size}
    if is_planned(options["steps"]):  # it has its own solver
        options = {name: value for name, value in options.items() if name not in ("solver", *parts_of("solver"))}
    with warnings.catch_warnings(action="ignore"):
        counts = found.steps.counts(found.num_ar_steps)
    if plan.source != "plan":
        files[PLAN] = json_bytes(dict(plan.content))
        options["steps"] = options["steps"].replace(plan.source, f"plan:{PLAN}")
    if len(counts) != len(plan.content["rows"]):  # the counts of a plan are those of its own AR steps
        files[COUNTS] = json_bytes({"counts": counts})
        options |= {"steps": f"table:{COUNTS}", "solver": "plan" if plan.source == "plan" else f"plan:{PLAN}"}
    measured = best.report() | {"tolerance": tuned.tolerance, "original": tuned.original.report()}
    content = {"format": FORMAT, **about, "settings": options, "measured": measured}
    return files | {RECIPE: json_bytes(content)}


def _print(tuned: Tuned, halved: Found | None, out: Path) -> None:
    from disa.draw.recipes import RECIPE

    original, best = tuned.original, tuned.best
    rows = [["original", f"{original.evaluations_per_row:.1f}", f"{original.seconds_per_image:.4f}", "1.0", "0 %", ""]]
    for found in [*tuned.front, *([] if halved is None else [halved])]:
        loss, bound = (f"{100 * value:.2f} %" for value in (found.loss.value, found.bound))
        cells = [f"{found.evaluations_per_row:.1f}", f"{found.seconds_per_image:.4f}", f"{found.speedup:.1f}"]
        rows.append([("-> " if found is best else "") + found.name, *cells, loss, bound])
    table(
        f"{counted(original.images, 'image')} of each, whose seeds chose nothing",
        ["settings", "evaluations/row", "s/image", "times as fast", "loss", "at most"],
        rows,
    )
    line(
        "Loss: by what share an image of a setting and one of the original differ more than two of one setting do. "
        f"Half of the original's own images beside the other half: {100 * tuned.chance.value:.2f} %."
    )
    if best is None:
        line(
            f"All are told apart from the original, or they or slower ones may lose more than {tuned.tolerance:.2%}: "
            "give more --minutes, and the same command goes on from here; or a larger --tolerance."
        )
        line(f"tuned.json and tuned.png are in {out}")
        return
    line(
        f"'At most' holds in 95 of 100 searches; -> is the fastest that {counted(original.images, 'image')} do not "
        f"tell from the original, of those where it and all slower ones lose at most {tuned.tolerance:.2%}."
    )
    line(f"draw with {command('--recipe', out / RECIPE)}; tuned.json and tuned.png are beside it")
    if halved is not None:
        line("With --dtype bf16 it is faster still, as the last row says.")
