"""Linear layers, and their packed form for inference on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disa.errors import warn
from disa.runtime.kernels import linear, swish
from disa.runtime.tiles import in_tiles

_ACTIVATIONS = {None: lambda x: x, "gelu": F.gelu, "swish": swish}


class Linear(nn.Linear):
    """A linear layer, optionally followed by `gelu` or `swish`, whose rows do not depend on each other's number."""

    def forward(self, input: Tensor, activation: str | None = None) -> Tensor:
        return _ACTIVATIONS[activation](linear(input, self.weight, self.bias))


class PackedLinear(nn.Module):
    """A `Linear` whose weight is laid out for oneDNN: inference on a CPU only.

    PyTorch's own fp32 path reaches less than half of this on AVX-512 machines that are not Intel's. The activation is
    fused where oneDNN is good at it.
    """

    fused = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    """Without AVX-512 oneDNN's gelu takes several times as long as PyTorch's."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = linear.bias

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        name, after = (activation or "none", None) if self.fused else ("none", activation)

        def apply(rows: Tensor) -> Tensor:
            return torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, name, [], "none")

        return _ACTIVATIONS[after](in_tiles(apply, x))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.packed.to_dense()

    def unpacked(self) -> Linear:
        """The layer that was packed."""
        with torch.device("meta"):
            layer = Linear(self.in_features, self.out_features, bias=False).train(self.training)
        layer.weight, layer.bias = nn.Parameter(self.packed.to_dense(), requires_grad=False), self.bias
        return layer

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # What oneDNN has laid out cannot be copied.
        return _packed_where_possible, (self.unpacked(),)


def adopt(model: nn.Module) -> nn.Module:
    """Turn the plain linear layers of a foreign model into `Linear`, which keeps its promise and can be packed."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch and this CPU have the oneDNN kernels that `pack` needs for weights of `dtype`."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and (dtype == torch.float32 or (dtype == torch.bfloat16 and has_fast_bf16()))


def has_fast_bf16() -> bool:
    """Whether this CPU computes in bfloat16; without such instructions it is many times slower than float32."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(model: nn.Module) -> nn.Module:
    """Replace every `Linear` of an inference model on the CPU by its packed form, one at a time to save memory."""
    parents = [module for module in model.modules() if type(module) is not Linear]  # naming a layer keeps it alive
    for parent in parents:
        for name in [name for name, child in parent.named_children() if type(child) is Linear]:
            setattr(parent, name, PackedLinear(getattr(parent, name)))
    return model


def unpack(model: nn.Module) -> nn.Module:
    """The reverse of `pack`, for other devices and dtypes."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedLinear):
                setattr(parent, name, child.unpacked())
    return model


def _packed_where_possible(layer: Linear) -> nn.Module:
    return PackedLinear(layer) if can_pack(layer.weight.dtype) else layer


def prepare(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Pack an inference model of that dtype where this device gains by it; warn where the dtype is slow there."""
    if device.type != "cpu":
        return model
    if can_pack(dtype):
        return pack(model)
    if dtype == torch.bfloat16:
        warn("this processor has no bfloat16 instructions: fp32 is faster here")
    return model
