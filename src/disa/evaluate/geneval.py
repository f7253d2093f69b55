"""What the official evaluators of GenEval (Ghosh et al. 2023) and GenEval 2 (Kamath et al. 2025) found, read back.

| written by | what is in it |
|---|---|
| GenEval's `evaluate_images.py` | JSON lines: of each image `tag` (its task), `prompt`, `correct`, `metadata`, ... |
| GenEval 2's `evaluation.py` | JSON: of each prompt a list of the scores of its questions, in [0, 1] |

Intervals are bootstraps that draw prompts again, with all of their images, GenEval's within each task: images of one
prompt are alike. P prompts, T tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disa.errors import DisaError
from disa.reading import parse_json, read_bounded, read_json
from disa.study.metrics import SHARE, Spread, resample, strata_of
from disa.values import counted, first_line, named, number

LONGEST = 1 << 28
OFFICIAL = 553, 4
"""Prompts of GenEval, and images of each."""
OFFICIAL_2 = 800
"""Prompts of GenEval 2."""
USUAL_RESAMPLES = 200


@dataclass(frozen=True)
class Task:
    """One of GenEval's tasks, by its tag."""

    share: Spread
    """Of images that are right."""
    num_right: int
    num_images: int


@dataclass(frozen=True)
class Results:
    """What `read_results` returns."""

    place: str
    benchmark: str
    num_prompts: int
    num_images: int
    scores: dict[str, Spread]
    """By name; the first is the one that is published."""
    tasks: dict[str, Task] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def are_results(place: Path) -> bool:
    """Whether this may be such a file, and no set of images."""
    return place.suffix.lower() in (".jsonl", ".json") and place.is_file()


def read_results(place: Path, num_resamples: int | None = None) -> Results:
    """Raises DisaError where the file is not of such an evaluator."""
    read = _geneval if place.suffix.lower() == ".jsonl" else _geneval2
    return read(place, num_resamples or USUAL_RESAMPLES)


# -- GenEval -------------------------------------------------------------------------------------------------------


def _geneval(place: Path, num_resamples: int) -> Results:
    """The overall score is the mean of the tasks' shares, as in GenEval's `summary_scores.py`."""
    tags, prompts = list[str](), dict[str, tuple[int, list[bool]]]()
    for tag, prompt, correct in _images(place):
        tags += [] if tag in tags else [tag]
        prompts.setdefault(f"{tag}\n{prompt}", (tags.index(tag), []))[1].append(correct)
    if not prompts:
        raise DisaError(f"{named(place)} holds no results: expected what GenEval's evaluate_images.py wrote.")
    task = torch.tensor([of for of, _ in prompts.values()])
    right = torch.tensor([float(sum(found)) for _, found in prompts.values()])
    total = torch.tensor([float(len(found)) for _, found in prompts.values()])

    def spread(statistic: Callable[..., float], *arrays: Tensor, strata: Tensor | None = None) -> Spread:
        return resample(statistic, *arrays, strata=strata, num_resamples=num_resamples).spread().within(*SHARE)

    strata = strata_of(task)
    scores = {
        "overall": spread(_mean_of_tasks, right, total, task, strata=strata),
        "images": spread(_share, right, total, strata=strata),
        "prompts": spread(lambda found: found.double().mean().item(), right > 0, strata=strata),
    }
    tasks = {}
    for i, tag in enumerate(tags):
        of = right[task == i], total[task == i]
        tasks[tag] = Task(spread(_share, *of), int(of[0].sum()), int(of[1].sum()))
    notes = []
    if len(prompts) != OFFICIAL[0] or (total != OFFICIAL[1]).any():
        notes.append(
            f"GenEval is {OFFICIAL[0]} prompts with {OFFICIAL[1]} images each: scores of "
            f"{counted(len(prompts), 'prompt')} with {counted(int(total.sum()), 'image')} do not compare with "
            "published ones."
        )
    return Results(str(place), "GenEval", len(prompts), int(total.sum()), scores, tasks, notes)


def _images(place: Path) -> Iterator[tuple[str, str, bool]]:
    """Of each image its task, what tells its prompt from others, and whether it is right."""
    content = read_bounded(place, LONGEST, "the results")
    for i, line in enumerate(content.splitlines()):
        if not line.strip():
            continue
        where = f"line {i + 1} of {named(place)}"
        try:
            found = parse_json(line)
        except ValueError as error:
            raise DisaError(f"{where} is no JSON: {first_line(error)}.") from error
        if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in ("tag", "prompt")):
            raise DisaError(f"{where} is no result of GenEval: expected an object with tag, prompt and correct.")
        if not isinstance(found.get("correct"), bool):
            raise DisaError(f"{where} does not say whether the image is correct: expected true or false.")
        yield found["tag"], json.dumps(found.get("metadata", found["prompt"]), sort_keys=True), found["correct"]


def _share(right: Tensor, total: Tensor) -> float:
    return (right.sum() / total.sum()).item()


def _mean_of_tasks(right: Tensor, total: Tensor, task: Tensor) -> float:
    """nanmean: without strata, a resample may have no prompt of a task."""
    shares = torch.bincount(task, weights=right.double()) / torch.bincount(task, weights=total.double())
    return shares.nanmean().item()


# -- GenEval 2 -----------------------------------------------------------------------------------------------------


def _geneval2(place: Path, num_resamples: int) -> Results:
    """Soft-TIFA of a prompt is the geometric mean of its questions' scores, that by question the arithmetic one."""
    found = read_json(place, "the results", LONGEST)
    if not isinstance(found, list) or not found or not all(isinstance(each, list) and each for each in found):
        raise DisaError(
            f"{named(place)} holds no results: expected those of GenEval 2's evaluation.py, of each prompt a list "
            "of scores."
        )
    what = f"a score in {named(place)}"
    scores = [torch.tensor([number(each, what, 0, 1) for each in prompt]) for prompt in found]
    means = {
        "Soft-TIFA GM": torch.stack([each.double().log().mean().exp() for each in scores]),
        "Soft-TIFA AM": torch.stack([each.double().mean() for each in scores]),
    }
    spreads = {
        name: resample(lambda each: each.mean().item(), of, num_resamples=num_resamples).spread().within(*SHARE)
        for name, of in means.items()
    }
    notes = ["Scores of each skill take the benchmark's data: see GenEval 2's soft_tifa_analysis.py."]
    if len(found) != OFFICIAL_2:
        notes.append(
            f"GenEval 2 is {OFFICIAL_2} prompts: scores of {counted(len(found), 'prompt')} do not compare with "
            "published ones."
        )
    return Results(str(place), "GenEval 2", len(found), len(found), spreads, notes=notes)
