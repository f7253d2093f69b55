"""docs/plans.md from what `confirm.py confirm plans-points.json` measured:

python benchmarks/plans_write.py
"""

from __future__ import annotations

import json
from typing import Any

from confirm_write import page
from tables import EMBEDDED, RESULTS, ROOT, table

from disa.files import write_text

INTRODUCTION = """# Plans, confirmed

What calibrated plans keep and save, on seeds that nothing was chosen on.

{summary}

Plans were made by `disa calibrate --model MODEL` on seeds 100000-100031, budgets and hand-set settings were chosen on
300000-301999, and all numbers here are of seeds from 500000 on. A difference is paired by seed; its interval holds with
all others of this page together (Holm). "None shown" says that it contains 0. [How sure a difference is](certainty.md)
has the method. *Times* are a plan's times and updates with as many steps in every AR step; *counts* are a table of
counts on the official solver and grid; *hand*, *heun* and *dpm* settings are the best known by hand at about as many
evaluations. *Warm* and *cool* scale the noise that rows begin with (`--temperature`), by a factor that was chosen on
the seeds for choosing.

    python benchmarks/confirm.py confirm benchmarks/plans-points.json && python benchmarks/plans_write.py

How plans are made, and what does not hold, is in [calibration.md](calibration.md); what could be gained beyond them in
[headroom.md](headroom.md).
"""


def summary(reports: list[dict[str, Any]]) -> str:
    """The cheapest plan of each model that shows no loss, and the cheapest of all."""
    rows = []
    for report in reports:
        original, *points = report["points"]
        plans = [point for point in points if point["options"]["steps"].startswith("plan")]
        plans.sort(key=lambda point: point["evaluations_per_row"])
        kept = [point for point in plans if not point["to_original"]["corrected"]["shown"]]
        chosen = list({point["name"]: point for point in (*kept[:1], *plans[:1])}.values())
        rows += [_row(report, original, point) for point in chosen]
    columns = ["model", "setting", "evaluations per row", "of the original's", "times as fast"]
    return table([*columns, "quality less the original's"], rows)


def _row(report: dict[str, Any], original: dict[str, Any], point: dict[str, Any]) -> list[str]:
    made, claim = point["evaluations_per_row"], point["to_original"]
    low, high = claim["corrected"]["low"], claim["corrected"]["high"]
    return [
        report["model"],
        f"`{point['options']['steps']}`",
        f"{made:.1f}",
        f"1/{original['evaluations_per_row'] / made:.0f}",
        f"{original['cpu_seconds_per_image'] / point['cpu_seconds_per_image']:.1f}",
        f"{claim['value']:+.3f} [{low:.3f}, {high:.3f}]",
    ]


def main() -> None:
    paths = [RESULTS / f"confirm-{model}.json" for model in EMBEDDED]
    reports = [json.loads(path.read_text()) for path in paths if path.exists()]
    sections = [f"## {report['model']}\n\n{page(report)}" for report in reports]
    write_text(ROOT / "docs" / "plans.md", "\n".join([INTRODUCTION.format(summary=summary(reports)), *sections]))


if __name__ == "__main__":
    main()
