"""The official parameter names of MAR."""

from __future__ import annotations

import torch

from disa.models.mar.config import MARConfig
from disa.models.mar.model import MAR
from disa.models.naming import TRUNK, NameMap, Part, head_parts, renamed

_TRUNK = TRUNK | {"no_class": "fake_latent"}


def official_names(config: MARConfig) -> NameMap:
    """Our parameter names and the official ones; the modulations of all head blocks are one tensor here."""
    with torch.device("meta"):
        ours = MAR(config).state_dict()
    return NameMap({name: _official_name(name, config) for name in ours})


def _official_name(name: str, config: MARConfig) -> list[Part]:
    first, _, rest = name.partition(".")
    if first != "head":
        return [Part(renamed(name, _TRUNK))]
    return head_parts(rest, "diffloss.net", config.head_width, config.head_depth)
