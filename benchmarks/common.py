"""What the benchmarks share: the machine that they run on, and their results."""

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
