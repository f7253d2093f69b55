"""Settings filled in for a model: every option an object, everything that can be wrong found before any work."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from disa.core import texts
from disa.core.courses import CalibratedSolver
from disa.core.orders import COSINE, RANDOM, parse_counts
from disa.core.plans import parse_plan, planned
from disa.core.request import Guidance
from disa.core.reuse import NONE
from disa.core.solver import AtARStep, NamedSolver, Solver
from disa.core.solvers import SOLVERS, build_solver, grid_for, solver_parts
from disa.core.steps import OverDrawn, Schedule, StepPolicy, WithSolver, describe, is_planned, named
from disa.draw.loaded import Loaded
from disa.draw.recipes import parts_of, with_recipe
from disa.draw.settings import NO_CHANGE, Settings
from disa.errors import DisaError, warn
from disa.policies import adaptive
from disa.policies.frequency import ByFrequency
from disa.runtime import recorder
from disa.values import LONGEST_SHOWN, shown
from disa.weights.package import in_package

NOT_MEASURED_FOR = NO_CHANGE | {"steps", "step_counts", "probe", "plan", "looks", "num_ar_steps"}
"""Options that a table of steps does not depend on; its length gives the number of AR steps."""
NO_GRAPHS = "off"
"""What `graphs` is if not asked otherwise: no graph has been captured on a GPU yet."""

UNSAID = {"order": str(RANDOM), "counts": str(COSINE), "reuse": str(NONE)}
"""What a table or a probe was measured for where its file does not say."""


def for_model(settings: Settings, loaded: Loaded) -> Settings:
    """Every option filled in from a recipe and the model's defaults, as objects, and checked. Raises DisaError."""
    given, settings = settings, with_recipe(settings, loaded)
    alone = [each.name for each in fields(settings) if not each.metadata["part_of"]]
    own = {name: getattr(settings, name) for name in alone} | _order(settings, loaded)
    # Counts without a value are those of a model that takes none: `_order` has filled in the others.
    missing = [name for name, value in own.items() if value is None and name != "counts"]
    own |= {name: getattr(loaded.defaults, name, None) for name in missing}
    own["steps"] = _policy(own["steps"], loaded)
    own |= {
        "solver": _solver(settings, own["steps"], loaded),
        "guidance": _guidance(settings, loaded),
        "size": _size(settings, loaded),
        "graphs": settings.graphs or NO_GRAPHS,
    }
    able, grid = loaded.model.capabilities, loaded.token_grid_of(own["size"])
    if able.one_by_one and settings.num_ar_steps is None:
        own["num_ar_steps"] = able.num_tokens if grid is None else math.prod(grid)
    filled = Settings(**own)
    _check(filled, loaded)
    filled = replace(filled, steps=_fitted(_aware(filled, loaded), loaded))
    if given.steps is None and given.solver is None and settings.steps is not None:
        filled = _measured_as_a_whole(filled)
    _warn_of_others(filled, loaded)
    _warn_of_own(filled)
    if filled.graphs == "on" and loaded.offloaded:
        raise DisaError("a graph needs weights where they were when it was captured: leave graphs or offload out.")
    if filled.graphs == "on" and not recorder.can_record(loaded.device):
        warn(f"graphs are captured on CUDA alone: on {loaded.device} images are drawn without")
    return filled


def _measured_as_a_whole(filled: Settings) -> Settings:
    """Steps and solver of a recipe: it was measured with what they were not measured for."""
    parts = {name: getattr(filled, name) for name in ("steps", "solver")}
    known = {name: part for name, part in parts.items() if hasattr(part, "measured_for")}
    return replace(filled, **{name: replace(part, measured_for={}) for name, part in known.items()})


def _parts(settings: Settings, whole: str) -> dict[str, Any]:
    """The options given that are part of another one."""
    return {name: value for name in parts_of(whole) if (value := getattr(settings, name)) is not None}


def _order(settings: Settings, loaded: Loaded) -> dict[str, Any]:
    """Order, counts and reuse, and the number of AR steps that follows; none where a model's order is fixed."""
    capabilities = loaded.model.capabilities
    capabilities.check_order(settings.order, settings.counts)
    reuse = settings.reuse or NONE
    capabilities.check_reuse(reuse)
    if capabilities.in_order:
        return {"reuse": None}
    counts, num_ar_steps = settings.counts or parse_counts(loaded.defaults.counts), settings.num_ar_steps
    if num_ar_steps is None:
        num_ar_steps = counts.num_ar_steps
    else:
        counts.check_ar_steps(num_ar_steps)
    order = settings.order or RANDOM
    return {"order": order, "counts": counts, "reuse": reuse, "num_ar_steps": num_ar_steps}


def _solver(settings: Settings, policy: StepPolicy, loaded: Loaded) -> Solver:
    """The solver with its grid and its other options: those given, else the model's where it is the model's own. A plan
    has its own."""
    defaults, given, chosen = loaded.defaults, _parts(settings, "solver"), settings.solver
    own: Any = policy.plan.solver if isinstance(policy, WithSolver) else None
    if isinstance(chosen, str) and named(chosen) == "plan":
        plan, budget = parse_plan(chosen, shipped_plan(loaded))
        if budget is not None:
            raise DisaError(f"a plan as a solver has no budget: write {plan.source}, or give it as steps.")
        chosen = plan.solver
    if own is not None and chosen is not None:
        if not isinstance(chosen, CalibratedSolver) or replace(chosen, temperature=own.temperature) != own:
            raise DisaError(f"{policy} has its own solver: leave {describe(chosen)} out.")
        own = chosen
    chosen = own or chosen
    if isinstance(chosen, CalibratedSolver):
        if others := [name for name in given if name != "temperature"]:
            raise DisaError(f"{chosen} has its own times and updates: leave {', '.join(others)} out.")
        return replace(chosen, **given)
    if chosen is None or isinstance(chosen, str):
        name, told = solver_parts(defaults.solver if chosen is None else chosen)
        if twice := [part for part in told if chosen is not None and part in given and given[part] != told[part]]:
            raise DisaError(f"the solver {chosen} says its own {twice[0]}: leave {twice[0]} out.")
        cooled = {"temperature": defaults.temperature}
        return build_solver(name, told | given, cooled | ({"grid": defaults.grid} if name == defaults.solver else {}))
    if not given:
        return chosen
    if not isinstance(chosen, NamedSolver) or chosen.name not in SOLVERS:
        raise DisaError(f"{describe(chosen)} has its own options: leave {', '.join(given)} out.")
    build_solver(chosen.name, given)  # refuses options that it has not
    changed: Any = replace(chosen, **given)
    return changed


def _guidance(settings: Settings, loaded: Loaded) -> Guidance:
    """The same of guidance."""
    given = _parts(settings, "guidance")
    if isinstance(settings.guidance, Guidance):
        return replace(settings.guidance, **given)
    given |= {} if settings.guidance is None else {"scale": settings.guidance}
    defaults = loaded.defaults
    own = Guidance(defaults.guidance, defaults.ramp, defaults.interval, defaults.progress)
    guidance = replace(own, **given)
    if idle := [name for name in given if name != "scale" and not guidance.active]:
        names = "guidance's " + " and ".join(idle)
        warn(f"{names} {'say' if len(idle) > 1 else 'says'} nothing where guidance is 1, which is off")
    return guidance


def _size(settings: Settings, loaded: Loaded) -> tuple[int, int] | None:
    size, parts = settings.size or loaded.defaults.size, _parts(settings, "size")
    if not parts:
        return size
    height, width = size or loaded.own_size
    return parts.get("height", height), parts.get("width", width)


def _check(settings: Settings, loaded: Loaded) -> None:
    grid, capabilities = loaded.token_grid_of(settings.size), loaded.model.capabilities
    num_tokens = None if grid is None else math.prod(grid)
    capabilities.check_ar_steps(settings.num_ar_steps, num_tokens)
    if settings.counts is not None:
        settings.counts.masked(num_tokens or capabilities.num_tokens, settings.num_ar_steps)
    if settings.batch_size < 1:
        raise DisaError(f"the batch size must be 1 or more, found {settings.batch_size}.")
    if settings.rewrite and capabilities.condition != "prompts":
        raise DisaError(f"{loaded.preset.name} draws from labels: there are no prompts to rewrite.")
    if settings.rewrite and not capabilities.describes:
        raise DisaError(f"{loaded.preset.name} writes no words: leave rewrite out.")


def _policy(chosen: Any, loaded: Loaded) -> StepPolicy:
    """The step policy as an object."""
    if not isinstance(chosen, str):
        return chosen
    if is_planned(chosen):
        return planned(chosen, shipped_plan(loaded))
    if texts.is_adaptive(chosen):
        return adaptive.parse(chosen, loaded.preset, lambda: loaded.weights_hash)
    return texts.parse(chosen)


def shipped_plan(loaded: Loaded) -> Path | None:
    """That of the package for this model, if there is one."""
    shipped = in_package(f"{loaded.preset.name}-plan.json")
    return shipped if shipped.is_file() else None


def _aware(settings: Settings, loaded: Loaded) -> Settings:
    """A schedule over the share that is drawn is told how much that is before each AR step."""
    if not isinstance(settings.steps, OverDrawn) or settings.counts is None:
        return settings
    grid = loaded.token_grid_of(settings.size)
    num_tokens = loaded.model.capabilities.num_tokens if grid is None else math.prod(grid)
    shares = settings.counts.known(num_tokens, settings.num_ar_steps)
    return replace(settings, steps=replace(settings.steps, shares=tuple(shares)))


def _fitted(settings: Settings, loaded: Loaded) -> StepPolicy:
    """The step policy, whose counts must all fit the grid."""
    policy, process, num_ar_steps = settings.steps, loaded.model.process, settings.num_ar_steps
    counts = policy.counts(num_ar_steps) if isinstance(policy, Schedule) else [1] * num_ar_steps
    solver: Any = settings.solver
    if isinstance(solver, AtARStep):
        for k, count in enumerate(counts):
            grid_for(solver.at(k, num_ar_steps), process, count)
    else:
        for count in set(counts):
            grid_for(solver, process, count)
    looks = (adaptive.Adaptive, ByFrequency)
    return policy.fitted_to(settings.solver, process) if isinstance(policy, looks) else policy


# -- identity ------------------------------------------------------------------------------------------------------


def facts(settings: Settings, loaded: Loaded) -> dict[str, Any]:
    """What a table or a probe is measured for."""
    told = {name: value for name, value in settings.to_json().items() if name not in NOT_MEASURED_FOR}
    return {"model": loaded.preset.name, "weights": loaded.weights_hash} | told


def _warn_of_others(settings: Settings, loaded: Loaded) -> None:
    """Warn where the step policy or the solver was measured for something else."""
    for part in (settings.steps, settings.solver):
        measured_for = dict(getattr(part, "measured_for", None) or {})
        if measured_for and settings.order is not None:
            measured_for = UNSAID | measured_for
        others = [
            f"{name} {_brief(measured_for[name])} (here {_brief(here)})"
            for name, here in (facts(settings, loaded).items() if measured_for else ())
            if measured_for.get(name, here) != here
        ]
        if others:
            warn(f"{describe(part)} was measured for {', '.join(others)}: it may not fit")
            return


def _brief(value: Any) -> str:
    """A value in a warning; of a hash its beginning."""
    told = value if isinstance(value, str) and value.isprintable() else shown(value)
    return told[:12] if re.fullmatch("[0-9a-f]{64}", told) else told[:LONGEST_SHOWN]


def _warn_of_own(settings: Settings) -> None:
    """Warn of a policy or solver that a file can name, but not bring back."""
    for part in (settings.steps, settings.solver, settings.solver.grid):
        if isinstance(part, str | None):
            continue
        module = part.__module__ if hasattr(part, "__qualname__") else type(part).__module__
        if module.partition(".")[0] != "disa":
            warn(f"{describe(part)} is known to this program alone: its name repeats no drawing")
