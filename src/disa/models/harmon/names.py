"""The official parameter names of Harmon."""

from __future__ import annotations

from disa.models.harmon.config import HarmonConfig
from disa.models.language import LAYER
from disa.models.mar import names as mar
from disa.models.naming import NameMap, Part

_TABLE, _OUTPUT = "llm.model.embed_tokens.weight", "llm.lm_head.weight"


def official_names(config: HarmonConfig) -> NameMap:
    """Our parameter names and the official ones. A tied table is twice in official files, or once; an autoencoder that
    lies in them is not ours to read here. It does without transformers."""
    parts = {
        f"mar.{name}": [Part(f"mar.{part.name}", part.rows) for part in parts]
        for name, parts in mar.official_names(config).parts.items()
    }
    layers = [f"layers.{i}.{leaf}" for i in range(config.llm_depth) for leaf in LAYER]
    parts |= {f"llm.{name}": [Part(f"llm.model.{name}")] for name in ("embed_tokens.weight", *layers, "norm.weight")}
    parts |= {} if config.tied else {"lm_head.weight": [Part(_OUTPUT)]}
    for name in ("proj_in", "proj_out"):
        for ours, theirs in (("fc1", "0"), ("fc2", "2")):
            parts |= {f"{name}.{ours}.{leaf}": [Part(f"{name}.{theirs}.{leaf}")] for leaf in ("weight", "bias")}
    return NameMap(
        parts,
        ignored=lambda name: name.startswith("vae.") or name.endswith(".inv_freq"),
        copies={_OUTPUT: _TABLE} if config.tied else {},
    )
