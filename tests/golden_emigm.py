"""The replay of recorded runs of eMIGM's official code, for `golden.py`.

The official masks are random numbers of tokens; `inputs/orders` with a table of them draws the same tokens here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.core import steps as policies
from disa.core.diffusion import CosineDiffusion
from disa.core.generate import generate_steps
from disa.core.grids import singlestep_orders
from disa.core.orders import Counts
from disa.core.problem import Bound, DenoisingProblem, Field, Noise, Prediction, TimeGrid
from disa.core.request import Guidance, Request
from disa.core.solver import Solver
from disa.core.solvers import make_solver
from disa.models.emigm.config import EMIGMConfig
from disa.models.emigm.model import EMIGM
from disa.models.emigm.names import official_names
from disa.models.mar.state import MARState
from disa.models.registry import find_preset

Found = Iterator[tuple[str, Any, Any]]
PUBLISHED_INTERVALS = {"emigm-base": "0.1,0.3", "emigm-huge": "0.2,0.4", "emigm-base-512": "0.15,0.35"}
"""Mask times after an AR step, as `mask_plans` names them."""


@dataclass(frozen=True)
class Watched(Field):
    """A field whose states are kept."""

    field: Field
    states: list[Tensor]

    def on(self, grid: TimeGrid) -> Bound:
        return _BoundWatched(self.field.on(grid), self.states)

    def select(self, rows: Tensor) -> Field:
        return self.field.select(rows)


class _BoundWatched:
    def __init__(self, bound: Bound, states: list[Tensor]) -> None:
        self.bound, self.states, self.costs = bound, states, bound.costs

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        self.states.append(x.clone())
        return self.bound(x, denoise_step)


class Watching(EMIGM):
    """A model whose condition vectors and states are kept."""

    z: Tensor
    states: list[Tensor]

    def problem(self, state: MARState, z: Tensor) -> DenoisingProblem:
        self.z, self.states, problem = z, [], super().problem(state, z)
        return replace(problem, field=Watched(problem.field, self.states))


def load(case: Any) -> Watching:
    config = EMIGMConfig.from_official(case.about["config"])
    model = Watching(config)
    model.load_state_dict(official_names(config).from_official(case.part("weights/")))
    return case.placed(model)


def guidance_of(case: Any) -> Guidance:
    """Official guidance acts where the time after an AR step is in an interval; those AR steps are recorded."""
    sampling, steps = case.about["sampling"], case.about["steps"]
    guided, last = [k for k, step in enumerate(steps) if step["guided"]], max(1, len(steps) - 1)
    if not guided:
        return Guidance()
    return Guidance(sampling["cfg"], sampling["cfg_schedule"], progress=(guided[0] / last, guided[-1] / last))


def sampler(config: dict[str, Any], temperature: float) -> Solver:
    if config["sampling_algo"] == "ddpm":
        return make_solver("ddpm", "full", temperature)
    return make_solver("dpm-solver++-3s", "emigm")


def replay(case: Any, noise: Noise) -> Found:
    model, sampling, expected = load(case), case.about["sampling"], case.part("expected/")
    config, steps = case.about["config"], case.about["steps"]
    solver = sampler(config, sampling["temperature"])
    request = Request(
        sampling["bsz"],
        len(steps),
        case.tensors.get("inputs/labels"),
        guidance_of(case),
        counts=Counts("table", tuple(step["n_tokens_per_image"] for step in steps)),
    )
    step, policy = None, policies.constant(int(config["num_sampling_steps"]))
    for step in generate_steps(model, request, policy, solver, noise):
        k, problem, about = step.ar_step, step.problem, steps[step.ar_step]
        z, halves = expected[f"z/{k:03d}"], 2 if about["guided"] and request.labels is not None else 1
        # Without labels both halves are equal; here there is one.
        yield f"z/{k}", model.z.flatten(0, 1), z if request.labels is not None else z[: problem.num_rows]
        yield f"traj/{k}", torch.stack([*model.states, step.tokens]), expected[f"traj/{k:03d}"]
        yield f"sampled/{k}", step.tokens, expected[f"sampled/{k:03d}"]
        index = torch.stack([problem.image, problem.position], 1)
        yield f"index/{k}", index, expected[f"pred_index/{k:03d}"]
        times = solver.plan(problem.process, int(step.steps)).network_times
        yield f"times/{k}", times, about["timesteps"]
        yield f"evaluations/{k}", step.evaluations, halves * problem.num_rows * about["evaluations"]
        yield f"guidance/{k}", problem.guidance, about["cfg"]
    assert step is not None
    yield "tokens", model.finish(step.state), expected["tokens"]


def replay_schedule(case: Any) -> Found:
    process, expected = CosineDiffusion(), case.part("expected/")
    yield "betas", process.betas, expected["betas_1000"]
    for name, about in case.about["dpm"].items():
        grid = process.grid("emigm", int(name))
        orders = singlestep_orders(int(name))
        yield f"orders/{name}", orders, about["orders"]
        yield f"evaluations/{name}", grid.num_evaluations, about["evaluations"]
        yield f"times/{name}", grid.network_times, expected[f"dpm/{int(name):03d}/network_times"]
        levels = grid.levels[np.cumsum([0, *orders])]
        half_snr = 0.5 * np.log(levels / (1 - levels))
        yield f"lambda/{name}", half_snr, expected[f"dpm/{int(name):03d}/outer_lambda"]
    plan = case.about["mask_plans"]["16"]["guided_ar_steps"]
    for name, interval in PUBLISHED_INTERVALS.items():
        defaults = find_preset(name).defaults
        scales = Guidance(defaults.guidance, defaults.ramp, progress=defaults.progress).scales([1.0] * 16)
        yield f"guided/{name}", [k for k, scale in enumerate(scales) if scale != 1], plan[interval]
