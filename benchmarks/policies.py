"""The trade-off of every step policy: quality against evaluations made and against time, at several budgets.

    python benchmarks/policies.py draw mar-digits --images 2000    # hours; interrupt and repeat it at will
    python benchmarks/policies.py measure mar-digits               # what is drawn -> a result file
    python benchmarks/policies.py write                            # the result files -> docs/policies.md, plots

`draw` draws the same seeds under every policy, 100 images of each in turn, and keeps the images of each in a folder
below --work. After an interruption the same command draws what is missing; a larger --images adds to what is there.
Every kind of policy is given the parameters that make the evaluations of a budget, which is a share of those of the
model's original setting. Calibrated tables are measured on seeds of their own before anything is drawn. Images are kept
with 8 bits, as a viewer sees them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from point_folders import at_root
from policies_draw import draw
from policies_measure import measure
from policies_plan import Kinds
from policies_write import write
from tables import EMBEDDED, ROOT


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "measure", "write"))
    parser.add_argument("model", nargs="?", choices=EMBEDDED)
    parser.add_argument("--images", type=int, default=2000, help="images per point")
    parser.add_argument("--budget", type=float, action="append", default=[], help="a share, instead of the usual ones")
    parser.add_argument("--without-solvers", action="store_true", help="leave other solvers out")
    parser.add_argument("--without-adaptive", action="store_true", help="leave policies out that look at rows")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "policies", help="where images are kept")
    parser.add_argument("--result", type=Path, help="what measure writes, instead of a file in benchmarks/results")
    given = parser.parse_args()
    if given.what != "write" and given.model is None:
        parser.error(f"{given.what} needs a model")
    return given


def main() -> int:
    given = arguments()
    work, result = given.work.absolute(), given.result and given.result.absolute()

    def work_on() -> None:
        if given.what == "draw":
            kinds = Kinds(not given.without_adaptive, not given.without_solvers)
            draw(given.model, given.images, work, given.budget, kinds)
        elif given.what == "measure":
            measure(given.model, work, result)
        else:
            write()

    return at_root(work_on)


if __name__ == "__main__":
    sys.exit(main())
