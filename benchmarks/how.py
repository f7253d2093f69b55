"""The pictures of docs/how.md: where the denoising steps go, and how a digit comes about.

    python benchmarks/how.py

Everything in them is computed: the counts by the schedules, the digits by mar-digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import disa
from disa.draw.inputs import Inputs
from disa.draw.preview import drawn_so_far
from disa.files import write_each
from disa.study.plots import plot_png, steps_plot

DOCS = Path(__file__).resolve().parents[1] / "docs"
MODEL, STEPS, NUM_AR_STEPS = "mar-digits", "linear:50-5", 32
LABELS, SHOWN = (3, 5, 8), (0, 3, 7, 15, 23, 31)
SCHEDULES = "constant:50", "linear:50-5", "cosine:50-5", "two-stage:50-5"


def counts_plot() -> bytes:
    """Denoising steps of each AR step under the four schedules."""
    return steps_plot({text: disa.parse(text).counts(NUM_AR_STEPS) for text in SCHEDULES})


def drawing_sheet() -> bytes:
    """What is drawn after some AR steps, gray where nothing is yet, with the denoising steps of that AR step."""
    sampler = disa.Sampler.from_pretrained(MODEL, device="cpu")
    inputs = Inputs.paired(range(len(LABELS)), LABELS)
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes: Any = figure.subplots(len(LABELS), len(SHOWN))
    for turn in sampler.start(inputs, steps=STEPS, num_ar_steps=NUM_AR_STEPS):
        if (ar_step := turn.step.ar_step) not in SHOWN:
            continue
        column = SHOWN.index(ar_step)
        for row, image in enumerate(drawn_so_far(sampler, turn.step.state, slice(None))):
            axes[row, column].imshow(image[0].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
            axes[row, column].set_axis_off()
        count = disa.parse(STEPS).at(ar_step, NUM_AR_STEPS)
        axes[0, column].set_title(f"AR step {ar_step + 1}\n{count} denoising steps", fontsize=9)
    return plot_png(figure, 110)


def main() -> None:
    write_each({DOCS / "how-steps.png": counts_plot(), DOCS / "how-drawing.png": drawing_sheet()})


if __name__ == "__main__":
    main()
