"""What only a GPU can show: `pytest -m cuda`. Skipped without one; `benchmarks/gpu.py` runs these tests first."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import small
from conftest import GOLDEN
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import DenoisingProblem
from disa.core.request import Guidance, Prompts, Request
from disa.core.solvers import make_solver
from disa.core.steps import describe, linear
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.runtime import fused
from disa.runtime.clock import clock_of
from disa.runtime.graphs import CudaTape, record
from disa.runtime.offload import offload
from disa.runtime.surroundings import undisturbed
from golden import replay

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

LABELLED = "mar-digits", "flowar-digits", "xar-digits", "bitdance-digits"
MODELS = *LABELLED, "harmon-shapes"
OPTIONS: dict[str, dict[str, Any]] = {
    "mar-digits": {"num_ar_steps": 8, "steps": "linear:8-3"},
    "flowar-digits": {"steps": "linear:8-4"},
    "xar-digits": {"steps": "linear:8-4"},
    "bitdance-digits": {"steps": "linear:8-4"},
    "harmon-shapes": {"num_ar_steps": 6, "steps": "linear:8-3", "rewrite": False},
}
SAMPLED = sorted(
    path.stem
    for path in GOLDEN.glob("*.json")
    if path.stem.startswith(("mar_", "flowar_", "xar_", "harmon_", "vae_"))
    and not path.stem.endswith(("_loss", "_i2t", "_quirk"))
)
GOLDEN_TOLERANCE = 2e-4
"""The largest difference of any recorded value, as a share of the largest value: fp32 without TF32."""
GOLDEN_BF16 = 0.08
"""Root mean square of the differences between what is drawn in bf16 and what is recorded, as a share of that of what is
recorded. On a CPU it is 0.004 to 0.036."""
SAME_SEEDS = {"fp32": 1e-3, "bf16": 0.1}
"""The same measure between batches of different sizes, and between fused operators and plain forms: kernels sum in
another order."""

IN_TF32 = 0.05
"""And between TF32 and fp32: its products have 11 bits, those of bf16 8."""
FEW_STEPS: dict[str, dict[str, Any]] = {
    "mar-digits": {"num_ar_steps": 3, "steps": "constant:2"},
    "flowar-digits": {"steps": "constant:2"},
    "xar-digits": {"steps": "constant:3"},
    "bitdance-digits": {"steps": "constant:2"},
    "harmon-shapes": {"num_ar_steps": 3, "steps": "constant:2", "rewrite": False},
}


@cache
def sampler(name: str, dtype: str = "fp32") -> Sampler:
    if name.startswith("harmon"):
        pytest.importorskip("transformers")
    return Sampler.from_pretrained(name, device=DEVICE, dtype=dtype)


def inputs(name: str, num_images: int) -> Inputs:
    asked = {"prompts": "a red circle"} if name.startswith("harmon") else {"labels": 3}
    return Inputs.paired(range(num_images), **asked)  # pyright: ignore


def latents(name: str, num_images: int = 8, dtype: str = "fp32", **options: Any) -> Tensor:
    """[N, C, H, W] of the first seeds."""
    drawing, given = sampler(name, dtype), OPTIONS[name] | options
    return drawing.start(inputs(name, num_images), output_type="latent", **given).result().latents


def drift(found: Any, expected: Any) -> float:
    """The same of recorded tensors; 0 of what is none."""
    tensors = isinstance(found, Tensor) and isinstance(expected, Tensor)
    return rms(found.detach().cpu(), expected) if tensors else 0.0


def rms(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the differences, as a share of that of the expected values."""
    return float((found - expected).double().norm() / expected.double().norm())


# -- recorded runs of the official code ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SAMPLED or ["(none)"])
def test_the_official_numbers_in_fp32(golden: Path, case: str) -> None:
    skip_without_packages(case)
    with undisturbed():
        differences = dict(replay(golden / f"{case}.json", DEVICE) or ())
    assert differences
    worst = max(differences, key=lambda name: differences[name])
    print(f"measured: {case} fp32 {differences[worst]:.2e} ({worst})")
    assert differences[worst] <= GOLDEN_TOLERANCE, worst


@pytest.mark.parametrize("case", [case for case in SAMPLED if not case.startswith("vae_")] or ["(none)"])
def test_bf16_stays_near_the_official_numbers(golden: Path, case: str) -> None:
    skip_without_packages(case)
    with undisturbed():
        tokens = dict(replay(golden / f"{case}.json", DEVICE, torch.bfloat16, drift) or ())["tokens"]
    print(f"measured: {case} bf16 {tokens:.2e}")
    assert tokens <= GOLDEN_BF16


def skip_without_packages(case: str) -> None:
    """Where a package that this family is built with is not installed."""
    for family, package in (("harmon", "transformers"), ("vae", "diffusers")):
        if case.startswith(family):
            pytest.importorskip(package)


# -- the same picture ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SAME_SEEDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_seed_gives_the_same_picture_in_any_batch(name: str, dtype: str) -> None:
    whole = latents(name, dtype=dtype, batch_size=8)
    for size in (3, 1):
        gap = rms(latents(name, dtype=dtype, batch_size=size), whole)
        print(f"measured: {name} {dtype} batches of {size} and 8 {gap:.2e}")
        assert gap <= SAME_SEEDS[dtype]


@pytest.mark.parametrize("dtype", SAME_SEEDS)
@pytest.mark.parametrize("name", MODELS)
def test_fused_operators_draw_what_plain_forms_draw(name: str, dtype: str) -> None:
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kernel that fails, or differs, is told so
        found = latents(name, dtype=dtype)
    assert any(operator.agreed for operator in operators())
    assert not [operator.name for operator in operators() if operator.refused]
    with fused.plain_forms():
        gap = rms(found, latents(name, dtype=dtype))
    print(f"measured: {name} {dtype} fused and plain {gap:.2e}")
    assert gap <= SAME_SEEDS[dtype]


@pytest.mark.parametrize("dtype", SAME_SEEDS)
@pytest.mark.parametrize("name", MODELS)
def test_graphs_draw_what_eager_mode_draws_bit_for_bit(name: str, dtype: str) -> None:
    """The first batch is drawn in eager mode, the second one recorded, the others replayed."""
    expected = latents(name, 8, dtype, batch_size=2)
    drawing = sampler(name, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a capture that fails, or differs, is told so
        found = latents(name, 8, dtype, batch_size=2, graphs="on")
    assert drawing._recorder is not None
    sessions = drawing._recorder.sessions.values()
    assert any(session.poses and session.ways for session in sessions)
    assert torch.equal(found, expected)


def uneven(problem: DenoisingProblem) -> Tensor:
    """Counts of each row, as a policy decides them on the host."""
    return 3 + torch.arange(problem.num_rows) % 3


@pytest.mark.parametrize("dtype", SAME_SEEDS)
@pytest.mark.parametrize("name", ["mar-digits", "harmon-shapes"])
def test_rows_with_counts_of_their_own_are_drawn_as_in_eager_mode(name: str, dtype: str) -> None:
    """Not bit for bit: graphs compute other numbers of rows, for which libraries choose kernels that sum otherwise."""
    drawing, options = sampler(name, dtype), {"batch_size": 2, "steps": uneven}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = latents(name, 8, dtype, graphs="on", **options)
    assert drawing._recorder is not None
    sessions = drawing._recorder.sessions.values()
    assert any(rows and rows.steps for session in sessions for rows in session.rows.values())
    gap = rms(found, latents(name, 8, dtype, **options))
    print(f"measured: {name} {dtype} counts of each row {gap:.2e}")
    assert gap <= SAME_SEEDS[dtype]


@pytest.mark.parametrize("name", LABELLED)
def test_policies_that_look_are_drawn_from_graphs(name: str) -> None:
    """Whether a row is near the edge between two counts may differ, so that only the look itself is held."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in ("straight", "variance:draws:4-2"):
            options: dict[str, Any] = {"num_ar_steps": None} if steps == "straight" else {}
            found = [latents(name, 6, graphs="on", batch_size=2, steps=steps, **options) for _ in range(3)]
            assert torch.isfinite(found[0]).all()
            assert torch.equal(found[1], found[2])  # both by replays alone


def test_a_capture_that_fails_leaves_the_next_one_possible() -> None:
    tape, x = CudaTape(torch.device("cuda", torch.cuda.current_device())), torch.ones(3, device=DEVICE)
    pool = tape.new_pool()
    with pytest.warns(UserWarning, match="a sum is drawn without a captured graph"):
        assert record(tape, pool, lambda: [x * float(x.sum())], [], "a sum") is None
    recording = record(tape, pool, lambda: [x * 2], [], "a product")
    assert recording is not None
    x.fill_(3)
    recording.replay()
    assert torch.equal(recording.returned[0], x * 2)


def test_a_replay_leaves_what_later_graphs_of_its_pool_have_returned() -> None:
    tape, x = CudaTape(torch.device("cuda", torch.cuda.current_device())), torch.ones(1 << 20, device=DEVICE)
    pool = tape.new_pool()
    first = record(tape, pool, lambda: [((x + 1) * (x + 2)).sum()], [], "the first")
    second = record(tape, pool, lambda: [x * 5], [], "the second")
    assert first is not None
    assert second is not None
    second.replay()
    first.replay()
    assert torch.equal(second.returned[0], x * 5)


@pytest.mark.parametrize("name", MODELS)
def test_tf32_rounds_where_it_is_asked_for_and_nowhere_else(name: str) -> None:
    expected = latents(name)
    gap = rms(latents(name, dtype="tf32"), expected)
    print(f"measured: {name} tf32 {gap:.2e}")
    assert 0 < gap <= IN_TF32
    assert torch.equal(latents(name), expected)


def operators() -> Iterator[fused.Operator]:
    return (each for each in vars(fused).values() if isinstance(each, fused.Operator))


def test_a_cpu_draws_the_same_in_fp32() -> None:
    there = Sampler.from_pretrained("mar-digits", device="cpu")
    expected = there.start(inputs("mar-digits", 2), output_type="latent", **OPTIONS["mar-digits"]).result().latents
    assert rms(latents("mar-digits", 2), expected) <= SAME_SEEDS["fp32"]


# -- a long run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", ["off", "on"])
@pytest.mark.parametrize("name", MODELS)
def test_memory_does_not_grow_with_the_number_of_batches(name: str, graphs: str) -> None:
    held = list[int]()
    options: dict[str, Any] = FEW_STEPS[name] | {"batch_size": 1, "graphs": graphs}
    run = sampler(name).start(inputs(name, 200), output_type="latent", **options)
    for _ in run.batches():
        held.append(torch.cuda.memory_allocated(DEVICE))
    assert len(held) == 200
    assert max(held[5:]) <= max(held[:5])


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_ctrl_c_in_the_middle_frees_the_batch_and_the_next_one_is_whole(graphs: str) -> None:
    name = "mar-digits"
    for _ in range(2):  # with graphs the first is drawn in eager mode, the second recorded
        latents(name, graphs=graphs)
    expected = latents(name, graphs=graphs)
    before = torch.cuda.memory_allocated(DEVICE)
    turns = list[int]()

    def stop() -> None:
        turns.append(1)
        if len(turns) == 3:
            signal.raise_signal(signal.SIGINT)

    interrupted(lambda: sampler(name).start(inputs(name, 8), graphs=graphs, **OPTIONS[name]).result(stop))
    assert len(turns) == 3
    assert torch.cuda.memory_allocated(DEVICE) <= before
    assert torch.equal(latents(name, graphs=graphs), expected)


def interrupted(work: Callable[[], object]) -> None:
    with pytest.raises(KeyboardInterrupt):
        work()


# -- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "graphs", "policy"),
    [*((name, graphs, linear(8, 4)) for name in LABELLED for graphs in ("off", "on")), ("mar-digits", "on", uneven)],
    ids=describe,
)
def test_nothing_waits_for_the_device_within_a_batch(name: str, graphs: str, policy: Any) -> None:
    """Once a batch has begun, kernels were held against their plain forms, and graphs were captured."""
    latents(name, 2)
    drawing = sampler(name)
    begin = drawing.beginning(graphs)
    settings = drawing.settings(**OPTIONS[name])
    request = Request(2, settings.num_ar_steps, torch.tensor([3, 5]), Guidance(2.0))
    noise = SeededNoise([0, 1], DEVICE, fused.normals)
    now = clock_of(DEVICE)
    with undisturbed():
        for _ in range(2):
            list(generate_steps(drawing.model, request, policy, settings.solver, noise, now, begin))
        steps = generate_steps(drawing.model, request, policy, settings.solver, noise, now, begin)
        done = [next(steps)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            done.extend(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(step.seconds_head > 0 and step.seconds_backbone > 0 for step in done)


def test_times_of_the_parts_are_within_the_whole() -> None:
    latents("mar-digits")
    drawn = sampler("mar-digits").start(inputs("mar-digits", 8), **OPTIONS["mar-digits"]).result()
    assert drawn.seconds_head > 0
    assert drawn.seconds_backbone > 0
    assert drawn.seconds_head + drawn.seconds_backbone + drawn.seconds_decode <= drawn.seconds


def test_offloaded_layers_draw_the_same_bits_in_the_memory_of_two() -> None:
    pytest.importorskip("transformers")
    config = replace(small.NEXTSTEP_CONFIG, llm_depth=9, llm_width=512, llm_hidden=2048)
    prompts, base = Prompts.of([[5, 6, 7], [3]]), torch.cuda.memory_allocated()

    def drawn(model: Any) -> Tensor:
        asked = Request(1, 6, guidance=Guidance(3.0, "constant"), prompts=prompts)
        noise, solver = SeededNoise([1], DEVICE), make_solver("euler-maruyama-ode")
        with torch.no_grad(), undisturbed():
            return model.finish(list(generate_steps(model, asked, linear(3, 2), solver, noise))[-1].state)

    expected = drawn(small.nextstep(config).to(DEVICE)).cpu()
    model = small.nextstep(config)
    layers = sum(weight.nbytes for weight in model.layers_in_turn.parameters())
    offload(model, model.layers_in_turn, DEVICE, torch.float32)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        assert torch.equal(drawn(model).cpu(), expected)
    assert torch.cuda.max_memory_allocated() - base < 0.5 * layers
