"""The official parameter names of FlowAR."""

from __future__ import annotations

import torch

from disa.models.flowar.config import FlowARConfig
from disa.models.flowar.model import FlowAR
from disa.models.naming import GATED_MLP, HEAD, TRUNK, NameMap, Part, renamed
from disa.models.transformer import PARTS

_HEAD = HEAD | {"blocks": "res_blocks"}
_INSIDE = GATED_MLP | {
    ".cross.norm.": ".norm2_1.",
    ".cross.condition_norm.": ".norm2_2.",
    ".cross.query.": ".crossattn.q.",
    ".cross.key_value.": ".crossattn.kv.",
    ".cross.proj.": ".crossattn.proj.",
    ".modulation.": ".ada_lin_attn.",
}


def official_names(config: FlowARConfig) -> NameMap:
    """Our parameter names and the official ones; the modulations of all transformer blocks are one tensor here."""
    with torch.device("meta"):
        ours = FlowAR(config).state_dict()
    return NameMap({name: _official_name(name, config) for name in ours}, _follows_from_architecture)


def _follows_from_architecture(name: str) -> bool:
    return name == "mask" or name.endswith((".rope.freqs", ".rope.freqs_cos", ".rope.freqs_sin"))


def _official_name(name: str, config: FlowARConfig) -> list[Part]:
    first, _, rest = name.partition(".")
    if first == "modulation":
        depths = {"encoder_blocks": config.encoder_depth, "decoder_blocks": config.decoder_depth}
        blocks = [f"{part}.{i}" for part, depth in depths.items() for i in range(depth)]
        return [Part(f"{block}.ada_lin.1.{rest}", PARTS * config.width) for block in blocks]
    if first != "head":
        return [Part(renamed(name, TRUNK, _INSIDE))]
    layer, _, leaf = rest.partition(".")
    if layer != "modulation":
        return [Part(f"flownet.{renamed(rest, _HEAD, _INSIDE)}")]
    index, leaf = leaf.split(".")
    if int(index) == config.head_depth:
        return [Part(f"flownet.final_layer.adaLN_modulation.1.{leaf}")]
    return [Part(f"flownet.res_blocks.{index}.{'ada_lin_mlp' if config.cross else 'ada_lin'}.{leaf}")]
