"""What `benchmarks/families.py` counts and adds up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import families  # pyright: ignore
from launches import solver_of  # pyright: ignore

import small
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.texts import parse

PRESETS = {"bitdance": small.BITDANCE, "emigm": small.EMIGM, "nextstep": small.NEXTSTEP, "unipic": small.UNIPIC}


@pytest.mark.parametrize("name", PRESETS)
def test_evaluations_are_those_that_drawing_makes(name: str, one_thread: None) -> None:
    if PRESETS[name].prompts:
        pytest.importorskip("transformers")
    drawn = families.Drawn(PRESETS[name], ())
    model, policy = small.randomised(drawn.preset.build()), parse(drawn.preset.defaults.steps)
    turns = generate_steps(model, drawn.request(), policy, solver_of(drawn.preset), SeededNoise([0]))
    assert families.evaluations(drawn, drawn.preset.defaults.steps) == [step.evaluations for step in turns]


def test_what_is_between_measured_ar_steps_is_in_proportion() -> None:
    drawn = families.Drawn(small.NEXTSTEP, ())
    assert families.between(drawn, {0: 1.0, 1: 2.0, 5: 4.0}).tolist() == [1, 2, 2.5, 3, 3.5, 4]
