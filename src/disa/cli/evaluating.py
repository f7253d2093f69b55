"""`disa evaluate`: how good images are that are there already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disa.cli.options import AsJSON, Threads, path_option
from disa.cli.output import line, print_json, table
from disa.errors import DisaError
from disa.progress import progress
from disa.values import counted

if TYPE_CHECKING:
    import torch

    from disa.evaluate.evaluation import Evaluation
    from disa.evaluate.geneval import Results
    from disa.evaluate.images import Images
    from disa.evaluate.paired import Paired
    from disa.evaluate.reference import Reference
    from disa.evaluate.spaces import Space

NAMES = {"accuracy": "labels read", "judged": "score of the judge"}
MOST_CLASSES = 3


@dataclass(frozen=True)
class Judging:
    """By what images are judged."""

    against: Annotated[
        str | None,
        typer.Option(
            help="The reference: a folder or .npz file of images, a file of statistics (mu, sigma), or `digits`.",
            show_default=False,
        ),
    ] = None
    features: Annotated[
        str | None,
        typer.Option(
            help="digits-classifier (usual for 32x32), shapes-judge (of 48x48), inception:FILE, dinov2:FILE or "
            "efficientnet-lite0.",
            show_default=False,
        ),
    ] = None
    resamples: Annotated[
        int | None,
        typer.Option(
            min=20, max=10_000, help="Of the bootstrap; by default 200, and fewer where features and images are many."
        ),
    ] = None
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best there is by default.")] = None
    threads: Threads = None


def evaluate(
    images: Annotated[
        str,
        typer.Argument(
            help="A folder of images, as of `disa sample` or `disa bulk`, an .npz file in ADM's form, or results.jsonl "
            "of GenEval's evaluator."
        ),
    ],
    judging: Judging,
    other: Annotated[str | None, typer.Argument(help="With --paired: another run of the same seeds.")] = None,
    paired: Annotated[
        bool, typer.Option("--paired", help="How the second run differs from the first, seed by seed.")
    ] = False,
    statistics: Annotated[
        Path | None, path_option("--statistics", "A file to write the mean and covariance to, a reference for later.")
    ] = None,
    out: Annotated[Path | None, path_option("--out", "A JSON file to write all numbers to.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Distances of images to a reference, and what is read in them: how good they are, and how sure that is.

    Features are kept: what was seen once is not computed again, and an interrupted evaluation goes on.
    """
    from disa.evaluate.geneval import are_results, read_results
    from disa.evaluate.images import open_images
    from disa.evaluate.reference import open_reference
    from disa.evaluate.spaces import load_space, usual_space
    from disa.runtime import threads
    from disa.runtime.devices import pick_device

    if are_results(Path(images)):
        _check_alone(judging, other, paired, statistics)
        _check_file(out)
        results = read_results(Path(images), judging.resamples)
        _tell(results, out, as_json)
        return
    if paired != (other is not None):
        raise DisaError("--paired takes two runs, and without it there is one.")
    if paired and statistics is not None:
        raise DisaError("--statistics goes with one set of images: leave it or --paired out.")
    for path in (statistics, out):
        _check_file(path)
    threads.use(judging.threads)
    device = pick_device(judging.device)
    sets = [open_images(given) for given in (images, other) if given is not None]
    reference = None if judging.against is None else open_reference(judging.against)
    text = usual_space(sets[0].size) if judging.features is None else judging.features
    space = load_space(text, device)
    found = _evaluated(sets, space, reference, device, judging.resamples)
    if statistics is not None:
        _write_statistics(statistics, sets[0], space, device)
    _tell(found, out, as_json)


def _tell(found: Evaluation | Paired | Results, out: Path | None, as_json: bool) -> None:
    from disa.files import write_json

    report = found.report()
    if out is not None:
        write_json(out, report)
    if as_json:
        print_json(report)
    else:
        _print(found)


def _check_alone(judging: Judging, other: str | None, paired: bool, statistics: Path | None) -> None:
    """That results are given without what images take. Raises DisaError."""
    taken = {
        "--against": judging.against,
        "--features": judging.features,
        "--device": judging.device,
        "--threads": judging.threads,
        "--statistics": statistics,
        "--paired": paired or other,
    }
    if given := [name for name, value in taken.items() if value]:
        raise DisaError(f"results of GenEval are read as they are: leave {', '.join(given)} out.")


def _check_file(path: Path | None) -> None:
    """Before any work: whether a file can be written. Raises DisaError."""
    from disa.files import make_folder

    if path is None:
        return
    if path.is_dir():
        raise DisaError(f"{path} is a folder: expected a file to write.")
    make_folder(path.parent)


def _evaluated(
    sets: list[Images], space: Space, reference: Reference | None, device: torch.device, resamples: int | None
) -> Evaluation | Paired:
    from disa.evaluate.evaluation import evaluate
    from disa.evaluate.paired import evaluate_paired

    total = sum(map(len, sets)) + (len(reference.images) if reference and reference.images else 0)
    done = 0
    with progress("evaluating", total) as advance:

        def count(images: int) -> None:
            nonlocal done
            done += images
            advance(done)

        if len(sets) == 2:
            return evaluate_paired(sets[0], sets[1], space, reference, device, resamples, count)
        return evaluate(sets[0], space, reference, device, resamples, count)


def _write_statistics(path: Path, images: Images, space: Space, device: torch.device) -> None:
    from disa.evaluate.features import extract
    from disa.evaluate.reference import write_statistics

    write_statistics(path, extract(images, space, device).gaussian, space)


def _print(found: Evaluation | Paired | Results) -> None:
    from disa.evaluate.geneval import Results
    from disa.evaluate.paired import Paired

    if isinstance(found, Results):
        _print_results(found)
    elif isinstance(found, Paired):
        _print_paired(found)
    else:
        _print_evaluation(found)
    for note in found.notes:
        line(note)


def _print_evaluation(found: Evaluation) -> None:
    rows = list[list[str]]()
    if (distance := found.frechet) is not None:
        rows.append([distance.name, f"{distance.value}"])
        rows.append(["extrapolated to infinitely many images", f"{distance.extrapolated:.4g}"])
    if found.kernel is not None:
        rows.append([found.kernel_name, f"{found.kernel}"])
    if found.score is not None:
        rows.append([found.score_name, f"{found.score}"])
    if (near := found.neighbours) is not None:
        rows.append(["precision, recall", f"{near.precision:.3f}, {near.recall:.3f}"])
        rows.append(["density, coverage", f"{near.density:.3f}, {near.coverage:.3f}"])
    if found.accuracy is not None and found.class_accuracies is not None:
        rows.append(["labels read", f"{found.accuracy}"])
        worst = sorted(found.class_accuracies.items(), key=lambda each: each[1])[:MOST_CLASSES]
        rows.append(["least read", ", ".join(f"label {label}: {share:.0%}" for label, share in worst)])
    if found.judged is not None:
        rows.append(["score of the judge", f"{found.judged}"])
        rows += [[f"    {name}", f"{share}"] for name, share in (found.categories or {}).items()]
    against = "" if found.reference is None else f" against {found.reference}"
    table(f"{found.images}, {counted(found.num_images, 'image')}{against}", ["", found.features], rows)
    line("[..]: 95 % bootstrap spread at this number of images; numbers of other features or numbers do not compare.")


def _print_paired(found: Paired) -> None:
    rows = []
    for each in found.differences:
        certain = each.corrected
        told = f"{each.difference.value:.4g} [{certain.low:.4g}, {certain.high:.4g}]"
        rows.append(
            [
                NAMES.get(each.name, found.distance_name),
                f"{each.first}",
                f"{each.second}",
                f"{told}{'' if certain.shown else ' (none shown)'}",
            ]
        )
    title = f"{counted(found.num_images, 'image')} of each, paired by seed, on {found.features}"
    table(title, ["", *found.images, "second - first"], rows)


def _print_results(found: Results) -> None:
    rows = [[name, f"{score}", ""] for name, score in found.scores.items()]
    rows += [
        [f"    {tag}", f"{task.share}", f"{task.num_right} of {task.num_images}"] for tag, task in found.tasks.items()
    ]
    title = f"{found.place}, {counted(found.num_images, 'image')} of {counted(found.num_prompts, 'prompt')}"
    table(title, ["", found.benchmark, "right"], rows)
    line("[..]: 95 % bootstrap spread, prompts drawn again.")
