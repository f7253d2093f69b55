"""The official parameter names of eMIGM."""

from __future__ import annotations

from dataclasses import replace

from disa.models.emigm.config import EMIGMConfig
from disa.models.mar import names as mar
from disa.models.naming import NameMap, Part


def official_names(config: EMIGMConfig) -> NameMap:
    """Our parameter names and the official ones.

    A shared mask token has two names officially. Where their values differ, that of `mask_token` counts: the official
    average leaves it out, and the official evaluation reads it last.
    """
    names = mar.official_names(config)
    if not config.shares_mask_token:
        return names
    parts = {name: parts for name, parts in names.parts.items() if name != "mask_token"}
    parts["no_class"] = [Part("mask_token")]
    return replace(names, parts=parts, copies={"fake_latent": "mask_token"}, stale_copies=True)
