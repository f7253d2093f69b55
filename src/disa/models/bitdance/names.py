"""The official parameter names of BitDance."""

from __future__ import annotations

import torch

from disa.models.bitdance.config import BitDanceConfig
from disa.models.bitdance.model import BitDance
from disa.models.naming import HEAD, NameMap, Part, renamed

_TRUNK = {
    "class_embedding": "cls_embedding",
    "token_in": "proj_in",
    "input_norm": "emb_norm",
    "query": "query_token",
    "blocks": "layers",
    "head_positions": "pos_for_diff",
}
_BLOCK = {
    ".norm1.": ".attention_norm.",
    ".norm2.": ".ffn_norm.",
    ".attn.qkv.": ".attention.wqkv.",
    ".attn.proj.": ".attention.wo.",
    ".mlp.": ".feed_forward.",
}
_HEAD_BLOCK = {".attn.qkv.": ".attn.wqkv.", ".attn.proj.": ".attn.wo.", ".attn_norm.": ".norm1.", ".mlp.w": ".w"}


def official_names(config: BitDanceConfig) -> NameMap:
    """Our parameter names and the official ones; the modulations of the head are one tensor here."""
    with torch.device("meta"):
        ours = BitDance(config).state_dict()
    return NameMap({name: _official_name(name, config) for name in ours})


def _official_name(name: str, config: BitDanceConfig) -> list[Part]:
    first, _, rest = name.partition(".")
    if first != "head":
        return [Part(renamed(name, _TRUNK, _BLOCK))]
    layer, _, leaf = rest.partition(".")
    if layer == "modulation":
        rows, count = config.head_parts * config.head_width, config.head_modulations
        shared = [Part(f"head.net.ada_ln_blocks.{i}.{leaf}", rows) for i in range(count)]
        return [*shared, Part(f"head.net.final_layer.ada_ln_modulation.{leaf}", 2 * config.head_width)]
    inside = _HEAD_BLOCK | ({".norm.": ".norm2."} if config.group_size > 1 else {})
    return [Part(f"head.net.{renamed(rest, HEAD | {'blocks': 'res_blocks'}, inside)}")]
