"""A state dict to a model: every tensor must be expected, of the right shape and finite; nothing is half loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from disa.errors import DisaError
from disa.layout import Layout, check_layout, shapes
from disa.models.families import Model
from disa.models.spec import Preset
from disa.weights.stored import Stored, read_stored

DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
AGAIN = "Get it again."
SCALED = ": get it in bfloat16 or float16"


def build_model(
    preset: Preset,
    state: Mapping[str, Tensor | Stored],
    source: str,
    hint: Callable[[Layout, bool], str] = lambda found, official: "",
    otherwise: str = AGAIN,
    dtype: torch.dtype | None = None,
) -> Model:
    """A model from a state dict under our names or the official ones; built on the meta device, nothing is copied.

    Tensors that lie in a file are read when their names and shapes fit. source: what a message calls it. hint: what to
    add where they do not, from their layout and whether their names are official. otherwise: what to do where values
    are no numbers. dtype: what values become as they are read; None leaves them. Raises DisaError.
    """
    with torch.device("meta"):
        model = preset.build()
    names = preset.official_names()
    official = not set(state) & (set(names.parts) - names.official)
    outline = {name: value.outline() if isinstance(value, Stored) else value for name, value in state.items()}
    outline = names.known(outline) if official else outline
    try:
        check_layout(outline, layout(preset, official), source)
    except DisaError as error:
        raise DisaError(f"{error}{hint(shapes(outline), official)}") from error
    state = read_stored({name: state[name] for name in outline if name in state}, dtype)
    check_values(state, source, otherwise)
    model.load_state_dict(names.from_official(state) if official else state, assign=True)
    return model.requires_grad_(False).eval()


def layout(preset: Preset, official: bool) -> Layout:
    """What a checkpoint of this architecture holds, under official names or ours."""
    with torch.device("meta"):
        state = preset.build().state_dict()
    return shapes(preset.official_names().to_official(state) if official else state)


def check_values(state: Mapping[str, Tensor], source: str, otherwise: str = AGAIN) -> None:
    """Floating-point numbers, all finite. Raises DisaError."""
    for name, value in state.items():
        if value.dtype not in DTYPES:
            what = str(value.dtype).removeprefix("torch.")
            what += SCALED if value.dtype.is_floating_point and value.dtype.itemsize == 1 else ""
            raise DisaError(f"{source}: expected floating-point tensors, but {name} is {what}.")
        if not torch.isfinite(value).all():
            raise DisaError(f"{source} is damaged: {name} holds values that are not finite numbers. {otherwise}")
