"""NextStep's published weights, with the official settings."""

from __future__ import annotations

from dataclasses import replace

from disa.codecs.kl16 import VAEConfig
from disa.models.nextstep.config import NextStepConfig
from disa.models.spec import Assets, Defaults, HubFile, Preset, Spec

_VAE = HubFile("stepfun-ai/NextStep-1-f8ch16-Tokenizer", "checkpoint.pt")
_CODEC = VAEConfig(
    block_widths=(128, 256, 512, 512), scale=1.0, encoder_attention_levels=(), quant_conv=False, post_quant_conv=False
)


def _assets(hub: str) -> Assets:
    return Assets(HubFile(hub, "*.safetensors"), _VAE, page=f"https://huggingface.co/{hub}", tokenizer=hub)


_LARGE = Preset(
    Spec("nextstep-1", "nextstep", NextStepConfig(), _CODEC),
    Defaults(
        num_ar_steps=1024,
        steps="linear:50-5",
        original="constant:50",
        solver="euler-maruyama-ode",
        grid="nextstep",
        guidance=7.5,
        ramp="constant",
        batch_size=4,
    ),
    _assets("stepfun-ai/NextStep-1-Large"),
    "NextStep-1, 14 B parameters, text to image 512x512, one token per AR step",
)
_EDIT = replace(
    _LARGE,
    spec=replace(_LARGE.spec, name="nextstep-1-edit"),
    defaults=replace(_LARGE.defaults, grid="nextstep-3.2"),
    assets=_assets("stepfun-ai/NextStep-1-Large-Edit"),
    about="NextStep-1, 14 B parameters, edits pictures 512x512",
)
_LATER = replace(
    _LARGE,
    spec=replace(_LARGE.spec, name="nextstep-1.1", architecture=NextStepConfig(norm_tokens=False, positions_side=64)),
    defaults=replace(
        _LARGE.defaults, steps="linear:28-5", original="constant:28", solver="euler-maruyama-noisy", grid="uniform"
    ),
    assets=_assets("stepfun-ai/NextStep-1.1"),
    about="NextStep-1.1, 14 B parameters, text to image 512x512, one token per AR step",
)

PUBLISHED = (_LARGE, _EDIT, _LATER)
