"""The official parameter names of MAR."""

from __future__ import annotations

import torch

from disa.models.mar.config import MARConfig
from disa.models.mar.model import MAR
from disa.models.naming import HEAD, TRUNK, NameMap, Part, renamed

_TRUNK = TRUNK | {"no_class": "fake_latent"}
_HEAD_BLOCK = {"norm": "in_ln", "fc1": "mlp.0", "fc2": "mlp.2"}


def official_names(config: MARConfig) -> NameMap:
    """Our parameter names and the official ones; the modulations of all head blocks are one tensor here."""
    with torch.device("meta"):
        ours = MAR(config).state_dict()
    return NameMap({name: _official_name(name, config) for name in ours})


def _official_name(name: str, config: MARConfig) -> list[Part]:
    first, _, rest = name.partition(".")
    if first != "head":
        return [Part(renamed(name, _TRUNK))]
    layer, _, leaf = rest.partition(".")
    if layer == "modulation":
        width, net = config.head_width, "diffloss.net"
        blocks = [Part(f"{net}.res_blocks.{i}.adaLN_modulation.1.{leaf}", 3 * width) for i in range(config.head_depth)]
        return [*blocks, Part(f"{net}.final_layer.adaLN_modulation.1.{leaf}", 2 * width)]
    if layer == "blocks":
        index, part, leaf = leaf.split(".")
        return [Part(f"diffloss.net.res_blocks.{index}.{_HEAD_BLOCK[part]}.{leaf}")]
    return [Part(f"diffloss.net.{renamed(rest, HEAD)}")]
