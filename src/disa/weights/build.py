"""A state dict to a model: every tensor must be expected, of the right shape and finite; nothing is half loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from disa.errors import DisaError
from disa.layout import Layout, check_layout, shapes
from disa.models.families import Model
from disa.models.spec import Preset

DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}


def build_model(
    preset: Preset,
    state: Mapping[str, Tensor],
    source: str,
    hint: Callable[[Layout, bool], str] = lambda found, official: "",
) -> Model:
    """A model from a state dict under our names or the official ones; built on the meta device, nothing is copied.

    source: what a message calls it. hint: what to add where the tensors do not fit, from their layout and whether
    their names are official. Raises DisaError.
    """
    with torch.device("meta"):
        model = preset.build()
    names = preset.official_names()
    official = not set(state) & (set(names.parts) - names.official)
    state = names.known(state) if official else state
    try:
        check_layout(state, layout(preset, official), source)
    except DisaError as error:
        raise DisaError(f"{error}{hint(shapes(state), official)}") from error
    check_values(state, source)
    model.load_state_dict(names.from_official(state) if official else state, assign=True)
    return model.requires_grad_(False).eval()


def layout(preset: Preset, official: bool) -> Layout:
    """What a checkpoint of this architecture holds, under official names or ours."""
    with torch.device("meta"):
        state = preset.build().state_dict()
    return shapes(preset.official_names().to_official(state) if official else state)


def check_values(state: Mapping[str, Tensor], source: str) -> None:
    """Floating-point numbers, all finite. Raises DisaError."""
    for name, value in state.items():
        if value.dtype not in DTYPES:
            raise DisaError(f"{source}: expected floating-point tensors, but {name} is {str(value.dtype)[6:]}.")
        if not torch.isfinite(value).all():
            raise DisaError(f"{source} is damaged: {name} holds values that are not finite numbers. Get it again.")
