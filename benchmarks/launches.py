"""How many operators one batch launches on a GPU, counted without one.

    python benchmarks/launches.py                          # one model of each family
    python benchmarks/launches.py mar-base xar-base --batch 8 --steps linear:50-5 --top 15
    python benchmarks/launches.py mar-base --plain --json

The model is built on PyTorch's meta device, where tensors have shapes and no values: code that looks at a value would
wait for the GPU, and raises here. Views and what is computed on the host are not counted; fused attention counts as one
launch, and so does an operator of `runtime/fused.py`, since Triton does it in one on CUDA. --plain counts what runs
where Triton is missing. Copies from the host are counted apart.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.request import Guidance, Prompts, Request
from disa.core.solver import Solver
from disa.core.solvers import make_solver
from disa.core.steps import StepPolicy
from disa.core.texts import parse
from disa.models.registry import PRESETS
from disa.models.spec import Preset
from disa.runtime import fused

MODELS = ("mar-base", "flowar-small", "xar-base", "harmon-0.5b")
"""One of each family."""
META = torch.device("meta")


@dataclass
class Launches(TorchDispatchMode):
    """Counts what is launched on the meta device while it is entered."""

    kinds: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    """From the host."""

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = str(function).removeprefix("aten.")
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        if is_view or name.startswith("prim.") or not _on_meta(out):
            return out
        if name.startswith(("empty", "new_empty")):  # memory alone
            return out
        from_host = name.startswith(("_to_copy", "copy_", "lift_fresh")) and any(
            isinstance(each, Tensor) and each.device != META for each in args
        )
        self.copies += from_host
        self.kinds[name] += not from_host
        return out

    @property
    def total(self) -> int:
        """Without copies from the host."""
        return sum(self.kinds.values())


def _on_meta(out: Any) -> bool:
    """Whether an operator gave a tensor on the meta device."""
    each = out if isinstance(out, tuple | list) else [out]
    return any(isinstance(one, Tensor) and one.device == META for one in each)


@contextmanager
def attention_in_one_launch() -> Iterator[None]:
    """PyTorch's attention takes several operators on the meta device, and on CUDA one, which lays its result out token
    by token."""

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        batch, heads, length, width = *query.shape[:3], value.shape[-1]
        return query.new_zeros(batch, length, heads, width).transpose(1, 2)

    before: Callable[..., Tensor] = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def on_meta(preset: Preset, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A preset's architecture without values."""
    with META:
        model = preset.build()
    return model.to(dtype).eval().requires_grad_(False)


def request_for(preset: Preset, batch: int, num_ar_steps: int | None = None, **options: Any) -> Request:
    """A batch of the preset's own guidance and size; prompts are of two lengths, so that some are padded. options: of a
    request."""
    own = preset.defaults
    options = {"token_grid": token_grid_of(preset), **options}
    num_ar_steps, guidance = num_ar_steps or own.num_ar_steps, Guidance(own.guidance, own.ramp, own.interval)
    if not preset.prompts:
        return Request(batch, num_ar_steps, torch.zeros(batch, dtype=torch.long), guidance, **options)
    rows = [[1] * (8 + 4 * (i % 2)) for i in range(2 * batch)]
    return Request(batch, num_ar_steps, guidance=guidance, prompts=Prompts.of(rows), **options)


def token_grid_of(preset: Preset) -> tuple[int, int] | None:
    """Of the images that the preset draws if not asked otherwise; None for those of its architecture."""
    size, codec = preset.defaults.size, preset.spec.codec
    if size is None or codec is None:
        return None
    side = codec.stride * preset.spec.architecture.patch_size
    return size[0] // side, size[1] // side


def solver_of(preset: Preset) -> Solver:
    """The preset's own solver."""
    own = preset.defaults
    return make_solver(own.solver, own.grid, own.temperature)


def draw(
    model: Any, request: Request, policy: StepPolicy, solver: Solver, watched: AbstractContextManager[object]
) -> None:
    """Go through all that drawing a batch takes, inside of a context; without values, so that to look at one raises."""
    with attention_in_one_launch(), watched:
        noise = SeededNoise(range(request.batch_size), META, fused.normals)
        turns = generate_steps(model, request, policy, solver, noise)
        model.finish(deque(turns, maxlen=1)[0].state)


def count(name: str, batch: int = 1, policy: StepPolicy | None = None) -> Launches:
    """Those of one batch. policy: the preset's own unless given."""
    preset, launches = PRESETS[name], Launches()
    policy = policy or parse(preset.defaults.steps)
    draw(on_meta(preset), request_for(preset, batch), policy, solver_of(preset), launches)
    return launches


def model_name(text: str) -> str:
    """That of a preset, as an argument of a command. Raises ArgumentTypeError."""
    if text not in PRESETS:
        raise argparse.ArgumentTypeError(f"unknown model {text!r}: expected {', '.join(PRESETS)}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=model_name, default=MODELS, metavar="MODEL")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", help="a schedule; default: the model's own")
    parser.add_argument("--top", type=int, default=0, help="how many kinds of operators are listed")
    parser.add_argument("--plain", action="store_true", help="without the fused operators")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    asked = parser.parse_args()
    found = dict[str, Any]()
    for name in asked.models:
        with fused.plain_forms() if asked.plain else nullcontext():
            launches = count(name, asked.batch, parse(asked.steps) if asked.steps else None)
        found[name] = {"launches": launches.total, "copies": launches.copies}
        if asked.top:
            found[name]["kinds"] = dict(launches.kinds.most_common(asked.top))
    print(json.dumps(found) if asked.json else table(found))


def table(found: dict[str, Any]) -> str:
    """The counts as Markdown."""
    lines = ["| model | launches | copies from the host |", "|---|---:|---:|"]
    for name, each in found.items():
        lines.append(f"| {name} | {each['launches']} | {each['copies']} |")
        lines += [f"| – {kind} | {times} | |" for kind, times in each.get("kinds", {}).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
