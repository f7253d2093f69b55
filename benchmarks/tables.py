"""Write the tables of README.md and of pages in docs: `python benchmarks/tables.py` (`--check` only compares).

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. NAME is a result file under benchmarks/results, a part of
families.json, `tuned` or `of-families`, the recipes that ship, or `headline`: the paper's own numbers, which the
presets hold, above those of the result files.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = "mar-digits", "flowar-digits", "xar-digits", "bitdance-digits", "harmon-shapes"
"""The models that ship."""
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *(ROOT / "docs" / name for name in ("results.md", "certainty.md", "gpu.md", "tune.md")))


def table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] + ["---:"] * (len(headers) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def options_cell(options: dict[str, Any]) -> str:
    """Options of drawing; steps say what they are."""
    return ", ".join(f"{'' if name == 'steps' else f'{name} '}`{value}`" for name, value in options.items())


def spread(value: dict[str, float]) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def quality(result: dict[str, Any]) -> str:
    """What `disa compare` found, without the times."""
    rows = [
        [
            f"`{p['steps']}`",
            f"{p['evaluations_per_row']:.1f}",
            spread(p["quality"]["frechet"]),
            spread(p["difference"]) if p["difference"] else "",
            f"{p['quality']['accuracy']['value']:.1%}",
            f"{p['quality']['precision']:.2f}",
            f"{p['quality']['recall']:.2f}",
        ]
        for p in result["policies"]
    ]
    headers = ["steps", "evaluations per row", "Fréchet distance", "difference", "labels read", "precision", "recall"]
    return table(headers, rows)


def scores(result: dict[str, Any]) -> str:
    """What `disa compare` found of a model that draws scenes: GenEval's categories, and time."""
    categories = list(result["policies"][0]["quality"]["categories"])
    rows = [
        [
            f"`{p['steps']}`",
            f"{p['evaluations_per_row']:.1f}",
            f"{p['speedup']:.2f}x",
            spread(p["quality"]["overall"]),
            spread(p["difference"]) if p["difference"] else "",
            *(f"{p['quality']['categories'][name]['value']:.0%}" for name in categories),
        ]
        for p in result["policies"]
    ]
    return table(["steps", "evaluations per row", "speed-up", "score", "difference", *categories], rows)


def times(result: dict[str, Any]) -> str:
    """What `disa compare` or `disa demo` found of time."""
    rows = [
        [
            f"`{p['steps']}`",
            f"{p['evaluations_per_row']:.1f}",
            f"{p['seconds']:.1f}",
            f"{p['speedup']:.2f}x",
            f"{p['seconds_head'] / p['seconds']:.0%}",
            spread(p["difference"]) if p["difference"] else "",
        ]
        for p in result["policies"]
    ]
    headers = ["steps", "evaluations per row", "seconds", "speed-up", "head", "difference in Fréchet distance"]
    return table(headers, rows)


def architectures(result: dict[str, Any]) -> str:
    """The result of `benchmarks/mar.py`."""
    rows = [
        [
            f"{row['variant']} {row['dtype']}, batch {row['batch']}",
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['seconds_backbone']:.1f}",
            f"{row['seconds_head']:.1f}",
            f"{row['seconds_ratio']:.2f}x" if "seconds_ratio" in row else "",
            f"{row['share_of_ceiling']:.0%}",
            f"{row['memory']:.0f}",
        ]
        for row in result["rows"]
    ]
    headers = ["variant", "wall s", "CPU s", "backbone s", "head s", "faster", "of the machine's peak", "peak MiB"]
    return table(headers, rows)


def coverage(result: dict[str, Any]) -> str:
    """The result of `benchmarks/bootstrap_check.py`."""
    rows = [
        [what, case["of"], str(case["images"]), str(case["studies"]), _held(case["before"]), _held(case["now"])]
        for what, found in result["studies"].items()
        for case in found["cases"]
    ]
    headers = ["outcomes", "of", "images", "studies", "held before, rms z", "held now, rms z"]
    return table(headers, rows)


def _held(found: dict[str, float]) -> str:
    return f"{found['coverage']:.1%} ({found['coverage_error']:.1%}), {found['rms_z']:.2f} ({found['rms_z_error']:.2f})"


def annealing(found: dict[str, Any]) -> str:
    """That part of the result of `benchmarks/families.py`."""
    rows = list[list[str]]()
    for name, each in found.items():
        settings = {text: value for text, value in each.items() if isinstance(value, dict)}
        published, annealed = settings.values()
        rows.append(
            [
                name,
                ", ".join(f"{each['ar_steps']} x `{text}`" for text in settings),
                ", ".join(f"{value['evaluations']:,}".replace(",", " ") for value in settings.values()),
                ", ".join(f"{value['seconds']:,.0f}".replace(",", " ") for value in settings.values()),
                f"{published['seconds'] / annealed['seconds']:.2f}x",
                ", ".join(f"{value['seconds_head'] / value['seconds']:.0%}" for value in settings.values()),
            ]
        )
    headers = ["model", "published, annealed", "evaluations", "seconds", "faster", "of it head"]
    return table(headers, rows) if rows else "Not measured yet."


def launching(found: dict[str, Any]) -> str:
    """Another part of it."""
    rows = list[list[str]]()
    for name, each in found.items():
        heads = [value for value in each.values() if isinstance(value, dict)]
        steps, counts = (", ".join(str(value[key]) for value in heads) for key in ("denoising_steps", "head"))
        rows.append([name, str(each["ar_step"]), str(each["backbone"]), steps, counts, str(each["accept"])])
    headers = ["model", "AR step", "backbone", "denoising steps: published, annealed", "head", "accept"]
    return table(headers, rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "digits": quality,
    "demo": times,
    "flowar-digits": quality,
    "flowar-digits-times": times,
    "xar-digits": quality,
    "xar-digits-times": times,
    "harmon-shapes": scores,
    "mar-cpu": architectures,
    "bootstrap-check": coverage,
}


# -- the paper's numbers beside these ----------------------------------------------------------------------------------

IN_PAPER = (
    *("mar-base", "mar-large", "mar-huge", "flowar-large", "flowar-huge"),
    *("xar-base", "xar-large", "xar-huge", "harmon-1.5b"),
)
HERE = {
    "mar-digits": ("demo", "demo"),
    "flowar-digits": ("flowar-digits", "flowar-digits-times"),
    "xar-digits": ("xar-digits", "xar-digits-times"),
    "harmon-shapes": ("harmon-shapes", "harmon-shapes"),
}
"""The result files that an embedded model's quality and its time are taken from."""


def headline() -> str:
    """Annealing against the original steps: in the paper, and with the embedded models."""
    steps = "AR steps x denoising steps: original, annealed"
    headers = ["model", "measured by", steps, "speed-up", "quality", "difference"]
    return table(headers, [*map(_published, IN_PAPER), *map(_embedded, HERE)])


def _published(name: str) -> list[str]:
    from disa import PRESETS

    preset = PRESETS[name]
    original, annealed = preset.paper.original, preset.paper.disa
    assert original is not None
    assert annealed is not None
    by_geneval = original.geneval is not None
    time, score, label = ("seconds", "geneval", "GenEval") if by_geneval else ("seconds_per_image", "fid", "FID")
    steps = [
        f"{run.num_ar_steps or preset.defaults.num_ar_steps} x " + (f"`{run.steps}`" if run.steps else "annealed")
        for run in (original, annealed)
    ]
    return [
        preset.about.partition(",")[0].partition(":")[0],
        "the paper",
        ", ".join(steps),
        f"{getattr(original, time) / getattr(annealed, time):.2g}x",
        f"{label} {getattr(original, score):.2f}, {getattr(annealed, score):.2f}",
        "",
    ]


def _embedded(name: str) -> list[str]:
    of_quality, of_time = (json.loads((RESULTS / f"{result}.json").read_text()) for result in HERE[name])
    original, annealed = of_quality["policies"][:2]
    label, measure = ("distance", "frechet") if "frechet" in original["quality"] else ("score", "overall")
    num_ar_steps = of_quality["settings"]["num_ar_steps"]
    return [
        f"`{name}`",
        "disa",
        ", ".join(f"{num_ar_steps} x `{p['steps']}`" for p in (original, annealed)),
        f"{of_time['policies'][1]['speedup']:.2g}x",
        f"{label} " + ", ".join(f"{p['quality'][measure]['value']:.2f}" for p in (original, annealed)),
        spread(annealed["difference"]),
    ]


# -- recipes that ship -------------------------------------------------------------------------------------------------


def tuned() -> str:
    """Recipes that `disa tune` found, of the embedded models."""
    rows = list[list[str]]()
    for name in EMBEDDED:
        if content := _recipe(name):
            found = content["measured"]
            rows.append(
                [
                    name,
                    found["name"],
                    f"{found['evaluations_per_row']:.1f} ({found['original']['evaluations_per_row']:g})",
                    f"{found['speedup']:.1f}",
                    f"{found['loss']['value']:.2%}",
                    f"{found['bound']:.2%}",
                ]
            )
    return table(["model", "recipe", "evaluations per row (original)", "times as fast", "loss", "at most"], rows)


def of_families() -> str:
    """Recipes of published models, of what was measured on embedded ones."""
    rows = list[list[str]]()
    for family, title in {"mar": "MAR", "flowar": "FlowAR", "xar": "xAR", "harmon": "Harmon"}.items():
        if content := _recipe(family):
            found, own = content["measured"], content["model"]
            low, high = (found["difference"]["corrected"][side] for side in ("low", "high"))
            rows.append(
                [
                    title,
                    options_cell(content["settings"]),
                    f"{own}, {found['images']} images",
                    f"{found['speedup']:.1f}",
                    f"{found['difference']['value']:+.3f} [{low:.3f}, {high:.3f}]",
                ]
            )
    return table(["published", "recipe", "measured on", "times as fast there", "quality less the original's"], rows)


def _recipe(name: str) -> dict[str, Any] | None:
    from disa.draw.recipes import FAST
    from disa.weights.package import in_package

    place = in_package(f"{name}-{FAST}.json")
    return json.loads(place.read_text()) if place.is_file() else None


def rendered() -> Iterator[tuple[str, str]]:
    """Every table by its name."""
    yield "headline", headline()
    yield "tuned", tuned()
    yield "of-families", of_families()
    families = json.loads((RESULTS / "families.json").read_text())
    yield "annealing", annealing(families.get("annealing", {}))
    yield "launching", launching(families["launches"])
    for name, render in TABLES.items():
        yield name, render(json.loads((RESULTS / f"{name}.json").read_text()))


def filled(text: str) -> str:
    """The text with every table made anew."""
    for name, content in rendered():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def main(arguments: list[str]) -> int:
    old = {page: page.read_text() for page in PAGES}
    new = {page: filled(text) for page, text in old.items()}
    if arguments == ["--check"]:
        return 0 if new == old else 1
    for page, text in new.items():
        page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
