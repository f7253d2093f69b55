"""`disa bulk`: very many images, drawn by several workers into shards."""

from __future__ import annotations

import random
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from dataclasses import replace as changed
from functools import partial
from io import StringIO
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Annotated, Any

import typer

from disa.cli.options import AsJSON, Asked, Source, path_option
from disa.cli.output import line, print_json, table
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.progress import progress, spoken
from disa.stopping import Stopped
from disa.values import command, counted, whole_number

if TYPE_CHECKING:
    from disa.bulk.crew import Crew
    from disa.bulk.driver import Driver, Progress
    from disa.bulk.job import Job, Record
    from disa.bulk.store import Shards
    from disa.bulk.worker import Looking, Ready
    from disa.draw.inputs import Inputs
    from disa.draw.sampler import Sampler

UNFINISHED = 1
"""The exit code where images failed, or a check found something."""
MOST_TOLD, SAMPLE = 8, 16


@dataclass(frozen=True)
class Crewing:
    """Who draws, and what is told of each image beside its file."""

    workers: Annotated[
        str,
        typer.Option(help="A number of Ray workers; auto: one per GPU or per 4 cores; 0: this process, without Ray."),
    ] = "auto"
    address: Annotated[
        str, typer.Option(help="Where Ray runs: local starts it here; auto, HOST:PORT or ray://HOST:PORT.")
    ] = "local"
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Images handed to a worker at a time, at most; the batch size by default.")
    ] = None
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="Features that workers compute of what they draw, kept for `disa evaluate`: its --features.",
            show_default=False,
        ),
    ] = None

    @property
    def number(self) -> int | None:
        """Of workers; None for as many as fit. Raises DisaError."""
        return None if self.workers == "auto" else whole_number(self.workers, "--workers", 0, 10_000)


@dataclass(frozen=True)
class Task:
    """What is done, and with which run."""

    resume: Annotated[Path | None, path_option("--resume", "Draw what is missing in this run.")] = None
    verify: Annotated[
        Path | None, path_option("--verify", "Check every file of this run, and draw some images again.")
    ] = None
    status: Annotated[Path | None, path_option("--status", "Tell how far this run is.")] = None
    export: Annotated[Path | None, path_option("--export", "Write this run to --out in another form.")] = None
    form: Annotated[
        str | None, typer.Option("--as", help="With --export: adm, png, geneval, geneval2 or webdataset.")
    ] = None
    sample: Annotated[
        int | None, typer.Option(min=0, help="With --verify: images that are drawn again; 16 by default.")
    ] = None
    out: Annotated[Path | None, path_option("--out", "Folder for a new run; with --export, what is written.")] = None

    @property
    def run(self) -> Path | None:
        """The run that is there already; None for a new one. Raises DisaError."""
        given = {
            name: path for name in ("resume", "verify", "status", "export") if (path := getattr(self, name)) is not None
        }
        if len(given) > 1:
            raise DisaError(f"give one of {' and '.join(f'--{name}' for name in given)}: each does something else.")
        if self.sample is not None and self.verify is None:
            raise DisaError("--sample goes with --verify: it is how many images are drawn again.")
        if (self.form is None) != (self.export is None):
            raise DisaError("--export and --as go together: the run, and the form to write it in.")
        if self.export is not None and self.out is None:
            raise DisaError("--export needs --out: the file or folder to write.")
        if self.export is None and (self.out is None) != bool(given):
            also = "leave --out out" if given else "give --out, or --resume, --verify, --status or --export"
            raise DisaError(f"a run is drawn into a folder of its own: {also}.")
        return next(iter(given.values()), None)


def bulk(
    source: Source, asked: Asked, settings: Settings, crewing: Crewing, task: Task, as_json: AsJSON = False
) -> None:
    """Draw very many images with several workers, into shards of a thousand.

    Whatever interrupts it, --resume draws what is missing, with any number of workers and on any machine, and the
    images are the same. --verify checks a run, --status tells how far it is, --export writes it for others.
    """
    run = task.run
    if run is None:
        assert task.out is not None
        _begin(task.out, source, asked, settings, crewing, as_json)
        return
    if asked != Asked():
        raise DisaError(f"what is drawn is said by {run / 'run.json'}: leave labels, prompts and seeds out.")
    if task.resume is not None:
        _resume(run, source, settings, crewing, as_json)
        return
    if given := _given(crewing):
        raise DisaError(f"these options are of drawing alone: leave {', '.join(f'--{name}' for name in given)} out.")
    if task.verify is not None:
        _verify(run, source, settings, SAMPLE if task.sample is None else task.sample, as_json)
    else:
        _refuse_options(run, source, settings)
        _status(run, as_json) if task.status is not None else _export(run, task, as_json)


# -- drawing -------------------------------------------------------------------------------------------------------


def _begin(out: Path, source: Source, asked: Asked, settings: Settings, crewing: Crewing, as_json: bool) -> None:
    from disa.bulk.job import Job, check_new
    from disa.draw.recipes import with_recipe

    check_new(out)
    entries, number = asked.entries, crewing.number
    sampler = _here(source, number).load(asked.inputs)
    lists = {name: value for name, value in asked.lists(sampler.preset).items() if name != "prompts"}
    told = with_recipe(settings, sampler).given()  # a recipe's file may change before the run is done
    job = Job(places(source), told, lists, entries)
    _draw(out, job, sampler, None, source, crewing, as_json)


def _resume(run: Path, source: Source, settings: Settings, crewing: Crewing, as_json: bool) -> None:
    from disa.bulk.job import Record

    record = Record.read(run)
    job = _overridden(record.job, source, settings)
    sampler = job.load(_here(source, crewing.number).device, source.threads)
    _draw(run, job, sampler, record, source, crewing, as_json)


def _draw(
    folder: Path,
    job: Job,
    sampler: Sampler,
    record: Record | None,
    source: Source,
    crewing: Crewing,
    as_json: bool,
) -> None:
    """record: of the run that is gone on with; None for a new one."""
    from disa.bulk.crew import Alone
    from disa.bulk.driver import Driver, Progress
    from disa.bulk.job import Record
    from disa.bulk.report import write_report
    from disa.bulk.store import Store
    from disa.bulk.worker import Worker
    from disa.draw.settings import digest
    from disa.evaluate.features import Drawn

    inputs = job.inputs
    whole = sampler.start(inputs, job.settings())
    about, chunk = whole.about(), crewing.chunk or whole.settings.batch_size
    if record is not None:
        record.check_same(about, digest(about), folder)
    asked = record or Record(job, about, digest(about), len(inputs))
    first, looking = inputs.part([0]), _looking(crewing.evaluate)
    alone = Alone(Worker(job, source.device, source.threads, looking, sampler), first)
    store = Store(folder, asked, record is None, Drawn(alone.began[0].looks) if looking else None)
    try:
        if not len(store.missing()):
            done = Progress(len(inputs), len(inputs), chunk, finished=True)
        else:
            crew = alone if crewing.number == 0 else _on_ray(job, first, alone.began[0], source, crewing, looking)
            done = _watched(Driver(store, crew, inputs, chunk))
            write_report(store, done)
    except (KeyboardInterrupt, Stopped) as stopped:
        again = command("disa", "bulk", "--resume", folder)
        told = f"stopped with {store.num_there} of {counted(len(inputs), 'image')} drawn: go on with {again}"
        raise Stopped(told, stopped.code - 128 if isinstance(stopped, Stopped) else SIGINT) from stopped
    finally:
        store.close()
    _print(folder, done, as_json)


def _on_ray(job: Job, first: Inputs, ready: Ready, source: Source, crewing: Crewing, looking: Looking | None) -> Crew:
    """ready: what this process found."""
    from disa.bulk.on_ray import RayCrew

    return RayCrew(job, first, ready, crewing.number, crewing.address, source.device, looking)


def _looking(features: str | None) -> Looking | None:
    """What workers compute of each image. Weights are found from another folder too."""
    from disa.evaluate.features import looking

    if features is None:
        return None
    name, colon, place = features.partition(":")
    return partial(looking, f"{name}:{Path(place).expanduser().absolute()}" if colon else features)


def _watched(driver: Driver) -> Progress:
    """Draw to the end, and tell how far it is. Its workers are ended, whatever happens."""
    # Ray tells of workers that died on standard output, which is for what the command says.
    with progress("drawing", driver.progress.num_images) as advance, redirect_stdout(StringIO()):

        def tell(now: Progress) -> None:
            if now.drawn:  # loading the model says nothing of the time that is left
                drawing = sum(worker["state"] == "drawing" for worker in now.workers)
                advance(now.num_there, f"{now.images_per_second:.1f} images/s, {counted(drawing, 'worker')}")

        try:
            return driver.run(tell)
        finally:
            driver.crew.close()


def _print(folder: Path, done: Progress, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json(asdict(done) | {"out": str(folder)})
    else:
        line(
            f"{counted(done.num_there, 'image')} of {done.num_images} are in {folder}, {done.drawn} of them drawn in "
            f"{done.seconds:.1f} s ({done.images_per_second:.1f} images/s)"
        )
        for id, reason in list(done.failures.items())[:MOST_TOLD]:
            line(f"image {id} could not be drawn: {reason}")
        if len(done.failures) > MOST_TOLD:
            line(f"and {len(done.failures) - MOST_TOLD} more: see {folder / 'report.html'}")
    if done.failures:
        raise typer.Exit(UNFINISHED)


# -- the run that is there -----------------------------------------------------------------------------------------


def _verify(run: Path, source: Source, settings: Settings, count: int, as_json: bool) -> None:
    from disa.bulk.crew import Alone
    from disa.bulk.job import Record
    from disa.bulk.store import Shards
    from disa.bulk.verify import check_files, check_some
    from disa.bulk.worker import Worker

    record = Record.read(run)
    shards, inputs = _quiet(Shards(run, record)), record.job.inputs
    found, there = check_files(shards, inputs)
    if count and len(there):
        job = _overridden(record.job, source, settings)
        worker = Worker(job, source.device, source.threads)
        ready = Alone(worker, inputs.part([0])).began[0]
        record.check_same(ready.about, ready.digest, run)
        check_some(shards, worker, inputs, there.tolist(), count, found, random.randrange(2**32))
    if as_json:
        print_json(found.to_json())
    else:
        alike = "equal to the bit" if found.exact else "within the tolerance"
        line(f"{found.num_images - found.missing} of {counted(found.num_images, 'image')} are there and whole")
        line(f"{counted(len(found.redrawn), 'image')} drawn again: {len(found.redrawn) - len(found.differing)} {alike}")
        if found.redrawn:
            before = " and ".join(map(_machine, found.drawn_with))
            line(f"the run was drawn with {before}, these with {_machine(found.drawn_again_with)}")
        told = found.damaged + [f"image {id} differs by {by:.2f} levels of 255" for id, by in found.differing.items()]
        told += [f"missing: {', '.join(found.spans)}"] if found.missing else []
        told += [f"{counted(found.doubled, 'image')} there more than once"] if found.doubled else []
        for each in told[:MOST_TOLD]:
            line(each)
        if len(told) > MOST_TOLD:
            line(f"and {len(told) - MOST_TOLD} more: --json tells all")
        if found.damaged:
            line(f"remove a damaged file, and {command('disa', 'bulk', '--resume', run)} draws its images again")
    if not found.is_good:
        raise typer.Exit(UNFINISHED)


def _machine(told: dict[str, Any]) -> str:
    """What images were drawn with, in words. A run of an earlier version does not tell the instructions."""
    instructions = told.get("instructions", "unknown")
    return f"{told['device']} and torch {told['torch']} ({instructions} instructions)"


def _status(run: Path, as_json: bool) -> None:
    from disa.bulk.job import Record
    from disa.bulk.report import status
    from disa.bulk.store import Shards

    told = status(Shards(run, Record.read(run)))
    if as_json:
        print_json(told)
        return
    state = "being drawn" if told["running"] else "whole" if told["there"] == told["num_images"] else "stopped"
    line(f"{told['there']} of {counted(told['num_images'], 'image')} in {run}: {state}")
    if (last := told["last"]) is None:
        return
    rate = last["drawn"] / last["seconds"] if last["seconds"] else 0.0
    left = (told["num_images"] - told["there"]) / rate if rate and told["running"] else None
    time = "" if left is None else f", about {spoken(left)} left"
    line(f"{rate:.1f} images/s{time}, {counted(len(last['failures']), 'image')} failed")
    headers = ["worker", "machine", "state", "images", "s/image", "deaths"]
    table("", headers, [_row(worker, told["running"]) for worker in last["workers"]])


def _row(worker: dict[str, Any], running: bool) -> list[str]:
    each = f"{worker['seconds'] / worker['images']:.3f}" if worker["images"] else "-"
    state = worker["state"] if running else "ended"
    return [worker["name"], worker["machine"], state, str(worker["images"]), each, str(worker["deaths"])]


def _export(run: Path, task: Task, as_json: bool) -> None:
    from disa.bulk.export import export
    from disa.bulk.job import Record
    from disa.bulk.store import Shards

    assert task.out is not None
    assert task.form is not None
    record = Record.read(run)
    written = export(_quiet(Shards(run, record)), task.form, task.out)
    if as_json:
        print_json({"out": str(written), "num_images": record.num_images, "as": task.form})
    else:
        line(f"{counted(record.num_images, 'image')} are in {written}")


# -- what is given -------------------------------------------------------------------------------------------------


def _here(source: Source, workers: int | None) -> Source:
    """Where this process has the model: workers need the GPU for theirs."""
    return source if workers == 0 else changed(source, device="cpu")


def places(source: Source) -> dict[str, Any]:
    """Where the weights are, so that another process finds them from another folder."""
    from disa.bulk.job import SOURCE
    from disa.models.registry import PRESETS

    def place(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value.absolute())
        is_folder = isinstance(value, str) and value not in PRESETS and Path(value).expanduser().is_dir()
        return str(Path(value).expanduser().absolute()) if is_folder else value

    return {name: place(getattr(source, name)) for name in SOURCE}


def _overridden(job: Job, source: Source, settings: Settings) -> Job:
    """The job with what is given anew: files may lie elsewhere, and the batch size changes no image. Whatever
    changes images is found by the digest."""
    usual, here = Source(), places(source)
    moved = {name: here[name] for name in here if getattr(source, name) != getattr(usual, name)}
    return changed(job, source=job.source | moved, options=job.options | settings.given())


def _refuse_options(run: Path, source: Source, settings: Settings) -> None:
    if given := [*_given(source), *settings.given()]:
        raise DisaError(f"nothing is drawn, and all is said by {run / 'run.json'}: leave {', '.join(given)} out.")


def _given(options: Source | Crewing) -> list[str]:
    """Names of options that are not left as they are."""
    usual = type(options)()
    return [each.name for each in fields(options) if getattr(options, each.name) != getattr(usual, each.name)]


def _quiet(run: Shards) -> Shards:
    """Raises DisaError where files come and go meanwhile."""
    from disa.files import is_written

    if is_written(run.folder):
        raise DisaError(f"{run.folder} is being drawn into: wait until that ends.")
    return run
