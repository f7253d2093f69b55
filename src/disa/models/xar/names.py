"""The official parameter names of xAR."""

from __future__ import annotations

import torch

from disa.models.naming import NameMap, Part
from disa.models.transformer import PARTS
from disa.models.xar.config import XARConfig
from disa.models.xar.model import XAR

_TRUNK = {
    "class_embedding": "class_emb",
    "time_in": "time_embed.mlp.0",
    "time_out": "time_embed.mlp.2",
    "token_in": "z_proj",
    "token_norm": "z_proj_ln",
    "encoder_positions": "encoder_pos_embed_learned",
    "encoder": "encoder_blocks",
    "decoder_in": "decoder_embed",
    "decoder_positions": "decoder_pos_embed_learned",
    "decoder": "decoder_blocks",
    "output": "pred",
}
_MLP = {"gate": "fc1_g", "value": "fc1_x", "out": "fc2"}


def official_names(config: XARConfig) -> NameMap:
    """Our parameter names and the official ones; the modulations of all blocks are one tensor here."""
    with torch.device("meta"):
        ours = XAR(config).state_dict()
    return NameMap({name: _official_name(name, config) for name in ours}, ignored=_is_buffer)


def _is_buffer(name: str) -> bool:
    return name == "mask" or ".rope." in name


def _official_name(name: str, config: XARConfig) -> list[Part]:
    first, _, rest = name.partition(".")
    if first == "modulation":
        depths = {"encoder_blocks": config.encoder_depth, "decoder_blocks": config.decoder_depth}
        blocks = [f"{part}.{i}" for part, depth in depths.items() for i in range(depth)]
        return [Part(f"{block}.ada_lin.1.{rest}", PARTS * config.width) for block in blocks]
    if ".mlp." in name:
        index, _, layer, leaf = rest.split(".")
        rest = f"{index}.mlp.{_MLP[layer]}.{leaf}"
    return [Part(".".join(filter(None, (_TRUNK.get(first, first), rest))))]
