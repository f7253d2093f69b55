"""Devices and dtypes by name."""

from __future__ import annotations

import torch

from disa.errors import DisaError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device that is asked for, if it is there; else CUDA, MPS or the CPU."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise DisaError(f"the device {device!r} cannot be used here. Leave it out to take the best one.") from error
    return torch.device(device)


def pick_dtype(name: str) -> torch.dtype:
    """The type of weights and activations by its name."""
    if name not in DTYPES:
        raise DisaError(f"unknown dtype {name!r}: expected {' or '.join(DTYPES)}.")
    return DTYPES[name]
