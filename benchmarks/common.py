"""What the benchmarks share: models with random weights, the machine that they run on, and their results."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import disa
from disa.files import write_text
from disa.models.registry import PRESETS
from disa.runtime import packing
from disa.runtime.devices import DTYPES


def random_model(name: str, dtype: str, device: str = "cpu") -> Any:
    """A preset's architecture for inference, with weights large enough for every layer to change the image.

    On one kind of device the weights are the same whatever the dtype. They are made tensor by tensor, so that memory
    never holds more than the model.
    """
    with torch.device("meta"):
        model = PRESETS[name].build()
    model = model.to(DTYPES[dtype]).to_empty(device=device).requires_grad_(False).eval()
    random = torch.Generator(device).manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        gain = 1.0 if "norm" in parameter_name and parameter_name.endswith("weight") else 0.0
        spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
        parameter.copy_(torch.randn(parameter.shape, generator=random, device=device) * spread + gain)
    return model


def prepared(model: Any, dtype: str, device: str = "cpu") -> Any:
    """The model as disa draws with it: packed where the CPU can."""
    return packing.prepare(model, torch.device(device), DTYPES[dtype])


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a result must say of where it is from."""
    return {
        "processor": processor(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "versions": {"disa": disa.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def publish(result: dict[str, Any], path: Path | None = None) -> None:
    """Print a result as one line of JSON, and write it to a file if there is one."""
    line = json.dumps(rounded(result))
    if path:
        write_text(path, line + "\n")
    print(line)


def rounded(value: Any) -> Any:
    """Five significant digits everywhere: the rest is noise."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
