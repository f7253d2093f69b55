"""How the scale of guidance follows what is known of an image. Nothing heavy is imported here."""

from __future__ import annotations

import math
from collections.abc import Callable

RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda known: known,
    "constant": lambda known: 1.0,
    "falling": lambda known: 1 - known,
    "power": lambda known: known**2,
    "cubic": lambda known: known**3,
    "exp": lambda known: 1 - math.exp(-5 * known),
    "cosine": lambda known: math.cos(math.pi / 2 * (1 - known)),
}
"""By name: from the share of the image that is known to how much of the scale beyond 1 acts. `linear` is that of Muse
and MAR, `falling` NextStep's; eMIGM has the last four beside `linear`."""
