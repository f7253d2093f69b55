"""What a UniPic is built from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from disa.core.capabilities import Capabilities
from disa.models.harmon.config import HarmonConfig


@dataclass(frozen=True)
class UniPicConfig(HarmonConfig):
    """Architecture: Harmon's."""

    placeholder_id: int = 151_665
    """The text token that stands where a token of a picture comes: the first behind those of Qwen2.5's tokenizer."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, family="UniPic", edits=True, in_place=True)
