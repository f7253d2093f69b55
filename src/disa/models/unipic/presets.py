"""UniPic's published weights, with the official settings."""

from __future__ import annotations

from dataclasses import replace

from disa.codecs.kl16 import VAEConfig
from disa.models.harmon.presets import LARGE_ARCHITECTURE
from disa.models.mar.presets import KL16
from disa.models.spec import Assets, Defaults, HubFile, Paper, Preset, Reported, Spec
from disa.models.unipic.config import UniPicConfig

_ARCHITECTURE = replace(UniPicConfig(**vars(LARGE_ARCHITECTURE)), latent_size=(32, 32))

PUBLISHED = (
    Preset(
        Spec("unipic-1", "unipic", _ARCHITECTURE, VAEConfig()),
        Defaults(num_ar_steps=32, grid="full", guidance=3.0, ramp="constant", size=(1024, 1024), batch_size=1),
        Assets(
            HubFile("Skywork/Skywork-UniPic-1.5B", "pytorch_model.bin"),
            KL16,
            page="https://github.com/SkyworkAI/UniPic",
            tokenizer="Qwen/Qwen2.5-1.5B-Instruct",
        ),
        "UniPic-1, 1.5 B parameters, text to image and editing 1024x1024, image to text",
        Paper(
            original=Reported("constant:100", num_ar_steps=32, geneval=0.86),
            source="Skywork UniPic (arXiv 2508.03320): GenEval overall",
        ),
    ),
)
