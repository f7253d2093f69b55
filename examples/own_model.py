"""A model of your own in disa's AR loop: a toy that draws pictures line by line.

    python examples/own_model.py

A model states problems (`pose`) and takes in their solutions (`accept`). Step policy, solver and noise are chosen
outside of it. The network here is a formula, so nothing is trained: a line is the line above it, moved by one pixel,
plus normal noise that weakens from line to line. Your backbone goes into `pose`, your denoising network into `OnGrid`.

Shapes: B images, R rows to denoise (here one per image), WIDTH values in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import disa
from disa.core.flow import FlowMatching
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import DenoisingProblem, Noise, Prediction, TimeGrid
from disa.core.request import Request
from disa.core.solvers import Euler
from disa.core.steps import Schedule

LINES, WIDTH = 16, 16


@dataclass(frozen=True)
class LineField:
    """The denoising network with its condition bound to it. mean: [R, WIDTH]; spread: of the noise around it."""

    mean: Tensor
    spread: float

    def on(self, grid: TimeGrid) -> OnGrid:
        """Bind to a grid's times. Compute here what all its denoising steps share, such as time embeddings."""
        return OnGrid(self, grid.times.tolist())

    def select(self, rows: Tensor) -> LineField:
        return LineField(self.mean[rows], self.spread)


class OnGrid:
    """The network at a grid's times. costs: evaluations of a row in each denoising step; 2 where guidance acts."""

    def __init__(self, field: LineField, times: list[float]) -> None:
        self.field, self.times, self.costs = field, times, [1] * len(times)

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        """The expected velocity, noise - data, at x = (1 - t) data + t noise; for normal data it has a closed form."""
        mean, variance, t = self.field.mean, self.field.spread**2, self.times[denoise_step]
        offset = (x - (1 - t) * mean) / ((1 - t) ** 2 * variance + t**2)
        return Prediction(t * offset - mean - (1 - t) * variance * offset)


@dataclass
class State:
    """One generation under way: everything that changes. picture: [B, LINES, WIDTH]; line: the next one to draw."""

    picture: Tensor
    line: int = 0


class LineModel:
    """Draws LINES lines in as many AR steps."""

    def begin(self, request: Request, noise: Noise) -> State:
        """Refuse what the model cannot do, and plan the rest."""
        if request.num_ar_steps != LINES:
            raise disa.DisaError(f"a picture is drawn in {LINES} AR steps, found {request.num_ar_steps}.")
        return State(torch.zeros(request.batch_size, LINES, WIDTH))

    def pose(self, state: State) -> DenoisingProblem:
        """The next AR step's problem: the backbone's work goes here."""
        above = state.picture[:, state.line - 1].roll(1, dims=1)  # zeros above the first line
        image = torch.arange(len(above))
        return DenoisingProblem(
            field=LineField(above, 2 / (1 + state.line)),
            process=FlowMatching(),
            shape=(WIDTH,),
            image=image,
            position=torch.full_like(image, state.line),
            ar_step=state.line,
            num_ar_steps=LINES,
            condition=above,
        )

    def accept(self, state: State, tokens: Tensor) -> None:
        """Take in the rows [R, WIDTH] of the problem posed last, and move on."""
        state.picture[:, state.line] = tokens
        state.line += 1

    def finish(self, state: State) -> Tensor:
        """Latents [B, C, H, W]; a codec would make images of them."""
        return state.picture[:, None]


def draw(policy: Schedule, batch_size: int = 8) -> tuple[Tensor, int]:
    """Latents [B, 1, LINES, WIDTH] and the evaluations that they took; the seeds are always the same."""
    model, noise = LineModel(), SeededNoise(range(batch_size))
    evaluations, step = 0, None
    for step in generate_steps(model, Request(batch_size, LINES), policy, Euler("uniform"), noise):
        evaluations += step.evaluations
    assert step is not None
    return model.finish(step.state), evaluations


def main() -> None:
    exact, _ = draw(disa.constant(500))
    for policy in (disa.constant(50), disa.linear(50, 5), disa.constant(27), disa.linear(5, 50)):
        drawn, evaluations = draw(policy)
        error = (drawn - exact).square().mean().sqrt()
        print(f"{policy!s:12} {evaluations:6} evaluations, root mean square error {error:.4f}")


if __name__ == "__main__":
    main()
