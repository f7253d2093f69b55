"""Plans that nobody measured, for tests: courses of DPM-Solver++ 2M on even times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from disa.core.courses import CalibratedSolver
from disa.core.multistep import updates
from disa.core.plans import StepPlan
from gaussian import PROCESS

ROWS = (1, 3, 5, 7)
"""Of the small model in 4 AR steps."""


def content(process: Any = PROCESS, num_stretches: int = 2, most: int = 3, eta: float = 0.0, **changed: Any) -> Any:
    """What a plan file for 4 AR steps holds. Each stretch has times of its own; guidance makes two evaluations."""
    stretches = [[_course(process, n, 0.9 - 0.1 * g, eta) for n in range(1, most + 1)] for g in range(num_stretches)]
    told = {
        "format": 1,
        "stretches": stretches,
        "gains": [4.0, 2.0, 1.0, 0.5],
        "rows": list(ROWS),
        "costs": [[2.0 * rows * n for n in range(1, most + 1)] for rows in ROWS],
        "budget": 4.0,
        "measured_for": {},
    }
    return json.loads(json.dumps(told | changed))


def looks(process: Any = PROCESS, num_stretches: int = 2, most: int = 3, eta: float = 0.0) -> list[Any]:
    """What the same plan has for looking at rows, in three bins: a half and two quarters of the rows."""
    errors = [[size / n**2 for n in range(2, most + 1)] for size in (0.1, 1.0, 10.0)]
    return [
        {
            "courses": [_course(process, n, 0.9 - 0.1 * g, eta, second=0.4) for n in range(2, most + 1)],
            "edges": [-2.0, 0.5],
            "shares": [0.5, 0.25, 0.25],
            "errors": errors,
        }
        for g in range(num_stretches)
    ]


def looking(process: Any = PROCESS, most: int = 6, eta: float = 0.0) -> CalibratedSolver:
    """The solver of a plan that has something for looking at rows."""
    alike = process, 1, most, eta
    return StepPlan(content(*alike, looks=looks(*alike))).solver


def _course(process: Any, num_steps: int, first: float, eta: float, second: float | None = None) -> dict[str, Any]:
    times = first * np.arange(num_steps, 0, -1) / num_steps
    if second is not None:
        times = np.array([first, *np.linspace(second, 0, num_steps)[:-1]])
    by = [list(update) for update in updates(process, process.grid_at(times), eta)]
    return {"times": times.tolist(), "updates": by, "error": 1.0 / num_steps**2}


def written(path: Path, *arguments: Any, **changed: Any) -> Path:
    """A plan file, of `content`."""
    path.write_text(json.dumps(content(*arguments, **changed)))
    return path
