"""Graphs draw what eager mode draws, bit for bit: seen with a stand-in that does every recorded operator again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor

import small
from disa.core.generate import Drawing, generate_steps
from disa.core.noise import SeededNoise
from disa.core.orders import parse_order
from disa.core.problem import DenoisingProblem
from disa.core.request import Guidance, Prompts, Request
from disa.core.reuse import parse_reuse
from disa.core.solvers import SOLVERS, make_solver
from disa.core.steps import describe
from disa.core.texts import parse
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.pipeline.pipeline import Pipeline
from disa.runtime.recorder import Recorder
from disa.runtime.surroundings import undisturbed
from stand_in import HostCalls, StandIn

pytestmark = pytest.mark.usefixtures("one_thread")
LABELLED = "mar-digits", "flowar-digits", "xar-digits", "bitdance-digits", "bitdance"
MODELS = *LABELLED, "harmon-shapes"
TRAINED = {"trained MAR": "mar-digits", "trained FlowAR": "flowar-digits"}
NUM_AR_STEPS = {"trained MAR": 3}
ROOM = 1 << 40


@cache
def sampler(name: str) -> Sampler:
    """Of a small model: with random weights, or the embedded one where a name begins with `trained`."""
    if name in ("harmon-shapes", "nextstep"):
        pytest.importorskip("transformers")
    if name in TRAINED:
        return Sampler.from_pretrained(TRAINED[name], device="cpu")
    if name == "nextstep":
        return Sampler(small.NEXTSTEP, small.nextstep(), device="cpu")
    preset = small.BITDANCE if name == "bitdance" else small.shallow(name)
    return Sampler(preset, small.randomised(preset.build()), device="cpu")


def request_for(name: str, batch: int = 2, first: int = 3, guidance: Guidance | None = None, **options: Any) -> Request:
    own = sampler(name).defaults
    guidance = guidance or Guidance(own.guidance, own.ramp, own.interval)
    num_ar_steps = options.pop("num_ar_steps", NUM_AR_STEPS.get(name, own.num_ar_steps))
    if name in ("harmon-shapes", "nextstep"):
        ids = [[first + i, 2, 5] for i in range(batch)]
        prompts = Prompts.of(ids + [[1, 4, 4]] * batch)
        return Request(batch, num_ar_steps, guidance=guidance, prompts=prompts, **options)
    return Request(batch, num_ar_steps, (torch.arange(batch) + first) % 10, guidance, **options)


def recorder(tape: StandIn | None = None, most: int = ROOM) -> Recorder:
    return Recorder(tape or StandIn(), most)


def latents(
    name: str, begin: Any = Drawing, steps: Any = "linear:4-2", solver: Any = None, seed: int = 0, **options: Any
) -> tuple[Tensor, list[int]]:
    """What a batch becomes, and the evaluations, backbone tokens and operations of each AR step."""
    model, request, own = sampler(name).model, request_for(name, **options), sampler(name).defaults
    policy = parse(steps) if isinstance(steps, str) else steps
    solver = solver or make_solver(own.solver, own.grid)
    noise, made, step = SeededNoise(range(seed, seed + request.batch_size)), list[int](), None
    with undisturbed():
        for step in generate_steps(model, request, policy, solver, noise, begin=begin):
            made += [step.evaluations, step.backbone_tokens, step.operations]
        assert step is not None
        return model.finish(step.state).clone(), made


@cache
def expected_of(name: str, **options: Any) -> tuple[Tensor, list[int]]:
    """The same in eager mode."""
    return latents(name, **options)


def agrees(name: str, recording: Recorder, times: int = 3, **options: Any) -> None:
    """Batches of other seeds and labels are those of eager mode, the first ones and those from graphs."""
    for turn in range(times):
        asked = {"seed": 10 * turn, "first": 3 + turn} | options
        found, made = latents(name, recording.begin, **asked)
        expected, right = expected_of(name, **asked)
        assert torch.equal(found, expected), turn
        assert made == right


# -- every family, solver, policy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("steps", ["linear:4-2", "constant:2"])
def test_every_family_is_drawn_as_in_eager_mode(name: str, steps: str) -> None:
    tape = StandIn()
    recording = recorder(tape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agrees(name, recording, 2, steps=steps)
        captured, replays = tape.captures, tape.replays
        agrees(name, recording, 2, steps=steps)
    assert captured > request_for(name).num_ar_steps
    assert tape.captures == captured
    assert tape.replays > replays


def reusing(text: str) -> dict[str, Any]:
    return {"guidance": Guidance(2.0), "reuse": parse_reuse(text), "num_ar_steps": 9}


REUSES = [
    *(("mar-digits", reuse) for reuse in ("residual:2", "tokens:2", "residual:3+tokens:2")),
    ("harmon-shapes", "residual:2"),
]


@pytest.mark.parametrize(("name", "reuse"), REUSES)
def test_what_keeps_parts_of_the_backbone_is_drawn_as_in_eager_mode(name: str, reuse: str) -> None:
    tape = StandIn()
    recording, options = recorder(tape), reusing(reuse)
    turns = options["reuse"].turns([True] * options["num_ar_steps"])
    assert any(turn.adds or turn.light for turn in turns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agrees(name, recording, 2, **options)
        captured = tape.captures
        agrees(name, recording, 2, **options)
    assert tape.captures == captured > options["num_ar_steps"]


def test_other_orders_have_graphs_of_their_own() -> None:
    recording = recorder()
    for order in ("raster", "random"):
        agrees("mar-digits", recording, 3, order=parse_order(order))


@pytest.mark.parametrize("name", LABELLED)
def test_every_solver_is_drawn_as_in_eager_mode(name: str) -> None:
    process = sampler(name).model.process
    recording = recorder()
    agrees(name, recording, 1, steps="constant:1", batch=1)
    for solver in SOLVERS.values():
        if process.predicts in solver.takes:
            agrees(name, recording, 2, steps="constant:3", solver=solver, batch=1)


def uneven(problem: DenoisingProblem) -> Tensor:
    """Counts of each row, as a policy decides them on the host."""
    return 2 + torch.arange(problem.num_rows) % 2


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("steps", ["plan@3.5", "straight@3.5", "mlp:4-2", "variance:draws:3-2", uneven], ids=describe)
def test_every_policy_is_drawn_as_in_eager_mode(name: str, steps: Any) -> None:
    recording = recorder()
    if isinstance(steps, str):
        options: dict[str, Any] = {} if name != "trained MAR" else {"num_ar_steps": 3}
        settings = sampler(name).settings(steps=steps, **options)
        agrees(name, recording, 3, steps=settings.steps, solver=settings.solver)
    else:
        agrees(name, recording, 3, steps=steps)
    of_sessions = [session.rows.values() for session in recording.sessions.values()]
    replayed = [rows.steps.values() for each in of_sessions for rows in each if rows is not None]
    assert replayed or name != "trained MAR" or steps != uneven
    assert all(map(all, replayed))


@pytest.mark.parametrize("name", [*MODELS, "nextstep"])
def test_guidance_in_some_ar_steps_and_times(name: str) -> None:
    """NextStep is drawn without graphs: what its AR steps read is assigned anew."""
    guidance = Guidance(2.0, "linear", (0.1, 0.7), (0.3, 1.0))
    agrees(name, recorder(), 3, guidance=guidance, steps="constant:3")


def test_kept_tokens_are_kept() -> None:
    model, recording = sampler("mar-digits").model, recorder()
    rows, columns = model.config.grid
    side = model.config.patch_size
    mask = torch.zeros(2, rows, columns, dtype=torch.bool)
    mask[:, 1:4, 2:4] = True
    for turn in range(3):
        known = torch.full((2, model.config.latent_channels, rows * side, columns * side), 0.1 * turn)
        request = Request(2, 3, torch.tensor([1, turn]), Guidance(2.0), known, mask)
        found = []
        for begin in (Drawing, recording.begin):
            with undisturbed():
                turns = generate_steps(
                    model, request, parse("constant:2"), make_solver("ddpm"), SeededNoise([turn, 9]), begin=begin
                )
                *_, last = turns
                found.append(model.finish(last.state).clone())
        assert torch.equal(*found)


# -- batches ---------------------------------------------------------------------------------------------------------


def test_batches_of_different_sizes_have_graphs_of_their_own() -> None:
    tape = StandIn()
    recording = recorder(tape)
    for batch in (2, 1, 2, 1, 2, 1):
        agrees("mar-digits", recording, 1, batch=batch)
    assert len(recording.sessions) == 2


def test_a_shape_that_is_met_once_is_not_recorded() -> None:
    tape = StandIn()
    recording = recorder(tape)
    agrees("mar-digits", recording, 1)
    assert not tape.captures


@pytest.mark.parametrize("name", LABELLED)
def test_two_generations_take_turns(name: str) -> None:
    """The second one finds the graphs in use, and both are what they are alone."""
    recording = recorder()
    agrees(name, recording, 2)
    model, own = sampler(name).model, sampler(name).defaults

    def start(seed: int) -> Iterator[Any]:
        solver, noise = make_solver(own.solver, own.grid), SeededNoise([seed, seed + 1])
        request = request_for(name, first=seed)
        return generate_steps(model, request, parse("linear:4-2"), solver, noise, begin=recording.begin)

    with undisturbed():
        pairs = list(zip(start(1), start(2), strict=True))
        for seed, step in zip((1, 2), pairs[-1], strict=True):
            assert torch.equal(model.finish(step.state), latents(name, seed=seed, first=seed)[0])


@pytest.mark.parametrize("name", LABELLED)
def test_what_somebody_holds_stays_what_it_was(name: str) -> None:
    """Tokens, conditions and the state of a batch, though graphs have written over their memory since."""
    recording = recorder()
    agrees(name, recording, 2)
    model, own = sampler(name).model, sampler(name).defaults

    def steps(begin: Any, seed: int = 5, policy: str = "constant:2") -> list[Any]:
        solver, noise = make_solver(own.solver, own.grid), SeededNoise([seed, seed + 1])
        request = request_for(name, first=seed)
        with undisturbed():
            return list(generate_steps(model, request, parse(policy), solver, noise, begin=begin))

    steps(recording.begin, 6, "constant:3")
    steps(recording.begin, 6)  # whose ways are recorded after all poses
    found = steps(recording.begin)
    again = steps(recording.begin, 7)
    del again
    for mine, right in zip(found, steps(Drawing), strict=True):
        assert torch.equal(mine.tokens, right.tokens)
        assert torch.equal(mine.problem.position, right.problem.position)
        if right.problem.condition is not None:
            assert torch.equal(mine.problem.condition, right.problem.condition)
    assert torch.equal(model.finish(found[-1].state), model.finish(steps(Drawing)[-1].state))


def test_a_batch_from_graphs_is_checked_as_any_other() -> None:
    recording, name = recorder(), "harmon-shapes"
    agrees(name, recording, 3)
    with pytest.raises(DisaError, match="token ids must be 0 to 63, found 1 to 64"):
        latents(name, recording.begin, first=63)
    agrees(name, recording, 1)


def test_weights_that_were_replaced_are_seen() -> None:
    recording, model = recorder(), sampler("mar-digits").model
    agrees("mar-digits", recording, 3)
    before = model.mask_token
    expected_of.cache_clear()
    try:
        model.mask_token = torch.nn.Parameter(before * 1.5, requires_grad=False)
        agrees("mar-digits", recording, 3)
    finally:
        model.mask_token = before
        expected_of.cache_clear()


# -- faults and room -------------------------------------------------------------------------------------------------


def test_a_graph_that_gives_something_else_is_told_and_not_used() -> None:
    recording = recorder(StandIn(faulty=True))
    agrees("mar-digits", recording, 1)
    with pytest.warns(UserWarning, match="its replay differs from eager mode") as told:
        agrees("mar-digits", recording, 1)
    assert len({str(each.message) for each in told}) == len(told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agrees("mar-digits", recording, 2)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_capture_that_fails_is_told_and_drawn_in_eager_mode(first: int) -> None:
    tape = StandIn()
    tape.broken = lambda count: count == first
    recording = recorder(tape)
    agrees("mar-digits", recording, 1)
    with pytest.warns(UserWarning, match="drawn without a captured graph: operation not permitted"):
        agrees("mar-digits", recording, 1)
    agrees("mar-digits", recording, 2)


def test_what_was_not_used_for_longest_makes_room() -> None:
    tape = StandIn()
    recording = recorder(tape)
    agrees("mar-digits", recording, 2, batch=1)
    recording.most = recording.size + 1
    agrees("mar-digits", recording, 2, batch=2)
    assert tape.pools == 2
    assert len(recording.sessions) == 1
    agrees("mar-digits", recording, 2, batch=1)


def test_without_room_everything_is_drawn_in_eager_mode() -> None:
    tape = StandIn()
    recording = recorder(tape, 1)
    agrees("mar-digits", recording, 4)
    assert tape.captures <= 1


# -- host calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "most", "options"),
    [
        *((name, "linear:4-2", 3, {}) for name in MODELS),
        ("mar-digits", "linear:4-2", 3, reusing("residual:3+tokens:2")),
        ("trained MAR", uneven, 20, {}),
    ],
    ids=describe,
)
def test_a_batch_from_graphs_takes_few_calls_of_the_host(
    name: str, steps: Any, most: int, options: dict[str, Any]
) -> None:
    """Three in an AR step and 20 in a batch at most. Where rows have counts of their own, also one for each denoising
    step, and indices are sorted on the host, which counts here."""
    tape = StandIn()
    recording = recorder(tape)
    for _ in range(2):
        latents(name, recording.begin, steps, **options)
    replays, calls = tape.replays, HostCalls()
    model, request, own = sampler(name).model, request_for(name, **options), sampler(name).defaults
    solver = make_solver(own.solver, own.grid)
    with undisturbed(), calls:
        noise = SeededNoise([8, 9])
        policy = parse(steps) if isinstance(steps, str) else steps
        turns = generate_steps(model, request, policy, solver, noise, begin=recording.begin)
        *_, state = map(attrgetter("state"), turns)  # a loop would hold each turn while the next one is made
        model.finish(state)
    made = tape.replays - replays + len(calls.names)
    print(name, request.num_ar_steps, tape.replays - replays, len(calls.names), sorted(set(calls.names)))
    assert made <= most * request.num_ar_steps + 20


# -- the option ------------------------------------------------------------------------------------------------------


def test_a_sampler_draws_the_same_with_graphs_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = StandIn()
    monkeypatch.setattr("disa.draw.loaded.can_record", lambda _: True)
    monkeypatch.setattr("disa.draw.loaded.recorder_on", lambda _: recorder(tape))
    drawing, options = Sampler.from_pretrained("mar-digits", device="cpu"), {"num_ar_steps": 3, "steps": "linear:3-2"}
    with_graphs, without = (
        drawing.sample(3, range(6), batch_size=2, graphs=graphs, **options)  # pyright: ignore
        for graphs in ("auto", "off")
    )
    assert tape.replays > tape.captures > 3
    assert torch.equal(with_graphs.images, without.images)
    assert [step.evaluations for step in with_graphs.trace] == [step.evaluations for step in without.trace]
    assert deepcopy(drawing)._recorder is None


def test_a_pipeline_draws_the_same_with_graphs_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    tape, pipeline = StandIn(), Pipeline(Sampler.from_pretrained("mar-digits", device="cpu"))
    asked: dict[str, Any] = {"class_labels": [3] * 6, "num_inference_steps": 3, "num_diffusion_steps": "linear:3-2"}
    asked |= {"generator": torch.Generator().manual_seed(0), "output_type": "pt", "settings": Settings(batch_size=2)}
    with pytest.warns(UserWarning, match="graphs are captured on CUDA alone"):
        pipeline.enable_graphs()
    monkeypatch.setattr("disa.draw.loaded.can_record", lambda _: True)
    monkeypatch.setattr("disa.draw.loaded.recorder_on", lambda _: recorder(tape))
    with_graphs = pipeline(**asked).images
    replays = tape.replays
    assert replays > tape.captures > 3
    asked["settings"] = Settings(batch_size=2, graphs="off")
    without = pipeline(**asked).images
    assert tape.replays == replays
    assert torch.equal(with_graphs, without)


def test_graphs_that_are_asked_for_where_there_are_none_are_told_of() -> None:
    with pytest.warns(UserWarning, match="graphs are captured on CUDA alone: on cpu images are drawn without"):
        sampler("mar-digits").settings(graphs="on")
    with pytest.raises(DisaError, match="graphs must be auto, on or off, found 'yes'"):
        sampler("mar-digits").settings(graphs="yes")
