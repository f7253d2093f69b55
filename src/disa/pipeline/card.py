"""The card of a model on the hub, made from what is known of it: its spec, its defaults, what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.spec import Preset, Reported
from disa.reading import read_json
from disa.values import path, shown

LONGEST = 64 << 20
PAPER = "https://arxiv.org/abs/2505.20297"


def card(sampler: Sampler, measured: str | Path | None = None) -> str:
    """A README in the hub's form. measured: the `compare.json` of `disa compare`. Raises DisaError."""
    preset = sampler.preset
    kind = "text-to-image" if preset.prompts else "unconditional-image-generation"
    head = ["---", "library_name: disa", f"pipeline_tag: {kind}", f"tags: [disa, {preset.spec.family}]", "---"]
    parts = [
        f"# {preset.name}",
        f"{preset.about}.\n\nIt draws with [diffusion step annealing]({PAPER}): many denoising steps for the first "
        "tokens of an image, few for the last.",
        f"```python\n{_usage(preset)}\n```",
        "## The model",
        _table(["", ""], [[name, value] for name, value in _facts(sampler)]),
        "## How it is drawn if not asked otherwise",
        _table(["option", "value"], [[f"`{name}`", _plain(value)] for name, value in asdict(preset.defaults).items()]),
    ]
    if measured is not None:
        parts += ["## Measured with disa", *_measured(sampler, path(measured, "measured"))]
    if preset.paper.original is not None or preset.paper.disa is not None:
        parts += ["## Reported by its paper", _paper(preset)]
    return "\n".join(head) + "\n\n" + "\n\n".join(parts) + "\n"


def _usage(preset: Preset) -> str:
    asked = 'prompt="three green stars"' if preset.prompts else "class_labels=[3, 5]"
    return (
        "import disa\n\n"
        'pipeline = disa.Pipeline.from_pretrained("OWNER/NAME")  # this repository\n'
        f'images = pipeline({asked}, num_diffusion_steps="{preset.defaults.steps}").images'
    )


def _facts(sampler: Sampler) -> Iterator[tuple[str, str]]:
    spec, config = sampler.spec, sampler.model.config
    channels, height, width = sampler.image_shape
    yield "family", spec.family
    yield "parameters", f"{sum(value.numel() for value in sampler.model.state_dict().values()) / 1e6:.1f} M"
    yield "images", f"{height} x {width} pixels, {channels} channel{'s' if channels > 1 else ''}"
    if not sampler.preset.prompts:
        yield "classes", str(config.num_classes)
    yield "autoencoder", "none, its tokens are pixels" if spec.codec is None else type(spec.codec).__name__
    yield "SHA-256 of the weights as bfloat16", f"`{sampler.weights_hash}`"


def _measured(sampler: Sampler, file: Path) -> Iterator[str]:
    """A paragraph and a table. Raises DisaError where the file is of something else."""
    found = read_json(file, "what was measured", LONGEST)
    try:
        settings, policies = found["settings"], found["policies"]
        rows = [[f"`{row['steps']}`", f"{row['evaluations_per_row']:.1f}", f"{row['speedup']:.1f}x",
                 _spread(row["quality"]), _spread(row["difference"])] for row in policies]  # fmt: skip
        weights, count, device = settings["weights"], int(found["num_images"]), str(settings["device"])
    except (KeyError, TypeError, ValueError) as error:
        raise DisaError(f"{file} is no compare.json that `disa compare` wrote.") from error
    if weights != sampler.weights_hash:
        raise DisaError(f"{file} was measured with other weights ({shown(settings.get('model'))}): measure these.")
    yield f"{count} images of each step policy from the same seeds, on {device}; intervals are of 95 %."
    columns = ["denoising steps", "evaluations per token", "speed", "quality", "difference to the first"]
    yield _table(columns, rows)


def _spread(value: Any) -> str:
    """A number with its interval, or the first of those in an object."""
    if not isinstance(value, dict):
        return ""
    if "value" not in value:
        return next((told for each in value.values() if (told := _spread(each))), "")
    return f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"


def _paper(preset: Preset) -> str:
    rows = []
    for name, row in (("original", preset.paper.original), ("annealed", preset.paper.disa)):
        if row is not None:
            rows.append([name, *_reported(row)])
    columns = ["", "denoising steps", "AR steps", "FID", "GenEval", "seconds per image"]
    return _table(columns, rows) + f"\n\n{preset.paper.source}"


def _reported(row: Reported) -> list[str]:
    values = (row.steps, row.num_ar_steps, row.fid, row.geneval, row.seconds_per_image)
    return ["" if value is None else str(value) for value in values]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
