"""Devices and dtypes by name.

| a caller gives | what is taken |
|---|---|
| None, "auto" | the best device there is: the current CUDA device, else MPS, else the CPU |
| "cpu", "mps", "cuda", "cuda:1", `torch.device` of these | that one, if it is there; "cuda" is the current one |
| 0, 1, ... | the CUDA device of that number |
| "fp32", "float32", `torch.float32`; "bf16", "bfloat16", `torch.bfloat16` | that dtype |
| "tf32" | float32, of which CUDA rounds what it multiplies to 11 bits; elsewhere the same as "fp32" |

All else is refused with a DisaError that says what is there.
"""

from __future__ import annotations

from typing import Any

import torch

from disa.errors import DisaError
from disa.values import did_you_mean, either, first_line, one_of, shown

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TF32 = "tf32"
AUTO = "auto"
CPU = torch.device("cpu")


def pick_device(device: Any = None) -> torch.device:
    """The device that is asked for. Raises DisaError where it is not there, or does not work."""
    there, name = available(), _name(device)
    if name == AUTO or (name == "cuda" and there[0].startswith("cuda")):
        name = there[0]
    if name not in there:
        near = " Did you mean cuda?" if name == "gpu" and len(there) > 1 else did_you_mean(name, [*there, AUTO])
        raise DisaError(f"the device {shown(name)} cannot be used here: expected {either([AUTO, *there])}.{near}")
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        raise DisaError(f"the device {name} is there, but cannot be used: {first_line(error)}.") from error
    return torch.device(name)


def available() -> list[str]:
    """The devices that are there, the best first."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if cuda:  # what PyTorch means by cuda
        cuda.insert(0, cuda.pop(torch.cuda.current_device()))
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def pick_dtype(dtype: Any) -> torch.dtype:
    """The type of weights and activations. Raises DisaError."""
    return DTYPES.get(dtype_name(dtype), torch.float32)


def dtype_name(dtype: Any) -> str:
    """Its name, `fp32`, `bf16` or `tf32`. Raises DisaError."""
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    short = {str(kind).removeprefix("torch."): short for short, kind in DTYPES.items()}
    return one_of(short.get(name, name) if isinstance(name, str) else name, [*DTYPES, TF32], "dtype")


def gains_by_bf16(device: torch.device) -> bool:
    """Whether bf16 may be faster there than fp32. On most CPUs it is many times slower."""
    return device.type != "cpu"


def allows_tf32(device: torch.device, dtype: str) -> bool:
    """Whether a model in the dtype of that name is computed in TF32 on a device."""
    return dtype == TF32 and device.type == "cuda"


def _name(device: Any) -> Any:
    """What a device is called in `available`, if it is one."""
    if device is None:
        return AUTO
    if isinstance(device, int) and not isinstance(device, bool):
        return f"cuda:{device}"
    name = str(device) if isinstance(device, torch.device) else device
    return name.removesuffix(":0") if name in ("cpu:0", "mps:0") else name
