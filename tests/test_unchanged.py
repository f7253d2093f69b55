"""The pictures that the embedded models draw stay what they are, whatever is rebuilt around them.

`unchanged.json` holds a hash of the pictures of every case below. Bits are compared on the kind of machine that made
the file; elsewhere kernels may sum in another order, and a few latent values are compared with a tolerance instead.
`python tests/test_unchanged.py` writes the file anew: only where pictures change on purpose, which the commit names.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from disa import Sampler, Samples

FILE = Path(__file__).with_name("unchanged.json")
LABELS, SEEDS = [3, 0, 8], [11, 12, 2**40 + 1]
PROMPTS = ["two red circles", "a green star left of a blue square", "a triangle"]
VALUES = 8
"""Latent values of each case that are kept, evenly chosen."""

MAR: dict[str, dict[str, Any]] = {
    "constant": {"steps": "constant:6"},
    "linear": {"steps": "linear:10-2"},
    "cosine": {"steps": "cosine:8-2"},
    "two-stage": {"steps": "two-stage:8-3"},
    "reversed": {"steps": "linear:2-8"},
    "unlabelled": {"steps": "linear:6-2", "labels": None},
    "few-ar-steps": {"steps": "linear:8-2", "num_ar_steps": 7},
    "guided": {"steps": "linear:8-2", "guidance": 2.5},
    "guided-constantly": {"steps": "linear:8-2", "guidance": 3.0, "ramp": "constant", "num_ar_steps": 12},
    "guided-in-an-interval": {"steps": "linear:9-3", "guidance": 2.0, "interval": (0.1, 0.7), "grid": "uniform"},
    "guided-below-1": {"steps": "linear:8-2", "guidance": 0.5, "num_ar_steps": 12},
    "full": {"steps": "constant:5", "grid": "full", "num_ar_steps": 8},
    "logsnr-cooler": {"steps": "linear:8-2", "grid": "logsnr", "temperature": 0.8},
    "ddim": {"steps": "linear:8-2", "solver": "ddim"},
    "ddim-eta": {"steps": "linear:8-2", "solver": "ddim", "grid": "uniform", "eta": 0.5},
    "dpm-solver": {"steps": "linear:8-2", "solver": "dpm-solver", "guidance": 1.5},
    "dpm-solver++-2": {"steps": "linear:8-3", "solver": "dpm-solver++-2"},
    "dpm-solver++-2-eta": {"steps": "constant:6", "solver": "dpm-solver++-2", "eta": 1.0, "num_ar_steps": 8},
    "mlp": {"steps": "mlp:10-2@4"},
    "variance-draws": {"steps": "variance:draws:12-2@9", "guidance": 1.5, "num_ar_steps": 10},
    "variance-head": {"steps": "variance:head:10-2"},
    "variance-probe": {"steps": "variance:probe:10-2@5"},
    "straight": {"steps": "straight@2.5"},
    "another-size": {"steps": "linear:6-2", "height": 48, "width": 32, "num_ar_steps": 12},
}
FLOW: dict[str, dict[str, Any]] = {
    "constant": {"steps": "constant:8"},
    "linear": {"steps": "linear:9-3"},
    "unlabelled": {"steps": "linear:6-2", "labels": None},
    "unguided": {"steps": "linear:9-3", "guidance": 1.0},
    "guided-constantly": {"steps": "linear:9-3", "guidance": 3.0, "ramp": "constant"},
    "guided-in-an-interval": {"steps": "linear:9-3", "guidance": 2.0, "interval": (0.2, 0.8)},
    "uniform": {"steps": "cosine:9-3", "solver": "euler", "grid": "uniform"},
    "flowar-split": {"steps": "linear:9-3", "solver": "euler", "grid": "flowar-split"},
    "shifted": {"steps": "linear:9-3", "solver": "euler", "grid": "shifted-0.33"},
    "heun": {"steps": "linear:9-4", "solver": "heun"},
    "euler-maruyama": {"steps": "linear:9-3", "solver": "euler-maruyama", "temperature": 0.7},
    "dpm-solver++-2": {"steps": "linear:8-3", "solver": "dpm-solver++-2"},
    "dpm-solver++-2-eta": {"steps": "linear:8-3", "solver": "dpm-solver++-2", "grid": "shifted-0.33", "eta": 1.0},
    "mlp": {"steps": "mlp:12-3@6"},
    "variance-draws": {"steps": "variance:draws:12-2@9"},
    "variance-probe": {"steps": "variance:probe:10-2"},
    "straight": {"steps": "straight@5"},
}
HARMON: dict[str, dict[str, Any]] = {
    "rewritten": {"steps": "linear:8-2"},
    "as-asked": {"steps": "linear:8-2", "rewrite": False},
    "unguided": {"steps": "constant:4", "rewrite": False, "guidance": 1.0},
    "negative": {"steps": "linear:6-2", "negative_prompt": "a red circle", "guidance": 2.0, "num_ar_steps": 12},
    "guided-in-an-interval": {"steps": "linear:6-2", "rewrite": False, "interval": (0.1, 0.7), "grid": "uniform"},
    "guided-below-1": {"steps": "linear:6-2", "rewrite": False, "guidance": 0.5},
    "another-size": {"steps": "linear:6-2", "rewrite": False, "height": 64, "width": 48},
    "ddim": {"steps": "linear:6-2", "solver": "ddim", "rewrite": False},
    "dpm-solver++-2": {"steps": "linear:6-3", "solver": "dpm-solver++-2", "rewrite": False},
    "mlp": {"steps": "mlp:10-2@4", "rewrite": False},
    "straight": {"steps": "straight@6", "rewrite": False},
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"mar-digits/{name}": ("mar-digits", "fp32", options) for name, options in MAR.items()},
    **{f"{model}/{name}": (model, "fp32", options)
       for model in ("flowar-digits", "xar-digits") for name, options in FLOW.items()},
    **{f"harmon-shapes/{name}": ("harmon-shapes", "fp32", options) for name, options in HARMON.items()},
    "mar-digits/edited": ("mar-digits", "fp32", {"steps": "linear:6-2", "num_ar_steps": 8, "edited": True}),
    "harmon-shapes/edited": ("harmon-shapes", "fp32", {"steps": "linear:6-2", "num_ar_steps": 8, "edited": True}),
    "mar-digits/bf16": ("mar-digits", "bf16", {"steps": "linear:8-2", "guidance": 2.0, "num_ar_steps": 12}),
    "flowar-digits/bf16": ("flowar-digits", "bf16", {"steps": "linear:9-3"}),
    "xar-digits/bf16": ("xar-digits", "bf16", {"steps": "linear:9-3"}),
    "harmon-shapes/bf16": ("harmon-shapes", "bf16", {"steps": "linear:6-2", "rewrite": False}),
}  # fmt: skip


def machine() -> dict[str, Any]:
    """What decides which kernels run, and so the last bits."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    about = {line.split(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    return {
        "torch": torch.__version__.split("+")[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": [about.get(name, "") for name in ("vendor_id", "cpu family", "model")],
    }


@cache
def loaded(model: str, dtype: str) -> Sampler:
    with warnings.catch_warnings(action="ignore"):
        return Sampler.load(model, device="cpu", dtype=dtype)


def drawn(case: str) -> Samples:
    model, dtype, options = CASES[case]
    sampler, options = loaded(model, dtype), dict(options)
    asked: dict[str, Any] = {"prompts": PROMPTS} if model == "harmon-shapes" else {"labels": LABELS}
    if options.pop("edited", False):
        _, height, width = sampler.image_shape
        known = sampler.encode(torch.linspace(0, 1, height * width).view(1, 1, height, width)
                               .expand(1, sampler.image_shape[0], -1, -1))  # fmt: skip
        mask = torch.zeros(1, *sampler.token_grid, dtype=torch.bool)
        mask[:, 1:5, 2:6] = True
        asked |= {"known": known, "mask": mask}
    asked |= options
    return sampler.sample(seeds=SEEDS, **asked)


def found(case: str) -> dict[str, Any]:
    """What is kept of a case."""
    samples = drawn(case)
    values = samples.latents.flatten()
    chosen = values[torch.linspace(0, len(values) - 1, VALUES).long()]
    return {
        "sha256": hashlib.sha256(samples.images.contiguous().numpy().tobytes()).hexdigest(),
        "evaluations": samples.evaluations,
        "latents": [round(value, 4) for value in chosen.tolist()],
    }


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_what_they_were(case: str, one_thread: None) -> None:
    if case.startswith("harmon"):
        pytest.importorskip("transformers")
    kept = json.loads(FILE.read_text())
    expected, here = kept["cases"][case], found(case)
    if kept["machine"] == machine():
        assert here["sha256"] == expected["sha256"]
        assert here["evaluations"] == expected["evaluations"]
    elif not case.endswith(("bf16", "mlp", "variance-draws", "variance-head", "variance-probe", "straight")):
        assert here["evaluations"] == expected["evaluations"]
        assert here["latents"] == pytest.approx(expected["latents"], rel=5e-3, abs=2e-2)


def test_every_case_is_kept() -> None:
    assert set(json.loads(FILE.read_text())["cases"]) == set(CASES)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = sys.argv[1:] or CASES
    before = json.loads(FILE.read_text())["cases"] if sys.argv[1:] else {}
    content = {"machine": machine(), "cases": before | {case: found(case) for case in cases}}
    FILE.write_text(json.dumps(content, indent=1) + "\n")
