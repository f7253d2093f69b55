"""Rows that go along grids of their own, evaluated together: as many calls as the longest grid has steps, not as all
have. A small call takes nearly as long as one of some tens of rows, so that this is what makes time follow evaluations.

Shapes: R rows, W ways, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from disa.core.fields import BoundEach, RaggedField
from disa.core.problem import DenoisingProblem, Prediction, TimeGrid
from disa.core.solver import Solver, Walk, advance, walks


class Way(NamedTuple):
    """Some rows of a problem (indices [R']), and the grid that they go along."""

    rows: Tensor
    grid: TimeGrid


def go_together(
    problem: DenoisingProblem,
    solver: Solver,
    ways: Sequence[Way],
    x: Tensor,
    added: Callable[[Way], Tensor],
    said: Sequence[Prediction],
) -> tuple[Tensor, int] | None:
    """From x [R, *shape] along all ways, and how many evaluations that makes; None where the solver or the field has to
    be asked for each way apart. added: the noise of a way's denoising steps [n, R', *shape], empty without. said: of
    all rows, the answers of the first denoising steps, where these are known."""
    field = problem.field
    if not walks(solver) or not isinstance(field, RaggedField):
        return None
    ways = sorted(ways, key=lambda way: -way.grid.num_evaluations)
    order, sizes = torch.cat([way.rows for way in ways]), [len(way.rows) for way in ways]
    bound = field.on_each(order, [way.grid for way in ways], sizes)
    if bound is None:
        return None
    under_way = [solver.walk(problem.process, way.grid, x[way.rows], added(way)) for way in ways]
    tokens = torch.empty_like(x)
    tokens[order] = torch.cat(_ends(under_way, bound, sizes, [each.select(order) for each in said]))
    return tokens, sum(sum(costs[len(said) :]) * size for costs, size in zip(bound.costs, sizes, strict=True))


def _ends(
    under_way: Sequence[Walk], bound: BoundEach, sizes: Sequence[int], said: Sequence[Prediction]
) -> list[Tensor]:
    """Where walks end, each a part of the rows, of which none is longer than one before it."""
    found = [advance(walk) for walk in under_way]
    denoise_step = 0
    while asked := [state for state, _ in found if state is not None]:
        known = denoise_step < len(said)
        value, variance = said[denoise_step] if known else bound(torch.cat([x for x, _ in asked]), denoise_step)
        own = sizes[: len(asked)]
        variances = [None] * len(asked) if variance is None else variance.split(own)
        for place, answer in enumerate(map(Prediction, value.split(own), variances)):
            found[place] = advance(under_way[place], answer)
        denoise_step += 1
    return [end for _, end in found if end is not None]
