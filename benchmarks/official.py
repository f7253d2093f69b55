"""Time the official DiSA code of MAR, FlowAR and xAR beside disa, with random weights and the same settings.

    python benchmarks/official.py --official PATH                          # bf16, batch 1, on CUDA
    python benchmarks/official.py --official PATH mar-base --batch 64 --repeats 3 --original
    python benchmarks/official.py --official PATH --device cpu --quick     # tiny models in few steps

PATH is a checkout of https://github.com/Qinyu-Allen-Zhao/DiSA, which carries no licence: nothing of it is copied here.
It needs timm, einops, scipy and tqdm; xAR also flash_attn, in whose place PyTorch's attention stands if it is missing.

The official code runs as its scripts run it, float32 weights under autocast, in bf16 or without in fp32; disa runs as
`--graphs` says. Both draw the same number of AR steps, denoising steps and evaluations, turn about, each once before;
latents are not decoded. Prints a table, and one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from common import machine, note, prepared, publish
from tables import table
from torch import Tensor, nn
from work import Asked

from disa.core.generate import Drawing, generate_steps
from disa.core.noise import SeededNoise
from disa.errors import DisaError
from disa.models.registry import PRESETS
from disa.models.spec import Preset
from disa.runtime import fused
from disa.runtime.devices import DTYPES
from disa.runtime.recorder import can_record, recorder_on
from disa.runtime.surroundings import undisturbed

MODELS = "mar-base", "flowar-small", "xar-base"
FOLDERS = {"mar": "MAR_DiSA", "flowar": "FlowAR_DiSA", "xar": "xAR_DiSA"}
THEIRS = "models", "diffusion", "util"
"""Packages that each of the official folders has."""
QUICK = {
    "mar": {"encoder_depth": 1, "decoder_depth": 1, "head_depth": 2},
    "flowar": {"encoder_depth": 1, "decoder_depth": 1, "head_depth": 1},
    "xar": {"encoder_depth": 1, "decoder_depth": 1},
}
QUICK_STEPS, QUICK_AR_STEPS = "linear:5-3", 4
"""The official xAR cannot make two denoising steps."""


def family(preset: Preset) -> str:
    return preset.name.partition("-")[0]


# -- the official code -------------------------------------------------------------------------------------------------


@contextmanager
def imported(root: Path, kind: str, device: torch.device) -> Iterator[ModuleType]:
    """The official module of a family; its packages have the same names in every family."""
    folder = root / FOLDERS[kind]
    if not (folder / "models" / f"{kind}.py").is_file():
        raise DisaError(f"there is no {FOLDERS[kind]}/models/{kind}.py in {root}: expected a checkout of DiSA.")
    sys.path.insert(0, str(folder))
    before: Any = (Tensor.cuda, nn.Module.cuda)
    try:
        stand_in_for_flash_attention()
        if device.type != "cuda":  # it moves all that it makes to CUDA
            Tensor.cuda = nn.Module.cuda = lambda self, *_, **__: self  # pyright: ignore
        yield importlib.import_module(f"models.{kind}")
    except ImportError as error:
        raise DisaError(f"the official code needs {error.name}: pip install {error.name}.") from error
    finally:
        Tensor.cuda, nn.Module.cuda = before
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in THEIRS]:
            del sys.modules[name]


def stand_in_for_flash_attention() -> None:
    """A module in place of flash_attn where it is not installed."""
    try:
        importlib.import_module("flash_attn")
    except ImportError:
        module: Any = ModuleType("flash_attn")

        def flash_attn_func(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
            q, k, v = (each.transpose(1, 2) for each in (query, key, value))
            return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

        module.flash_attn_func = flash_attn_func
        sys.modules["flash_attn"] = module


def official(module: Any, preset: Preset, early: int, late: int, sampler: str) -> Any:
    """The official model of a preset, with the random weights that it begins to train from."""
    c: Any = preset.spec.architecture
    norm = {"norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    if family(preset) == "mar":
        return module.MAR(
            img_size=16 * c.latent_size[0],
            encoder_embed_dim=c.encoder_width,
            encoder_depth=c.encoder_depth,
            encoder_num_heads=c.encoder_heads,
            decoder_embed_dim=c.decoder_width,
            decoder_depth=c.decoder_depth,
            decoder_num_heads=c.decoder_heads,
            buffer_size=c.buffer_size,
            diffloss_d=c.head_depth,
            diffloss_w=c.head_width,
            diff_upper_steps=early,
            diff_lower_steps=late,
            diff_sampler=sampler,
            **norm,
        )
    sizes = {
        "encoder_embed_dim": c.width,
        "decoder_embed_dim": c.width,
        "encoder_depth": c.encoder_depth,
        "decoder_depth": c.decoder_depth,
        "encoder_num_heads": c.num_heads,
        "decoder_num_heads": c.num_heads,
    }
    if family(preset) == "xar":
        return module.xAR(**sizes, **norm)
    return module.FlowAR(**sizes, **norm, diffloss_d=c.head_depth, diffloss_w=c.head_width, cross=c.cross)


def sampling(model: Any, preset: Preset, asked: Asked, bounds: tuple[int, int], labels: Tensor) -> Callable[[], Tensor]:
    """Draws a batch by the official code."""
    own, (early, late) = preset.defaults, bounds
    if family(preset) == "mar":
        about = {"num_iter": asked.num_ar_steps, "cfg": own.guidance, "cfg_schedule": own.ramp, "labels": labels}
        return lambda: model.sample_tokens(bsz=len(labels), **about)
    steps = {"flow_upper_steps": early, "flow_lower_steps": late, "cfg": own.guidance}
    if family(preset) == "xar":
        return lambda: model.sample_tokens(label=labels, **steps)
    return lambda: model.sample_tokens(labels=labels, guidance=own.interval[1], **steps)


# -- both --------------------------------------------------------------------------------------------------------------


class Comparison:
    """One model, drawn by both."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.given, self.device = given, torch.device(given.device)
        preset = PRESETS[name]
        if given.quick:
            architecture = replace(preset.spec.architecture, **QUICK[family(preset)])  # pyright: ignore
            preset = replace(preset, spec=replace(preset.spec, architecture=architecture))
        self.preset = preset
        self.asked = self._asked()
        texts = re.findall(r"\d+", self.asked.steps)
        self.bounds = int(texts[0]), int(texts[-1])

    def _asked(self) -> Asked:
        asked = Asked.of(self.preset, "original" if self.given.original else "disa")
        if not self.given.quick:
            return asked
        fewer = QUICK_AR_STEPS if family(self.preset) == "mar" else asked.num_ar_steps
        return Asked(fewer, QUICK_STEPS)

    def run(self) -> dict[str, Any]:
        """Seconds of batches of both."""
        with imported(self.given.official, family(self.preset), self.device) as module, torch.no_grad():
            ways = {"official": self.theirs(module), "disa": self.ours()}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for way in ways.values():
                for _ in range(self.given.warm):
                    way()
            for _ in range(self.given.repeats):
                for name, way in ways.items():
                    seconds[name].append(self.timed(way))
                    note(f"{self.preset.name} {name}: {seconds[name][-1]:.3g} s")
        return {
            "seconds": seconds,
            "faster": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
            "batch": self.given.batch,
            "num_ar_steps": self.asked.num_ar_steps,
            "steps": self.asked.steps,
        }

    def theirs(self, module: Any) -> Callable[[], object]:
        sampler = "default" if self.given.original else "DiSA"
        model = official(module, self.preset, *self.bounds, sampler).to(self.device).eval()
        labels = torch.arange(self.given.batch, device=self.device) % 1000
        draw = sampling(model, self.preset, self.asked, self.bounds, labels)

        def once() -> None:
            half = self.given.dtype == "bf16"
            with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
                finite(draw())

        return once

    def ours(self) -> Callable[[], object]:
        kind = DTYPES[self.given.dtype]
        with torch.device("meta"):
            model: Any = self.preset.build()
        model = model.to(kind).to_empty(device=self.device).requires_grad_(False).eval()
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
        model = prepared(model, self.given.dtype, str(self.device))
        graphs = self.given.graphs == "on" and can_record(self.device)
        begin: Any = recorder_on(self.device).begin if graphs else Drawing

        def once() -> None:
            with undisturbed():
                noise = SeededNoise(range(self.given.batch), self.device, fused.normals)
                request, policy, solver = self.asked.drawing(self.preset, self.given.batch)
                *_, last = generate_steps(model, request, policy, solver, noise, begin=begin)
                finite(model.finish(last.state))

        return once

    def timed(self, way: Callable[[], object]) -> float:
        started = time.perf_counter()
        way()
        return time.perf_counter() - started


def finite(latents: Tensor) -> None:
    """Wait for what was drawn. Raises DisaError where it is not finite."""
    if not bool(torch.isfinite(latents).all()):
        raise DisaError("values that are not finite numbers were drawn.")


def row(name: str, found: dict[str, Any]) -> list[str]:
    """Of the table: medians of seconds, and of the ratios of neighbours."""
    medians = [f"{statistics.median(times):.3g}" for times in found["seconds"].values()]
    steps = f"{found['num_ar_steps']} x {found['steps']}"
    return [name, steps, str(found["batch"]), *medians, f"{found['faster']:.2f}x"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--official", type=Path, required=True, help="a checkout of the official DiSA code")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 on CUDA, fp32 on a CPU")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2, help="batches before, with graphs two or more")
    parser.add_argument("--graphs", choices=["on", "off"], default="on", help="whether disa replays captured graphs")
    parser.add_argument("--original", action="store_true", help="the settings of each model's own paper")
    parser.add_argument("--quick", action="store_true", help="models of few layers, in few steps")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.dtype = given.dtype or ("bf16" if given.device == "cuda" else "fp32")
    for name in given.models:
        if name not in PRESETS or family(PRESETS[name]) not in FOLDERS or PRESETS[name].embedded:
            parser.error(f"{name} has no official code to compare with: expected {', '.join(MODELS)} or a larger one")
    try:
        found = {name: Comparison(name, given).run() for name in given.models}
    except DisaError as error:
        parser.error(str(error))
    rows = [row(name, each) for name, each in found.items()]
    print(table(["model", "steps", "batch", "official: s", "disa: s", "disa is faster"], rows))
    about = {"dtype": given.dtype, "quick": given.quick, "graphs": given.graphs}
    publish({"benchmark": "official", **machine(given.device), **about, "models": found}, given.out)


if __name__ == "__main__":
    main()
