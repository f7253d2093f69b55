"""Weights, probes and tokenizers that ship with the package."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from torch import Tensor

from disa.errors import DisaError
from disa.weights.read import read_safetensors


def in_package(name: str) -> Path:
    """The place of a file or folder of that name among the weights in the package, there or not."""
    return Path(str(resources.files("disa.tiny"))) / "weights" / name


def ships(name: str) -> bool:
    """Whether weights of that name are in the package."""
    return in_package(f"{name}.safetensors").is_file()


def read_embedded(name: str) -> Mapping[str, Tensor]:
    """Weights that ship with the package. Raises DisaError."""
    if not ships(name):
        raise DisaError(
            f"the weights of {name} are not in this package: make them with `disa train {name} --out FOLDER`."
        )
    return read_safetensors(in_package(f"{name}.safetensors"))
