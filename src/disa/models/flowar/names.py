"""The official parameter names of FlowAR."""

from __future__ import annotations

import torch

from disa.models.flowar.config import FlowARConfig
from disa.models.flowar.model import FlowAR
from disa.models.naming import NameMap, Part
from disa.models.transformer import PARTS

_TRUNK = {
    "class_embedding": "class_emb",
    "token_in": "z_proj",
    "token_norm": "z_proj_ln",
    "encoder_positions": "encoder_pos_embed_learned",
    "encoder": "encoder_blocks",
    "decoder_in": "decoder_embed",
    "decoder_positions": "decoder_pos_embed_learned",
    "decoder": "decoder_blocks",
    "head_positions": "diffusion_pos_embed_learned",
}
_HEAD = {
    "time_in": "time_embed.mlp.0",
    "time_out": "time_embed.mlp.2",
    "condition": "cond_embed",
    "input": "input_proj",
    "output": "final_layer.linear",
    "blocks": "res_blocks",
}
_LEAVES = {
    ".mlp.gate.": ".mlp.fc1_g.",
    ".mlp.value.": ".mlp.fc1_x.",
    ".mlp.out.": ".mlp.fc2.",
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
        blocks = [f"{stack}_blocks.{i}" for stack in ("encoder", "decoder")
                  for i in range(getattr(config, f"{stack}_depth"))]  # fmt: skip
        return [Part(f"{block}.ada_lin.1.{rest}", PARTS * config.width) for block in blocks]
    if first != "head":
        return [Part(_leaf(".".join(filter(None, (_TRUNK.get(first, first), rest)))))]
    layer, _, rest = rest.partition(".")
    if layer != "modulation":
        return [Part(_leaf(f"flownet.{_HEAD[layer]}.{rest}"))]
    index, leaf = rest.split(".")
    if int(index) == config.head_depth:
        return [Part(f"flownet.final_layer.adaLN_modulation.1.{leaf}")]
    return [Part(f"flownet.res_blocks.{index}.{'ada_lin_mlp' if config.cross else 'ada_lin'}.{leaf}")]


def _leaf(name: str) -> str:
    """The official name of a layer inside a block."""
    for ours, official in _LEAVES.items():
        name = name.replace(ours, official)
    return name
