"""Quality measures of the embedded models, by the name that a model's defaults have for its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from disa.draw.inputs import Inputs
from disa.errors import DisaError
from disa.study.measures import FEWEST_IMAGES, Measure, Measured
from disa.study.metrics import POSITIVE, SHARE, Spread


class Digits:
    """The Fréchet distance to real digits on the features of the shipped classifier, and what that reads."""

    columns: tuple[str, ...] = ("Fréchet distance", "difference to the first", "labels read", "precision", "recall")

    def refusal(self, images: Tensor, inputs: Inputs) -> str:
        from disa.tiny.classifier import IMAGE_SIZE

        return _refusal(images, (1, IMAGE_SIZE, IMAGE_SIZE))

    def measure(self, images: Sequence[Tensor], inputs: Inputs) -> Measured:
        from disa.tiny.quality import measure_digits, yardsticks

        labels = None if inputs.labels is None else torch.tensor(inputs.labels)
        measured = [measure_digits(part * 2 - 1, labels) for part in images]
        qualities, distances = zip(*measured, strict=True)
        return Measured(qualities, distances, yardsticks(), POSITIVE)

    def cells(self, quality: Any, difference: Spread | None) -> list[str]:
        read = "" if quality.accuracy is None else f"{quality.accuracy.value:.1%}"
        return [
            str(quality.frechet), _gap(difference), read, f"{quality.precision:.3f}", f"{quality.recall:.3f}",
        ]  # fmt: skip

    def note(self, quality: Any, yardsticks: Any) -> str:
        return (
            f"Fréchet distance on the features of {quality.features}, 95 % bootstrap spread; "
            f"two halves of the real digits score {yardsticks.frechet:.2f} (std {yardsticks.frechet_std:.2f})."
        )


@dataclass(frozen=True)
class Score:
    """The share of right pictures in each category of prompts, and the mean of the categories."""

    overall: Spread
    categories: Mapping[str, Spread]
    num_images: int


class Shapes:
    """Whether pictures show the shapes, colours, counts and places of their prompts: GenEval's score."""

    columns: tuple[str, ...] = ("score", "difference to the first")

    def refusal(self, images: Tensor, inputs: Inputs) -> str:
        from disa.tiny.captions import parse
        from disa.tiny.scenes import IMAGE_SIZE

        try:
            for prompt in inputs.prompts or ():
                parse(prompt)
        except DisaError as error:
            return str(error).rstrip(".")
        return _refusal(images, (3, IMAGE_SIZE, IMAGE_SIZE))

    def measure(self, images: Sequence[Tensor], inputs: Inputs) -> Measured:
        from disa.tiny.judge import score

        reports = [score(part * 2 - 1, inputs.prompts or []) for part in images]
        scores = [
            Score(report.overall, {str(name): share for name, share in report.categories.items()}, report.num_images)
            for report in reports
        ]
        return Measured(scores, [report.resampled for report in reports], bounds=SHARE)

    def cells(self, quality: Any, difference: Spread | None) -> list[str]:
        return [str(quality.overall), _gap(difference)]

    def note(self, quality: Any, yardsticks: Any) -> str:
        return (
            f"score: the share of pictures that show their prompt, mean of {', '.join(quality.categories)}; "
            "95 % bootstrap spread. Each category's is in compare.json."
        )


MEASURES: dict[str, Measure] = {"digits": Digits(), "shapes": Shapes()}


def _refusal(images: Tensor, shape: tuple[int, int, int]) -> str:
    if tuple(images.shape[1:]) != shape:
        return f"expected images of {shape[1]}x{shape[2]}, found {images.shape[2]}x{images.shape[3]}"
    return "" if len(images) >= FEWEST_IMAGES else f"expected {FEWEST_IMAGES} images or more, found {len(images)}"


def _gap(difference: Spread | None) -> str:
    return "" if difference is None else f"{difference}{' (none shown)' if 0 in difference else ''}"
