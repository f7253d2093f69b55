"""What `disa calibrate` costs on a GPU, counted without one: what it launches, and how long that takes at least.

    python benchmarks/plan_cost.py mar-base --us 10

Its passes are those of `disa.study.planning.work`. Launches of a denoising step and of the rest of an AR step are
counted as `launches.py` does. At the small batches that are measured, a GPU waits for launches: their number times the
microseconds that each takes in Python is what it takes. No plan was measured on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from launches import MODELS, count, model_name

from disa.core.steps import constant
from disa.core.texts import parse
from disa.draw.settings import Settings
from disa.models.registry import PRESETS
from disa.study.calibrate import BACKBONE
from disa.study.planning import NUM_IMAGES, work


def cost(name: str) -> dict[str, Any]:
    """Denoising steps, passes through the rest of an AR step, and launches."""
    own = PRESETS[name].defaults
    settings = Settings(steps=parse(own.steps), num_ar_steps=own.num_ar_steps, batch_size=own.batch_size)
    one, two = (count(name, policy=constant(steps)).total for steps in (1, 2))
    of_step = (two - one) / own.num_ar_steps
    of_rest = one / own.num_ar_steps - of_step
    turns = work(settings, NUM_IMAGES)
    steps = sum(turn - BACKBONE for turn in turns)
    return {
        "denoising_steps": round(steps),
        "ar_steps": len(turns),
        "launches": round(steps * of_step + len(turns) * of_rest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=model_name, default=MODELS, metavar="MODEL")
    parser.add_argument("--us", type=float, default=10.0, help="microseconds of a launch")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    asked = parser.parse_args()
    found = dict[str, Any]()
    for name in asked.models:
        found[name] = cost(name)
        found[name]["minutes"] = found[name]["launches"] * asked.us / 60e6
    print(json.dumps(found) if asked.json else table(found))


def table(found: dict[str, Any]) -> str:
    """The costs as Markdown."""
    lines = ["| model | denoising steps | AR steps | launches | minutes |", "|---|---:|---:|---:|---:|"]
    for name, each in found.items():
        counts = " | ".join(f"{each[what]:,}" for what in ("denoising_steps", "ar_steps", "launches"))
        lines.append(f"| {name} | {counts} | {each['minutes']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
