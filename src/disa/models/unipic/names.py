"""The official parameter names of UniPic: Harmon's."""

from __future__ import annotations

from dataclasses import replace

from disa.models.harmon import names as harmon
from disa.models.harmon.config import HarmonConfig
from disa.models.naming import NameMap


def official_names(config: HarmonConfig) -> NameMap:
    """Our parameter names and the official ones. A second encoder of images that lies in official files is passed over:
    nothing that their code does calls it."""
    names = harmon.official_names(config)
    return replace(names, ignored=lambda name: name.startswith(("siglip2.", "siglip2_proj.")) or names.ignored(name))
