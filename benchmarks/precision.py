"""What rounding to bf16 does to pictures, part by part: the error of latents against a network in float64.

    python benchmarks/precision.py                    # the embedded models, on one core in some minutes
    python benchmarks/precision.py --golden FOLDER    # and the recorded runs of the official code, by their solvers
    python benchmarks/precision.py mar-digits --images 4

The first lines are fp32 and bf16 as disa draws. In each of the others one more part is rounded to bf16 that disa keeps
in float32: what it adds says whether that part has to stay. The same seeds, noise and steps everywhere; embedded models
are drawn by dpm-solver++-2. Then autoencoders: the error of images, all in bf16 and with the last layers in float32.
Root mean square of the differences, as a share of that of the right values.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import note, publish
from gpu_write import precision
from launches import request_for
from tables import ROOT
from torch import Tensor, nn

from disa.codecs.base import LatentCodec
from disa.codecs.kl16 import KL16Codec, VAEConfig, build, from_official
from disa.core import solver, solvers
from disa.core.generate import generate_steps
from disa.core.multistep import DPMSolverPlusPlus
from disa.core.noise import SeededNoise
from disa.core.problem import Bound, Prediction
from disa.core.solver import Walk, advance
from disa.core.texts import parse
from disa.draw.sampler import Sampler
from disa.models.registry import PRESETS
from disa.runtime import fused, packing
from disa.runtime.devices import CPU
from disa.runtime.surroundings import undisturbed

sys.path.append(str(ROOT / "tests"))

from golden import Case, replay  # pyright: ignore

MODELS = "mar-digits", "flowar-digits", "xar-digits"
RECORDED = "mar_ddpm_linear_cfg", "flowar_50", "xar_disa", "harmon_t2i"
"""With random weights, each by its official solver."""
STEPS, NUM_AR_STEPS = "linear:10-4", {"mar-digits": 8}
HALF = torch.bfloat16


def rounded_walk(walk: Walk, bound: Bound, said: Sequence[Prediction] = ()) -> Tensor:
    """The end of a walk whose state is rounded before each evaluation."""
    asked, end = advance(walk)
    while asked is not None:
        asked[0].copy_(asked[0].to(HALF))
        asked, end = advance(walk, bound(*asked))
    assert end is not None
    return end


@contextmanager
def rounded_state() -> Iterator[None]:
    """Solvers keep their state in bf16, those of a flow, too."""
    with patch.object(solver, "finished", rounded_walk), patch.object(solvers, "precise", lambda x: x):
        yield


@contextmanager
def plain_form(operator: fused.Operator, other: Callable[..., Any]) -> Iterator[None]:
    """Another plain form of an operator."""
    with patch.object(operator, "plain", other):
        yield


def rounded_guidance(value: Tensor, variance: Tensor | None, scale: float) -> list[Tensor]:
    mixed = fused._guided(value.to(HALF), variance, scale)
    if len(value) == 2:
        mixed[0] = torch.lerp(value[1].to(HALF), value[0].to(HALF), scale).float()
    return mixed


def rounded_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shift: Tensor, scale: Tensor, eps: float, rms: bool
) -> Tensor:
    """Every value of the statistics, and what is made of them, in bf16."""
    h = x if rms else x - x.mean(-1, keepdim=True)
    h = h * (h.square().mean(-1, keepdim=True) + eps).rsqrt()
    h = h if weight is None or bias is None else h * weight + bias
    return torch.addcmul(h + shift, h, scale)


def rounded_positions(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return fused._turned(x, cos.to(HALF), sin.to(HALF))


PARTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "the state x": rounded_state,
    "the mix of guidance": lambda: plain_form(fused.guided, rounded_guidance),
    "statistics of norms": lambda: plain_form(fused.modulated_norm, rounded_norm),
    "rotary positions": lambda: plain_form(fused.turned, rounded_positions),
}
"""What is rounded beside the network, by name: what holds meanwhile."""


def errors(name: str, latents: Callable[[torch.dtype], Tensor]) -> dict[str, float]:
    """What is computed how, and the error that this leaves. latents: as they are drawn in a dtype."""
    right, found = latents(torch.float64), dict[str, float]()

    def compare(what: str, dtype: torch.dtype) -> None:
        found[what] = share(latents(dtype), right)
        note(f"{name}, {what}: {found[what]:.2e}")

    compare("fp32", torch.float32)
    compare("bf16", HALF)
    for what, around in PARTS.items():
        with around():
            compare(f"bf16, and {what}", HALF)
    return found


def share(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


# -- what is drawn -----------------------------------------------------------------------------------------------------


def embedded(name: str, images: int) -> Callable[[torch.dtype], Tensor]:
    """[N, C, H, W] latents of the first seeds."""
    own: Any = packing.unpack(Sampler.from_pretrained(name, device="cpu").model)

    def latents(dtype: torch.dtype) -> Tensor:
        model: Any = deepcopy(own).to(dtype)
        with undisturbed():
            request = request_for(PRESETS[name], images, NUM_AR_STEPS.get(name))
            *_, last = generate_steps(model, request, parse(STEPS), DPMSolverPlusPlus(), SeededNoise(range(images)))
            return model.finish(last.state).double()

    return latents


def recorded(path: Path) -> Callable[[torch.dtype], Tensor]:
    """The tokens of a recorded run."""

    def latents(dtype: torch.dtype) -> Tensor:
        with undisturbed():
            found: Any = dict(replay(path, CPU, dtype, lambda value, _: value) or ())
            return found["tokens"].double()

    return latents


# -- autoencoders ------------------------------------------------------------------------------------------------------


def codec_errors(codec: LatentCodec, latents: Tensor) -> dict[str, float]:
    """The error of the images of latents [N, C, h, w], by what is computed how."""

    def images(dtype: torch.dtype) -> Tensor:
        return codec.to(dtype=dtype).decode(latents)

    right = images(torch.float64).double()
    found = {"fp32": share(images(torch.float32), right), "bf16": share(images(HALF), right)}
    for layer in last_layers(codec.model):
        layer.float().register_forward_pre_hook(lambda _, given: tuple(each.float() for each in given))
    return found | {"bf16, but the last layers": share(codec.decode(latents), right)}


def last_layers(network: Any) -> list[nn.Module]:
    """The last norm and convolution of an autoencoder."""
    decoder = network.decoder
    return [*decoder][-3:] if isinstance(decoder, nn.Sequential) else [decoder.conv_norm_out, decoder.conv_out]


def embedded_codec(name: str, images: int, **asked: Any) -> dict[str, float]:
    sampler = Sampler.from_pretrained(name, device="cpu")
    latents = sampler.sample(seeds=range(images), output_type="latent", num_ar_steps=8, steps=STEPS, **asked).latents
    assert isinstance(sampler.codec, LatentCodec)
    return codec_errors(sampler.codec, latents)


def recorded_codec(path: Path) -> dict[str, float]:
    case = Case.read(path)
    config = VAEConfig.from_official(case.about["config"])
    network = build(config)
    network.load_state_dict(from_official(case.part("weights/"), config))
    return codec_errors(KL16Codec(network.eval()), case.tensors["inputs/latent"] * config.scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--golden", type=Path, help="folder of recorded runs of the official code")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    drawn = {name: errors(name, embedded(name, given.images)) for name in given.models}
    codecs = {
        "digits-vae": embedded_codec("mar-digits", given.images, labels=3),
        "shapes-vae": embedded_codec("harmon-shapes", given.images, prompts="a red circle", rewrite=False),
    }
    if given.golden:
        drawn |= {case: errors(case, recorded(given.golden / f"{case}.json")) for case in RECORDED}
        codecs |= {"vae_kl16": recorded_codec(given.golden / "vae_kl16.json")}
    result = {"benchmark": "precision", "steps": STEPS, "images": given.images}
    result |= {"models": drawn, "autoencoders": codecs}
    print(precision(result))
    publish(result, given.out)


if __name__ == "__main__":
    main()
