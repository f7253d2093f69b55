"""What a batch launches on a GPU, and where it would wait for one: seen on the meta device, whose tensors are empty.

`launches.json` keeps the counts; `python tests/test_launches.py` writes it anew: where they fall, or rise for a reason
that the commit names.
"""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from launches import META, Launches, attention_in_one_launch, draw, on_meta, request_for, solver_of  # noqa: E402  # pyright: ignore

import small  # noqa: E402
from disa.core.constants import kept_in  # noqa: E402
from disa.core.noise import SeededNoise  # noqa: E402
from disa.core.orders import parse_order  # noqa: E402
from disa.core.plans import read_plan  # noqa: E402
from disa.core.problem import DenoisingProblem, Look  # noqa: E402
from disa.core.request import Guidance, Request  # noqa: E402
from disa.core.reuse import parse_reuse  # noqa: E402
from disa.core.solve import ways_of  # noqa: E402
from disa.core.solver import Solver  # noqa: E402
from disa.core.solvers import SOLVERS, grid_for  # noqa: E402
from disa.core.spending import Spending  # noqa: E402
from disa.core.steps import describe  # noqa: E402
from disa.core.texts import parse  # noqa: E402
from disa.core.work import Work  # noqa: E402
from disa.policies.adaptive import policy  # noqa: E402
from disa.policies.probe import FittedProbe  # noqa: E402
from disa.runtime import fused  # noqa: E402
from disa.runtime.graphs import Recording  # noqa: E402
from disa.runtime.sessions import Session  # noqa: E402
from disa.weights.package import in_package  # noqa: E402
from stand_in import tensors  # noqa: E402

FILE = Path(__file__).with_name("launches.json")
PLANNED = "mar-digits", "flowar-digits", "xar-digits", "harmon-shapes"
"""Models with a plan in the package."""
PRESETS = {name: small.shallow(name) for name in (*PLANNED, "bitdance-digits")} | {
    "bitdance": small.BITDANCE,
    "nextstep": small.NEXTSTEP,
    "emigm": small.EMIGM,
    "unipic": small.UNIPIC,
}
"""Small models: one of each family."""
MODELS = tuple(PRESETS)
STEPS = "linear:3-2"


@cache
def model(name: str) -> Any:
    if PRESETS[name].prompts:
        pytest.importorskip("transformers")
    return on_meta(PRESETS[name])


def drawn(
    name: str, steps: Any, solver: Solver | None = None, request: Request | None = None, watched: Any = None
) -> None:
    """Go through a batch of two images in few AR steps."""
    preset = PRESETS[name]
    draw(
        model(name),
        request or request_for(preset, 2),
        parse(steps) if isinstance(steps, str) else steps,
        solver or solver_of(preset),
        watched or nullcontext(),
    )


def launched(name: str) -> Launches:
    launches = Launches()
    drawn(name, STEPS, watched=launches)
    return launches


def found(name: str) -> dict[str, int]:
    """What is kept of a model."""
    launches = launched(name)
    with fused.plain_forms():
        return {"launches": launches.total, "copies": launches.copies, "plain": launched(name).total}


@pytest.mark.parametrize("name", MODELS)
def test_no_more_is_launched_than_before(name: str) -> None:
    kept, here = json.loads(FILE.read_text())[name], found(name)
    assert all(here[kind] <= kept[kind] for kind in kept), f"{here}: see the docstring of this file"


@pytest.mark.parametrize("name", MODELS)
def test_fused_operators_save_launches(name: str) -> None:
    """Harmon saves least: its language model has none."""
    kept = json.loads(FILE.read_text())[name]
    assert kept["launches"] < 0.6 * kept["plain"]


# -- nothing waits for the device --------------------------------------------------------------------------------------


def uneven(problem: DenoisingProblem) -> Tensor:
    """Counts of each row, as a policy decides them on the host."""
    return 2 + torch.arange(problem.num_rows) % 3


def looking(problem: DenoisingProblem) -> Look:
    return Look(lambda change: torch.full((len(change),), 2))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("steps", ["cosine:3-2", "two-stage:3-2", uneven], ids=describe)
def test_no_policy_that_decides_on_the_host_waits(name: str, steps: Any) -> None:
    drawn(name, steps)


@pytest.mark.parametrize("name", MODELS)
def test_no_solver_waits(name: str) -> None:
    process = model(name).process
    fitting: list[Any] = [solver for solver in SOLVERS.values() if process.predicts in solver.takes]
    assert len(fitting) >= 4
    for solver in fitting:
        drawn(name, "constant:2", solver)


@pytest.mark.filterwarnings("ignore:.*is stretched")
@pytest.mark.parametrize("name", PLANNED)
def test_no_plan_waits(name: str) -> None:
    plan = read_plan(in_package(f"{name}-plan.json"), "plan")
    drawn(name, plan.steps(plan.bounds[0]), plan.solver)
    drawn(name, looking, plan.solver)


@pytest.mark.parametrize("name", MODELS)
def test_no_guidance_waits(name: str) -> None:
    """Where it acts in some AR steps and some denoising times alone."""
    base = request_for(PRESETS[name], 2)
    guidance = Guidance(2.0, "linear", (0.1, 0.7), (0.3, 1.0))
    request = Request(2, base.num_ar_steps, base.labels, guidance, prompts=base.prompts)
    drawn(name, "constant:4", request=request)


@pytest.mark.parametrize("name", ["mar-digits", "harmon-shapes"])
def test_no_kept_token_waits(name: str) -> None:
    rows, columns = model(name).config.grid
    base, side = request_for(PRESETS[name], 2, 3), model(name).config.patch_size
    known = torch.zeros(2, model(name).config.latent_channels, rows * side, columns * side)
    mask = torch.zeros(2, rows, columns, dtype=torch.bool)
    mask[:, 1:4, 2:4] = True
    request = Request(2, 3, base.labels, base.guidance, known, mask, base.prompts)
    drawn(name, "constant:2", request=request)


class Watching(TorchDispatchMode):
    """Writes down operators on the meta device with the shapes that they give; told of one that is given a tensor of
    the host, it raises where that would spoil a capture."""

    def __init__(self, capturing: bool) -> None:
        super().__init__()
        self.capturing, self.seen = capturing, list[tuple[str, list[Any]]]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        made = [each for each in tensors(out) if each.is_meta]
        given = tensors((args, list((kwargs or {}).values())))
        from_host = bool(made) and any(not each.is_meta for each in given)
        if self.capturing and from_host:
            raise AssertionError(f"{function} reads memory of the host, which a replay would not find")
        if made and not from_host:
            self.seen.append((str(function), [each.shape for each in made]))
        return out


class Captured:
    """In place of a recorder: works are gone through twice, as for a capture, and nothing is recorded."""

    def __init__(self) -> None:
        self.works = list[str]()

    def recorded(self, work: Any, written: Any, what: str, changed: bool = False) -> Recording:
        first, second, constants = Watching(False), Watching(True), dict[Any, Tensor]()
        with kept_in(constants):
            with first:
                work()
            with second:
                returned = work()
        assert first.seen == second.seen, what
        self.works.append(what)
        return Recording(lambda: None, returned, constants, 0, Work())


@pytest.mark.parametrize("name", [name for name in MODELS if name != "nextstep"])
@pytest.mark.parametrize(
    ("order", "reuse"), [("random", "none"), ("halton", "none"), ("checkerboard", "none"), ("random", "residual:3")]
)
def test_what_is_captured_reads_nothing_of_the_host_and_keeps_its_shapes(name: str, order: str, reuse: str) -> None:
    """A copy from the host would fail in a capture, or be copied again from memory that is gone."""
    if (order, reuse) != ("random", "none") and name not in ("mar-digits", "harmon-shapes"):
        pytest.skip("this family draws in one order, and keeps nothing")
    base, drawing, captured = request_for(PRESETS[name], 2), model(name), Captured()
    few = 9 if reuse != "none" else base.num_ar_steps if base.num_ar_steps < 6 else 3
    kept, guidance = parse_reuse(reuse), Guidance(2.0)
    request = replace(base, num_ar_steps=few, guidance=guidance, order=parse_order(order), reuse=kept)
    noise, solver = SeededNoise([0, 1], META, fused.normals), solver_of(PRESETS[name])
    with torch.no_grad(), attention_in_one_launch():
        session = Session(captured.recorded, lambda _: True, drawing, request, noise)
        state = session.begin(request, noise)
        for ar_step in range(few):
            problem, posed = session.pose(ar_step, state)
            assert posed is not None
            tokens, _ = session.along(posed, solver, grid_for(solver, problem.process, 3)) or (None, 0)
            assert tokens is not None
            session.along_each(posed, solver, ways_of(uneven(problem), problem, solver), None)
            drawing.accept(state, tokens)
    assert "the beginning of a batch" in captured.works
    assert len(captured.works) > few + 1


SCORES = "mlp", "variance:draws", "variance:head", "variance:probe"


@pytest.mark.parametrize("name", ["mar-digits", "flowar-digits"])
@pytest.mark.parametrize("score", SCORES)
def test_a_policy_that_looks_waits_where_it_reads_its_score(name: str, score: str) -> None:
    """Counts are decided on the host: that is one wait in each AR step, and the only one."""
    preset = PRESETS[name]
    probe = FittedProbe.read(in_package(f"{preset.name}-probe.safetensors"))
    if score == "variance:head" and not model(name).process.learns_variance:
        pytest.skip("this family learns no variance")
    adaptive = policy(score, probe, Spending(10, 6))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor") as stopped:
        drawn(name, adaptive)
    frames = [frame for frame in traceback.extract_tb(stopped.value.__traceback__) if "/disa/" in frame.filename]
    assert Path(frames[-1].filename).parent.name == "policies"
    assert ".cpu()" in (frames[-1].line or "")


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: found(name) for name in MODELS}, indent=1) + "\n")
