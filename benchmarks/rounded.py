"""The embedded models with their weights rounded, against the weights that training wrote.

    python benchmarks/rounded.py measure --weights FOLDER   # -> results/rounded.json, and a picture to look at
    python benchmarks/rounded.py write --weights FOLDER     # the rounded weights -> the package

FOLDER holds MODEL.safetensors in float32, one for each model: the `model.safetensors` of `disa train MODEL`; and
digits-bits.safetensors, the `diffusion_pytorch_model.safetensors` of `disa train digits-bits`. Both versions compute in
float32 and draw the same seeds with the preset's settings. Only the weights differ, with BitDance those of the
autoencoder too.

All are written as bfloat16. Those of BitDance and of its autoencoder keep 4 of the 7 bits of the mantissa: a wheel is
compressed, and stays below 20 MB so.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import machine, note, publish
from safetensors.torch import load_file, save
from tables import EMBEDDED, RESULTS, ROOT
from torch import Tensor

from disa import Sampler, Samples
from disa.draw.pictures import grid, png
from disa.errors import DisaError
from disa.study.metrics import Resampled
from disa.tiny.judge import score
from disa.tiny.quality import measure_digits
from disa.tiny.scenes import held_out_captions

PACKAGE = ROOT / "src" / "disa" / "tiny" / "weights"
CODEC = "digits-bits"
MANTISSA = {"bitdance-digits": 4, CODEC: 4}
"""Bits that are kept of it where they are not all."""
SHOWN = 14
"""Images of each model in the picture, as drawn by either version."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("measure", "write"))
    parser.add_argument("--weights", type=Path, default=PACKAGE, help="the folder of float32 weights")
    parser.add_argument("--models", nargs="+", choices=(*EMBEDDED, CODEC), default=EMBEDDED)
    parser.add_argument("--digits", type=int, default=500, help="images of each model that draws digits")
    parser.add_argument("--captions", type=int, default=300, help="images of the model that draws from captions")
    parser.add_argument("--first-seed", type=int, default=800_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "rounded.json")
    parser.add_argument("--picture", type=Path, default=Path("rounded.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.action == "write":
        for model in options.models:
            round_file(options.weights / f"{model}.safetensors", PACKAGE / f"{model}.safetensors")
        return
    counts = {model: options.captions if model == "harmon-shapes" else options.digits for model in options.models}
    rows, strips = [], []
    for model, count in counts.items():
        row, strip = measured(model, options.weights, range(options.first_seed, options.first_seed + count))
        rows.append(row)
        strips.append(strip)
        options.picture.write_bytes(png(grid(torch.cat(strips), columns=SHOWN)))
        publish({"machine": machine(), "first_seed": options.first_seed, "models": rows}, options.out)


def round_file(source: Path, target: Path) -> None:
    """Write a file of float32 weights anew in bfloat16, with the bits that its name keeps."""
    weights, bits = load_file(source), MANTISSA.get(target.stem)
    if {value.dtype for value in weights.values()} != {torch.float32}:
        raise DisaError(f"{source} is rounded already: expected the float32 weights that training wrote.")
    rounded = weights if bits is None else {name: with_mantissa(value, bits) for name, value in weights.items()}
    target.write_bytes(save({name: value.bfloat16() for name, value in rounded.items()}, {"format": "pt"}))


def with_mantissa(values: Tensor, bits: int) -> Tensor:
    """The nearest values with so many bits of mantissa behind the leading one."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


def measured(model: str, weights: Path, seeds: Sequence[int]) -> tuple[dict[str, Any], Tensor]:
    """What rounding the weights of a model does to its images, and some of them, [2 SHOWN, 3, H, W] in [0, 1]."""
    exact_file = weights / f"{model}.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        rounded_file = Path(folder) / exact_file.name
        round_file(exact_file, rounded_file)
        sizes = [file.stat().st_size for file in (exact_file, rounded_file)]
        codec = weights / f"{CODEC}.safetensors" if model == "bitdance-digits" else None  # else that of the package
        exact, rounded = drawn(model, exact_file, seeds, codec), drawn(model, rounded_file, seeds)
    (quality, resampled), (rounded_quality, resampled_rounded) = (quality_of(part) for part in (exact, rounded))
    gaps = (exact.images - rounded.images).abs().flatten(1).mean(1)
    row = {
        "model": model,
        "images": len(seeds),
        "settings": exact.settings,
        "bytes": sizes,
        "quality": quality,
        "rounded_quality": rounded_quality,
        "difference": asdict((resampled_rounded - resampled).spread()),
        "mean_pixel_difference": gaps.mean().item(),
        "largest_pixel_difference_of_an_image": gaps.max().item(),
        "prompts_rewritten_otherwise": unequal(exact.rewritten, rounded.rewritten),
    }
    note(f"{model}: {resampled.value:.4g}, rounded {resampled_rounded.value:.4g}")
    strip = torch.cat([part.images[:SHOWN] for part in (exact, rounded)])
    # Models of digits and of shapes share a picture.
    strip = torch.nn.functional.interpolate(strip, size=(48, 48), mode="nearest").expand(-1, 3, -1, -1)
    return row, strip


def drawn(model: str, weights: Path, seeds: Sequence[int], codec: Path | None = None) -> Samples:
    sampler = Sampler.load(model, checkpoint=weights, vae=codec, device="cpu")
    assert all(value.dtype == torch.float32 for value in sampler.model.state_dict().values())
    if model == "harmon-shapes":
        return sampler.sample(prompts=held_out_captions(len(seeds), seed=seeds[0]), seeds=seeds)
    return sampler.sample(labels=[seed % 10 for seed in seeds], seeds=seeds)


def quality_of(samples: Samples) -> tuple[dict[str, Any], Resampled]:
    """The model's measures, and its headline on every resample: lower is better for digits, higher for shapes."""
    images = samples.images * 2 - 1
    if samples.prompts is not None:
        report = score(images, samples.prompts)
        return {"score": asdict(report.overall)}, report.resampled
    quality, resampled = measure_digits(images, torch.tensor(samples.labels))
    return asdict(quality), resampled


def unequal(first: list[str] | None, second: list[str] | None) -> int | None:
    """How many texts of two lists differ; None where there are none."""
    return None if first is None or second is None else sum(a != b for a, b in zip(first, second, strict=True))


if __name__ == "__main__":
    main()
