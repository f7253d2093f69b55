"""Harmon's published weights and the embedded ones, with the official settings."""

from __future__ import annotations

from dataclasses import replace

from disa.codecs.kl16 import VAEConfig
from disa.codecs.small import SmallVAEConfig
from disa.models.harmon.config import HarmonConfig
from disa.models.mar.presets import KL16
from disa.models.spec import Assets, Defaults, HubFile, Paper, Preset, Reported, Spec

_SMALL_HUB, _LARGE_HUB = "wusize/Harmon-0_5B", "wusize/Harmon-1_5B"

_SMALL = Preset(
    Spec("harmon-0.5b", "harmon", HarmonConfig(), VAEConfig()),
    Defaults(num_ar_steps=64, guidance=3.0, ramp="constant", size=(512, 512), batch_size=4),
    Assets(
        HubFile(_SMALL_HUB, "*.safetensors"),
        KL16,
        page="https://github.com/wusize/Harmon",
        tokenizer=_SMALL_HUB,
    ),
    "Harmon 0.5B: Qwen2.5-0.5B and MAR-B, text to image 512x512 and image to text",
)
LARGE_ARCHITECTURE = HarmonConfig(
    encoder_width=1280,
    encoder_depth=20,
    encoder_heads=16,
    decoder_width=1280,
    decoder_depth=20,
    decoder_heads=16,
    head_width=1536,
    head_depth=12,
    llm_width=1536,
    llm_hidden=8960,
    llm_depth=28,
    llm_heads=12,
    llm_kv_heads=2,
)
_LARGE = Preset(
    replace(_SMALL.spec, name="harmon-1.5b", architecture=LARGE_ARCHITECTURE),
    _SMALL.defaults,
    replace(_SMALL.assets, weights=HubFile(_LARGE_HUB, "*.safetensors"), tokenizer=_LARGE_HUB),
    "Harmon 1.5B: Qwen2.5-1.5B and MAR-H, text to image 512x512 and image to text",
    Paper(
        original=Reported("constant:100", num_ar_steps=64, geneval=0.73, seconds=40.0),
        disa=Reported(num_ar_steps=64, geneval=0.74, seconds=8.1),
        source="DiSA (arXiv 2505.20297): GenEval overall, and seconds read from rounded ticks of a figure",
    ),
)

SHAPES_CODEC = SmallVAEConfig(in_channels=3, latent_channels=16, eighth_width=96, linear=True)
_SHAPES_ARCHITECTURE = HarmonConfig(
    latent_size=(6, 6),
    latent_channels=16,
    encoder_width=128,
    encoder_depth=2,
    encoder_heads=4,
    decoder_width=128,
    decoder_depth=3,
    decoder_heads=4,
    num_classes=1,
    buffer_size=8,
    head_width=192,
    head_depth=3,
    vocab_size=64,
    llm_width=128,
    llm_hidden=384,
    llm_depth=3,
    llm_heads=4,
    llm_kv_heads=2,
    max_positions=256,
)
SHAPES = Preset(
    Spec("harmon-shapes", "harmon", _SHAPES_ARCHITECTURE, SHAPES_CODEC),
    Defaults(
        num_ar_steps=24,
        temperature=0.9,
        guidance=1.5,
        ramp="constant",
        batch_size=100,
        rewrite=True,
        quality="shapes",
    ),
    Assets(embedded_codec="shapes-vae", embedded_tokenizer="shapes-tokenizer"),
    "Harmon, 2.4 M parameters, captioned shapes 48x48, text to image and image to text",
)

PUBLISHED = (_SMALL, _LARGE)
