"""The official parameter names of xAR."""

from __future__ import annotations

import torch

from disa.models.naming import GATED_MLP, HEAD, TRUNK, NameMap, Part, renamed
from disa.models.transformer import PARTS
from disa.models.xar.config import XARConfig
from disa.models.xar.model import XAR

_TRUNK = TRUNK | {"time_in": HEAD["time_in"], "time_out": HEAD["time_out"], "output": "pred"}


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
    return [Part(renamed(name, _TRUNK, GATED_MLP))]
