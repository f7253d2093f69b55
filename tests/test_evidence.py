"""Evidence against closed forms: of Gaussian data the variance, the best prediction and the whole path are known.

For data N(m, s^2) the state of a flow at t is N((1 - t) m, r(t)^2) with r(t)^2 = (1 - t)^2 s^2 + t^2, and the
probability-flow ODE keeps u = (x - (1 - t) m) / r(t): its velocity is r'(t) u - m. A diffusion is the same flow in
other coordinates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import small
import test_families as families
from command import Command, complaint, only_whole
from disa.core.diffusion import CosineDiffusion
from disa.core.flow import FlowMatching
from disa.core.noise import SeededNoise
from disa.core.problem import Bound, DenoisingProblem, Field, Prediction, TimeGrid
from disa.core.solve import solve
from disa.core.solvers import make_solver
from disa.draw.inputs import Inputs
from disa.draw.pictures import foresight_sheet
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.study.evidence import (
    EXPECTED,
    Curve,
    Effort,
    Evidence,
    TokenMLP,
    at_the_start,
    measure,
    work,
)
from disa.study.paths import straightness, variance
from disa.study.plots import evidence_plot
from disa.study.ranks import spearman
from fields import Said

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN = torch.tensor([0.5, -1.0, 0.2, 2.0], dtype=torch.float64)
DEVIATION = torch.tensor([0.3, 1.0, 0.7, 1.7], dtype=torch.float64)
DIFFUSION, FLOW = CosineDiffusion(), FlowMatching()
PROCESSES = [pytest.param(process, id=process.predicts) for process in (DIFFUSION, FLOW)]
QUICK = Effort(draws=3, draw_steps=3, varied=3, path_steps=4, fit_images=6)


@dataclass
class GaussianField(Field):
    """The exact network for data N(MEAN, deviation^2). states: what it was called with."""

    process: CosineDiffusion | FlowMatching
    deviation: Tensor
    states: list[Tensor] = field(default_factory=list)

    def on(self, grid: TimeGrid) -> Bound:
        def evaluate(x: Tensor, denoise_step: int) -> Prediction:
            self.states.append(x.clone())
            level, state = float(grid.levels[denoise_step]), x.double()
            if isinstance(self.process, FlowMatching):
                off, spread = state - (1 - level) * MEAN, (1 - level) ** 2 * self.deviation**2 + level**2
                return Prediction((off * (level - (1 - level) * self.deviation**2) / spread - MEAN).to(x.dtype))
            off, spread = state - level**0.5 * MEAN, level * self.deviation**2 + 1 - level
            return Prediction(((1 - level) ** 0.5 * off / spread).to(x.dtype))

        return Said.on(grid, evaluate)

    def select(self, rows: Tensor) -> GaussianField:
        return self


def problem_of(
    process: CosineDiffusion | FlowMatching, deviation: Tensor = DEVIATION, num_rows: int = 40
) -> DenoisingProblem:
    rows = torch.arange(num_rows)
    return DenoisingProblem(GaussianField(process, deviation), process, tuple(MEAN.shape), rows, rows, 0, 4)


def noise_of(num_rows: int = 40) -> SeededNoise:
    return SeededNoise(range(num_rows))


def known_paths(start: Tensor, first: float) -> tuple[Tensor, Tensor]:
    """S and chord over length of the exact paths that are at `start` at t = first, by fine sums in float64."""
    t = torch.linspace(first, 0, 20_001, dtype=torch.float64)[:, None]
    t = (t[1:] + t[:-1]) / 2
    spread = ((1 - t) ** 2 * DEVIATION**2 + t**2).sqrt()
    slope = (t - (1 - t) * DEVIATION**2) / spread
    unit = (start - (1 - first) * MEAN) / ((1 - first) ** 2 * DEVIATION**2 + first**2).sqrt()
    bends, ratios = [], []
    for u in unit:
        velocity = slope * u - MEAN
        mean = velocity.mean(0)
        bends.append((velocity - mean).square().mean())
        ratios.append(mean.norm() / velocity.norm(dim=1).mean())
    return torch.stack(bends), torch.stack(ratios)


# -- straightness --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
def test_straightness_of_gaussian_paths(process: CosineDiffusion | FlowMatching) -> None:
    problem, noise = problem_of(process, num_rows=8), noise_of(8)
    start = noise.initial(problem)
    grid, t = process.flow_grid(200)
    first = start.double()
    if process is DIFFUSION:
        first = first / (grid.levels[0] ** 0.5 + (1 - grid.levels[0]) ** 0.5)
    bends, ratios = known_paths(first, float(t[0]))
    errors = []
    for num_steps in (50, 200):
        found, chords = straightness(problem, start, num_steps)
        errors.append(((found - bends) / bends).abs().mean().item())
        torch.testing.assert_close(chords, ratios, rtol=0.02 * 50 / num_steps, atol=0)
    assert errors[1] < 0.02
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize("process", PROCESSES)
def test_the_path_to_a_single_datum_is_straight(process: CosineDiffusion | FlowMatching) -> None:
    problem = problem_of(process, torch.zeros(4, dtype=torch.float64))
    bends, ratios = straightness(problem, noise_of().initial(problem), 30)
    assert bends.abs().max() < 1e-8
    torch.testing.assert_close(ratios, torch.ones_like(ratios))


def test_a_diffusion_goes_where_ddim_goes() -> None:
    problem, other = problem_of(DIFFUSION), problem_of(DIFFUSION)
    start, (grid, _) = noise_of().initial(problem), DIFFUSION.flow_grid(30)
    straightness(problem, start, 30)
    make_solver("ddim").run(other.field.on(grid), other, grid, start.clone(), torch.empty(0))
    assert isinstance(problem.field, GaussianField)
    assert isinstance(other.field, GaussianField)
    torch.testing.assert_close(torch.stack(problem.field.states), torch.stack(other.field.states))


def test_the_grid_of_a_diffusion_is_even_in_the_time_of_a_flow() -> None:
    grid, t = DIFFUSION.flow_grid(50)
    assert grid.num_evaluations == 50
    assert (grid.network_times[0], t[-1]) == (950, 0)
    np.testing.assert_allclose(np.diff(t), -t[0] / 50, rtol=0.1)
    signal, sigma = np.sqrt(grid.levels), np.sqrt(1 - grid.levels)
    np.testing.assert_allclose(t, sigma / (signal + sigma), rtol=1e-12)


def test_rows_of_many_tokens_are_measured_token_by_token() -> None:
    problem = replace(problem_of(FLOW), shape=(3, 4))
    bends, ratios = straightness(problem, noise_of().initial(problem), 5)
    assert bends.shape == ratios.shape == (40, 3)


# -- variance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "solver"), [(DIFFUSION, "ddim"), (FLOW, "euler"), (FLOW, "euler-maruyama")])
def test_variance_of_gaussian_draws(process: CosineDiffusion | FlowMatching, solver: str) -> None:
    problem, turns = problem_of(process), []
    found = variance(problem, make_solver(solver, "uniform"), 60, noise_of(), 50, lambda: turns.append(1))
    # 40 rows of 50 draws: a standard deviation of 3 %, beside what 60 denoising steps leave.
    torch.testing.assert_close(found.mean(0), DEVIATION**2, rtol=0.15, atol=0)
    assert len(turns) == 50
    assert sum(map(len, problem.field.states)) == 40 * 60 * 50  # pyright: ignore


def test_variance_is_the_unbiased_one_of_the_draws() -> None:
    problem, solver, noise = problem_of(FLOW), make_solver("heun"), noise_of()
    draws = torch.stack([solve(problem, solver, 4, noise.branch(number)).tokens for number in range(5)])
    torch.testing.assert_close(variance(problem, solver, 4, noise, 5), draws.double().var(0))


def test_branches_of_noise_are_normal_and_independent() -> None:
    problem, noise = problem_of(FLOW, num_rows=5000), noise_of(5000)
    parts = torch.stack([noise.initial(problem), *(noise.branch(i).initial(problem) for i in range(3))]).flatten(1)
    torch.testing.assert_close(torch.corrcoef(parts), torch.eye(4), atol=0.03, rtol=0)
    assert torch.equal(noise.branch(2).initial(problem), SeededNoise(range(5000)).branch(2).initial(problem))
    one = SeededNoise([7, 3]).branch(5).initial(problem_of(FLOW, num_rows=2))
    moved = replace(problem_of(FLOW, num_rows=1), position=torch.tensor([1]))
    assert torch.equal(one[1], SeededNoise([3]).branch(5).initial(moved)[0])


# -- predictability ------------------------------------------------------------------------------------------------


def test_a_velocity_field_predicts_the_mean_at_the_start() -> None:
    found = at_the_start(problem_of(FLOW), noise_of())
    torch.testing.assert_close(found.double(), MEAN.expand(40, -1), atol=1e-5, rtol=0)


def test_the_mlp_learns_what_can_be_known() -> None:
    random = torch.Generator().manual_seed(0)
    z = torch.randn(40, 64, 6, generator=random)
    known = torch.stack([z[..., 0] * z[..., 1], z[..., 2].tanh()], dim=-1)
    tokens = known + 0.3 * torch.randn(known.shape, generator=random)
    before = torch.random.get_rng_state()
    mlp = TokenMLP(z[:32], tokens[:32])
    assert torch.equal(before, torch.random.get_rng_state())
    problem = replace(problem_of(DIFFUSION, num_rows=8 * 64), condition=z[32:].flatten(0, 1))
    with torch.no_grad():
        found = mlp(problem, noise_of())
        again = TokenMLP(z[:32], tokens[:32])(problem, noise_of())
    assert torch.equal(found, again)
    assert (found - known[32:].flatten(0, 1)).square().mean() < 0.05
    assert 0.08 < (found - tokens[32:].flatten(0, 1)).square().mean() < 0.14


# -- correlation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_is_that_of_scipy(ties: bool) -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    for _ in range(20):
        a, b = (random.normal(size=9).round(0 if ties else 6) for _ in range(2))
        assert spearman(a.tolist(), b.tolist()) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_spearman_of_a_constant_is_none() -> None:
    assert spearman([1, 2, 3], [5, 5, 5]) == spearman([1], [2]) == 0


def test_a_curve_has_mean_and_quartiles() -> None:
    curve = Curve.of([torch.arange(5.0).double(), torch.arange(5.0).double() * 2])
    assert (curve.mean, curve.low, curve.high, curve.correlation) == ([2, 4], [1, 2], [3, 6], 1)


# -- whole models --------------------------------------------------------------------------------------------------


def flow_sampler(name: str) -> tuple[Sampler, Inputs]:
    return families.sampler(families.shrunk(name)), Inputs([5, 3, 1 << 40, 7, 8], [1, 2, 3, 4, 5])


def harmon_sampler(folder: Path) -> tuple[Sampler, Inputs]:
    pytest.importorskip("transformers")
    from test_harmon import PRESET, random_weights, tokenizer

    words = tokenizer(folder, "<|im_start|>", "<|im_end|>", "<|endoftext|>")
    prompts = ["a cat", "two red dogs", "a cat", "a", "a blue square left of a circle"]
    sampler = Sampler(PRESET, random_weights(PRESET.spec.architecture), device="cpu", tokenizer=words)
    return sampler, Inputs([5, 3, 1 << 40, 7, 8], prompts=prompts, negative_prompt="a dog")


@pytest.fixture(params=["mar", "emigm", "flowar-digits", "xar-digits", "bitdance-digits", "harmon"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Sampler, Inputs]:
    if request.param == "mar":
        return small.sampler(), Inputs([5, 3, 1 << 40, 7, 8], [1, 2, 3, 4, 5])
    if request.param == "emigm":
        emigm = Sampler(small.EMIGM, small.randomised(small.EMIGM.build()), device="cpu")
        return emigm, Inputs([5, 3, 1 << 40, 7, 8], [1, 2, 3, 4, 5])
    return harmon_sampler(tmp_path) if request.param == "harmon" else flow_sampler(request.param)


def test_every_family_is_measured(model: tuple[Sampler, Inputs]) -> None:
    sampler, wanted = model
    settings, turns = sampler.settings(steps="constant:3", batch_size=2), []
    state = torch.random.get_rng_state()
    found = measure(sampler, wanted, settings, QUICK, lambda: turns.append(1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(turns) == len(work(sampler, wanted, settings, QUICK))

    # The images are those of `sample`, and so is what they are said to have cost.
    plain = sampler.start(wanted, settings).result()
    assert torch.equal(found.samples.images, plain.images)
    assert found.samples.evaluations == plain.evaluations
    report = json.loads(json.dumps(found.report()))
    assert report["seeds"] == wanted.seeds
    assert list(report["curves"]) == list(EXPECTED)
    for curve in found.curves.values():
        assert len(curve.mean) == settings.num_ar_steps
        assert np.isfinite([curve.mean, curve.low, curve.high]).all()
    np.testing.assert_allclose(
        found.curves["r2"].mean, 1 - np.array(found.curves["error"].mean) / found.token_variance, rtol=1e-9
    )
    assert min(found.curves["variance"].mean) > 0
    assert all(0 < chord <= 1 for chord in found.curves["chord"].mean)
    check_foresight(found)

    # Batches are work, not meaning.
    alone = measure(sampler, wanted, replace(settings, batch_size=5), QUICK)
    assert alone.curves == found.curves
    assert torch.equal(alone.samples.images, found.samples.images)
    for a, b in zip(alone.foresight, found.foresight, strict=True):
        assert torch.equal(a.drawn, b.drawn)
        assert torch.equal(a.predicted, b.predicted)


def check_foresight(found: Evidence) -> None:
    final = found.samples.images[:4]
    assert [part.num_ar_steps for part in found.foresight] == [1, 2, 3]
    for part in found.foresight:
        assert part.drawn.shape == part.predicted.shape == final.shape
        assert not torch.equal(part.predicted, part.drawn)
        assert not torch.equal(part.predicted, final)


def test_what_is_drawn_is_shown_and_the_rest_is_gray() -> None:
    sampler, wanted = small.sampler(), Inputs([5, 3, 9, 7, 8], [1, 2, 3, 4, 5])
    found = measure(sampler, wanted, sampler.settings(steps="constant:3"), QUICK)
    final, gray = found.samples.images[:4], []
    for part in found.foresight:
        left = part.drawn == 0.5
        gray.append(left.sum().item())
        assert torch.equal(part.drawn[~left], final[~left])
        assert torch.equal(part.predicted[~left], final[~left])
    # 16 tokens of 2x2 pixels in four images, of which a cosine leaves 14, 11 and 6.
    assert gray == [14 * 16, 11 * 16, 6 * 16]


def test_evaluations_to_measure_are_counted() -> None:
    sampler, wanted = small.sampler(), Inputs([5, 3, 9, 7, 8], [1, 2, 3, 4, 5])
    settings = sampler.settings(steps="constant:3", guidance=1.0)
    found = measure(sampler, wanted, settings, QUICK)
    learned, paths, varied = 6 * 16 * 3, 5 * 16 * 4, 3 * 16 * 3 * 3
    assert found.evaluations == learned + paths + varied
    assert found.samples.evaluations == 5 * 16 * 3


@pytest.mark.parametrize(
    "wrong", [{"draws": 1}, {"draw_steps": 0}, {"varied": 0}, {"path_steps": 1}, {"fit_images": 4}]
)
def test_too_little_effort_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(DisaError, match="or more to measure anything, found"):
        Effort(**wrong)


def test_one_image_says_nothing_of_others() -> None:
    sampler = small.sampler()
    with pytest.raises(DisaError, match="expected 2 or more, found 1"):
        measure(sampler, Inputs([1], [1]), sampler.settings())


def test_a_count_that_does_not_fit_the_grid_is_found_before_any_work() -> None:
    sampler, turns = small.sampler(), []
    with pytest.raises(DisaError, match="fit the uniform grid, found 2000"):
        measure(sampler, Inputs([1], [1]), sampler.settings(), Effort(draw_steps=2000), lambda: turns.append(1))
    assert not turns


# -- the command ---------------------------------------------------------------------------------------------------

FEW = (
    "--draws",
    2,
    "--draw-steps",
    2,
    "--path-steps",
    3,
    "--fit-images",
    5,
    "--steps",
    "constant:2",
    "--device",
    "cpu",
)


def test_the_command_writes_numbers_and_pictures(disa: Command, tmp_path: Path) -> None:
    model, out = small.folder(tmp_path / "model"), tmp_path / "out"
    report = disa(
        "evidence", "--model", model, "--seeds", "0-4", "--num-ar-steps", 4, *FEW, "--out", out, "--json"
    ).json()
    assert only_whole(out) == ["evidence.json", "evidence.png", "foresight.png"]
    assert json.loads((out / "evidence.json").read_text()) == {k: v for k, v in report.items() if k != "out"}
    assert (report["labels"], report["settings"]["steps"]) == ([0, 1, 2, 3, 4], "constant:2")
    assert report["effort"] == {"draws": 2, "draw_steps": 2, "varied": 16, "path_steps": 3, "fit_images": 5}
    with Image.open(out / "foresight.png") as sheet:
        assert sheet.height > 8 * 64
    done = disa("evidence", "--model", model, "--seeds", "0-1", "--num-ar-steps", 1, *FEW, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert "relative straightness" in done.out


def test_64_images_are_drawn_if_nothing_is_said() -> None:
    from disa.cli.evidence import NUM_IMAGES
    from disa.cli.options import AskedInTurn
    from disa.models.registry import find_preset

    wanted = AskedInTurn().in_turn(find_preset("mar-digits"), NUM_IMAGES)
    assert wanted.seeds == list(range(64))
    assert wanted.labels is not None
    assert wanted.labels[:11] == [*range(10), 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--draws", 1), "draws must be 2 or more to measure anything, found 1"),
        (("--draw-steps", 5000), "denoising steps fit this grid, found 5000"),
        (("--prompt", "a cat"), "draws from labels"),
        (("--steps", "linear:5"), "linear"),
    ],
)
def test_mistakes_are_one_line(disa: Command, tmp_path: Path, arguments: tuple[object, ...], said: str) -> None:
    done = disa("evidence", "--model", "mar-digits", *arguments, "--device", "cpu", "--out", tmp_path / "out")
    assert said in complaint(done)
    assert not (tmp_path / "out").exists()


# -- pictures ------------------------------------------------------------------------------------------------------


def test_the_sheet_holds_every_pair() -> None:
    ones = torch.ones(2, 1, 64, 64)
    sheet = foresight_sheet({"1 of 2": (ones * 0.25, ones * 0.75), "2 of 2": (ones, ones)})
    pixels = np.array(sheet.convert("L"))
    for value, row in ((64, 0), (191, 1), (64, 2), (191, 3)):
        top = 20 + 66 * row
        assert (pixels[top : top + 64, -140:-76] == value).all()


def test_the_plot_says_what_it_shows(tmp_path: Path) -> None:
    curve = {"mean": [1.0, 0.5], "low": [0.5, 0.4], "high": [2.0, 0.6], "correlation": -1.0, "expected": -1}
    (tmp_path / "plot.png").write_bytes(evidence_plot(dict.fromkeys(EXPECTED, curve), "a model"))
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (1100, 560)
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 3
