"""The official parameter names of NextStep."""

from __future__ import annotations

from disa.models.language import LAYER
from disa.models.naming import HEAD, NameMap, Part, head_parts
from disa.models.nextstep.config import NextStepConfig


def official_names(config: NextStepConfig) -> NameMap:
    """Our parameter names and the official ones; the modulations of all head blocks are one tensor here.

    The layer that writes text, the table of positions and an autoencoder that lies in the files are passed over:
    drawing needs none of them. It does without transformers.
    """
    layers = [f"layers.{i}.{leaf}" for i in range(config.llm_depth) for leaf in LAYER]
    parts = {f"llm.{name}": [Part(name)] for name in ("embed_tokens.weight", *layers, "norm.weight")}
    for name in ("image_in", "image_out"):
        parts |= {f"{name}.{leaf}": [Part(f"{name}_projector.{leaf}")] for leaf in ("weight", "bias")}
    blocks = [f"blocks.{i}.{name}" for i in range(config.head_depth) for name in ("norm", "fc1", "fc2")]
    for name in (f"{layer}.{leaf}" for layer in (*HEAD, "modulation", *blocks) for leaf in ("weight", "bias")):
        parts[f"head.{name}"] = head_parts(name, "image_head.net", config.head_width, config.head_depth)
    return NameMap(parts, ignored=_is_other)


def _is_other(name: str) -> bool:
    return name.startswith(("lm_head.", "vae.")) or name == "gen_pos_embed" or name.endswith(".inv_freq")
