"""The solvers of a diffusion and of a flow, their names, and which of them goes with a process.

Shapes: R rows, n denoising steps. A state x is [R, *shape], float32 at both ends; flow solvers keep it in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from disa.core.formulas import Ancestral, Formula, Linear
from disa.core.multistep import DPMSolverPlusPlus
from disa.core.problem import Grid, Process, TimeGrid
from disa.core.singlestep import SinglestepDPMSolverPlusPlus
from disa.core.solver import GridSolver, NamedSolver, Solver, Walk, Walking, precise, read_option
from disa.core.steps import describe
from disa.errors import DisaError
from disa.values import did_you_mean, number, shown

# -- diffusion -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DDPM(Walking, GridSolver):
    """Ancestral sampling with the learned variance (Ho et al. 2020; Nichol and Dhariwal 2021, eq. 15).

    temperature scales the noise that is added, not the initial noise. Nothing is added at the last step.
    """

    grid: Grid = "clipped-950"
    temperature: float = 1.0
    kind = "ddpm"
    takes = ("noise",)
    stochastic = True

    def __post_init__(self) -> None:
        read_option(self, "temperature")

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
        formula, last = Ancestral(self.temperature), grid.num_evaluations - 1
        for i, numbers in enumerate(_ddpm_coefficients(grid.levels.tobytes())):
            said = yield x, i
            x, _ = formula.step(x, x, said, noise[i] if i < last and self.temperature else None, numbers)
        return x

    def in_rows(self, process: Process, grid: TimeGrid) -> tuple[Formula, Sequence[Sequence[float]]]:
        *before, (keep, remove, _, _) = _ddpm_coefficients(grid.levels.tobytes())
        return Ancestral(self.temperature), [*before, (keep, remove, -math.inf, 0.0)]


@lru_cache(maxsize=4096)
def _ddpm_coefficients(levels: bytes) -> list[tuple[float, float, float, float]]:
    """Per step: factors of x and of the predicted noise in the posterior mean, and the line in the network's variance
    value (-1 low, 1 high) that is the log deviation between its two bounds.

    The two products of the textbook form are merged in float64: at small abar they nearly cancel.
    """
    abar = np.frombuffer(levels)
    now, then = abar[:-1], abar[1:]
    alpha = now / then
    beta, noise_share = 1 - alpha, 1 - now
    from_start, from_state = np.sqrt(then) * beta / noise_share, (1 - then) * np.sqrt(alpha) / noise_share
    keep = from_start / np.sqrt(now) + from_state
    remove = -from_start * np.sqrt(noise_share) / np.sqrt(now)
    posterior = beta * (1 - then) / noise_share
    with np.errstate(divide="ignore"):
        low, high = np.log(posterior), np.log(beta)
    middle, spread = (high + low) / 4, (high - low) / 4
    return list(zip(keep.tolist(), remove.tolist(), middle.tolist(), spread.tolist(), strict=True))


@dataclass(frozen=True)
class DDIM(Walking, GridSolver):
    """Song et al. 2021, eq. 12; eta = 0 is deterministic and of order 1, eta = 1 adds as much noise as DDPM.

    DPM-Solver and DPM-Solver++ of order 1 are this update at eta = 0 (Lu et al. 2022): only their grid differs.
    """

    grid: Grid = "ddim-980"
    eta: float = 0.0
    kind = "ddim"
    takes = ("noise",)

    def __post_init__(self) -> None:
        read_option(self, "eta", 1)

    @property
    def stochastic(self) -> bool:
        return self.eta != 0

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
        formula = Linear(self.stochastic)
        for i, numbers in enumerate(_ddim_coefficients(grid.levels.tobytes(), self.eta)):
            said, deviation = (yield x, i), numbers[-1]
            x, _ = formula.step(x, x, said, noise[i] if deviation else None, numbers)
        return x

    def in_rows(self, process: Process, grid: TimeGrid) -> tuple[Formula, Sequence[Sequence[float]]]:
        return Linear(self.stochastic), _ddim_coefficients(grid.levels.tobytes(), self.eta)


@lru_cache(maxsize=4096)
def _ddim_coefficients(levels: bytes, eta: float) -> list[tuple[float, float, float]]:
    """Per step: factors of x, of the predicted noise, and of fresh noise."""
    abar = np.frombuffer(levels)
    now, then = abar[:-1], abar[1:]
    deviation = eta * np.sqrt((1 - then) / (1 - now) * (1 - now / then))
    keep = np.sqrt(then / now)
    remove = np.sqrt(np.maximum(1 - then - deviation**2, 0)) - keep * np.sqrt(1 - now)
    return list(zip(keep.tolist(), remove.tolist(), deviation.tolist(), strict=True))


# -- flow ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Euler(Walking, GridSolver):
    """Straight steps along the velocity, of order 1: FlowAR's sampler, and what DDIM is for a flow."""

    grid: Grid = "uniform"
    kind = "euler"
    takes = ("velocity",)
    stochastic = False

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
        x = precise(x)
        for i, step in enumerate(np.diff(grid.levels).tolist()):
            said = yield x.float(), i
            x.add_(said.value, alpha=step)
        return x.float()


@dataclass(frozen=True)
class Heun(Walking, NamedSolver):
    """Karras et al. 2022, algorithm 1, without churn: order 2, with n evaluations for n denoising steps.

    It goes along ceil(n / 2) intervals of the grid and evaluates at both ends of each, at t = 0 too; an odd n leaves an
    Euler step for the last interval. So the times are t0, t1, t1, t2, t2, ...
    """

    grid: Grid = "uniform"
    kind = "heun"
    takes = ("velocity",)
    stochastic = False

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        base = process.grid(self.grid, (num_steps + 1) // 2)
        # Where the state is before and after each interval; both are evaluated, except for an Euler step's end.
        before = np.arange(base.num_evaluations)
        visited = np.stack([before, before + 1], axis=1).flatten()[: 2 * len(before) - num_steps % 2]
        at_data = process.grid_at(np.zeros(1)).network_times
        network_times, times = np.append(base.network_times, at_data), np.append(base.times, 0.0)
        levels = np.append(base.levels[visited], base.levels[-1])
        return TimeGrid(network_times[visited], levels, times[visited])

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
        x, count = precise(x), grid.num_evaluations
        for i in range(0, count, 2):
            step = float(grid.levels[i + 1] - grid.levels[i])
            velocity = (yield x.float(), i).value.to(x.dtype)
            if i + 1 < count:
                ahead = x.add(velocity, alpha=step).float()
                said = yield ahead, i + 1
                velocity = velocity.add(said.value).mul_(0.5)
            x.add_(velocity, alpha=step)
        return x.float()


@dataclass(frozen=True)
class EulerMaruyama(Walking, GridSolver):
    """xAR's sampler: the reverse SDE with diffusion sqrt(2t), whose marginals are those of the flow (order 1/2).

    Its drift is v - t score = (2 - t) v + x, with score = ((t - 1) v - x) / t (Ma et al. 2024, eq. 4 and 9). The last
    step adds no noise, and a single one is Euler's. temperature scales what is added, not the initial noise.
    """

    grid: Grid = "xar-em"
    temperature: float = 1.0
    ends_straight: ClassVar[bool] = False
    ends_in_noise: ClassVar[bool] = False
    kind = "euler-maruyama"
    takes = ("velocity",)
    stochastic = True

    def __post_init__(self) -> None:
        read_option(self, "temperature")

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
        if grid.num_evaluations == 1 and grid.levels[0] == 1:
            return (yield from Euler().walk(process, grid, x, noise))
        x, last = precise(x), grid.num_evaluations - 1
        for i, (t, step) in enumerate(zip(grid.levels.tolist(), np.diff(grid.levels).tolist(), strict=False)):
            velocity = (yield x.float(), i).value
            if i == last and self.ends_straight:
                return x.add_(velocity, alpha=step).float()
            x.mul_(1 + step).add_(velocity, alpha=(2 - t) * step)
            if i < last or self.ends_in_noise:
                x.add_(noise[i], alpha=self.temperature * math.sqrt(-2 * t * step))
        return x.float()


@dataclass(frozen=True)
class EulerMaruyamaODE(EulerMaruyama):
    """The sampler of BitDance and NextStep-1: the same, but its last step is Euler's, along the ODE, which ends at the
    predicted data."""

    kind = "euler-maruyama-ode"
    ends_straight = True


@dataclass(frozen=True)
class EulerMaruyamaNoisy(EulerMaruyama):
    """NextStep-1.1's sampler: the same, but its last step adds noise like every other, which stays in what is drawn."""

    grid: Grid = "uniform"
    kind = "euler-maruyama-noisy"
    ends_in_noise = True


# -- names ---------------------------------------------------------------------------------------------------------

SOLVERS: dict[str, NamedSolver] = {
    "ddpm": DDPM(),
    "ddim": DDIM(),
    "dpm-solver": DDIM("dpm-950"),
    "dpm-solver++": DDIM("dpm-950"),
    "dpm-solver++-2": DPMSolverPlusPlus(),
    "dpm-solver++-3s": SinglestepDPMSolverPlusPlus(),
    "euler": Euler(),
    "heun": Heun(),
    "euler-maruyama": EulerMaruyama(),
    "euler-maruyama-ode": EulerMaruyamaODE(),
    "euler-maruyama-noisy": EulerMaruyamaNoisy(),
}
"""Every solver by name, with its own grid. The official DPM-Solvers are DDIM on another grid and have no options."""

DROPPED = ("dpm-solver-2", "dpm-solver-3", "dpm-solver++-3")
"""Solvers of earlier versions; docs/LOG.md has the measurement."""


def _options(name: str) -> dict[str, float]:
    return SOLVERS[name].options() if SOLVERS[name].name == name else {}


def _with(option: str) -> tuple[str, ...]:
    """The names of the solvers that have an option."""
    return tuple(name for name in SOLVERS if option in _options(name))


WITH_TEMPERATURE = _with("temperature")


def make_solver(name: str, grid: str | None = None, temperature: float = 1.0, eta: float | None = None) -> Solver:
    """The solver that `name` names, with its own grid unless one is given. Raises DisaError."""
    temperature = number(temperature, "temperature", 0)
    options = {"grid": grid, "temperature": None if temperature == 1.0 else temperature, "eta": eta}
    return build_solver(name, {option: value for option, value in options.items() if value is not None})


def parse_solver(text: str | Solver) -> Solver:
    """From a text such as `ddpm`, `ddim@uniform:eta=0.5` or what `str()` of a solver is; a solver is left as it is.

    Raises DisaError.
    """
    return build_solver(*solver_parts(text)) if isinstance(text, str) else text


def solver_parts(text: str) -> tuple[str, dict[str, Any]]:
    """The name in a solver's text, and the options in it, the grid among them. Raises DisaError."""
    place, colon, rest = text.partition(":")
    name, at, grid = (part.strip() for part in place.partition("@"))
    if at and not grid:
        raise DisaError(f"the grid is missing after @ in the solver {shown(text)}: expected one, as in {name}@uniform.")
    options: dict[str, Any] = {"grid": grid} if grid else {}
    for item in rest.split(",") if colon else ():
        option, equals, value = (part.strip() for part in item.partition("="))
        if option == "grid":
            raise DisaError(f"{name} has no option 'grid': it follows @, as in {name}@uniform.")
        if not option or not equals:
            wanted = f"expected an option such as eta=0.5 in the solver {shown(text)}"
            raise DisaError(f"{wanted}, found {shown(item)}.")
        if option in options:
            raise DisaError(f"the solver {shown(text)} says {shown(option)} twice: say it once.")
        options[option] = number(value, f"{shown(option)[1:-1]} in the solver {shown(text)}")
    return name, options


def build_solver(name: str, options: Mapping[str, Any], preferred: Mapping[str, Any] | None = None) -> Solver:
    """A solver by its name and options; preferred: options that are taken where the solver has them and they are not
    given. Raises DisaError."""
    if name in DROPPED:
        raise DisaError(f"{name} is no longer there: choose dpm-solver++-2, which draws about as well.")
    if name not in SOLVERS:
        raise DisaError(
            f"unknown solver {shown(name)}: expected one of {', '.join(SOLVERS)}.{did_you_mean(name, SOLVERS)}"
        )
    known = {"grid", *_options(name)}
    for option in options:
        if option not in known:
            raise DisaError(_refusal(name, option, options))
    taken = {option: value for option, value in (preferred or {}).items() if option in known}
    return replace(SOLVERS[name], **(taken | dict(options)))  # pyright: ignore[reportReturnType]


def _refusal(name: str, option: str, options: Mapping[str, Any]) -> str:
    if option == "temperature":
        own = f"eta scales that of {name}" if options.get("eta") else f"{name} adds none"
        variants = tuple(f"{kind}-" for kind in WITH_TEMPERATURE)
        kinds = [kind for kind in WITH_TEMPERATURE if not kind.startswith(variants)]
        return f"temperature scales the noise that {' and '.join(kinds)} add; {own}. Leave it out or use one of those."
    if having := _with(option):
        return f"{option} belongs to {' and '.join(having)}, not to {name}."
    has = ", ".join(_options(name))
    return f"{name} has no option {shown(option)}: " + (f"expected {has}." if has else "it has none.")


# -- which goes with which -----------------------------------------------------------------------------------------


def grid_for(solver: Solver, process: Process, num_steps: int) -> TimeGrid:
    """The grid that the solver goes along, or one clear error where solver, process and grid do not go together."""
    if process.predicts not in solver.takes:
        fitting = [name for name in SOLVERS if process.predicts in SOLVERS[name].takes]
        raise DisaError(
            f"the solver {describe(solver)} needs a model that predicts {' or '.join(solver.takes)}; "
            f"this one predicts {process.predicts}: choose {', '.join(fitting)}."
        )
    grid: Any = solver.plan(process, num_steps)
    if not isinstance(grid, TimeGrid):
        raise DisaError(f"the solver {describe(solver)} plans a TimeGrid, found {shown(grid)}.")
    return grid


def num_evaluations(solver: Solver, process: Process, num_steps: int) -> int:
    """Those of each row that a solver makes of so many denoising steps; official grids may make fewer."""
    return grid_for(solver, process, num_steps).num_evaluations


def ode_solver(process: Process) -> Solver:
    """What goes along the probability-flow ODE of a process in steps of order 1, on its uniform grid."""
    return DDIM("uniform") if process.predicts in DDIM.takes else Euler("uniform")
