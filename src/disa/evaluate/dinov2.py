"""DINOv2 (Oquab et al. 2023) on transformers: from a folder in its form, or from a file of the authors.

Of a file the architecture is told by its tensors. Models with register tokens are refused: they are other features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disa.errors import DisaError
from disa.values import first_line, named
from disa.weights.read import read_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HEAD_WIDTH = 64
"""Of every published model."""
NAMES = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "pos_embed": "embeddings.position_embeddings",
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "norm": "layernorm",
    "attn.proj": "attention.o_proj",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w3": "mlp.down_proj",
}
"""The authors' names -> those of transformers; within a block, what follows its number."""
SPLIT = {
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
}


def load_dinov2(place: Path) -> tuple[Any, Path]:
    """The model, whose `pooler_output` is the class token after the last norm, and the file of its weights. Raises
    DisaError."""
    try:
        from transformers import Dinov2Config, Dinov2Model
    except ImportError as error:
        raise DisaError('dinov2 needs transformers: pip install "disa[harmon]".') from error
    weights = place / WEIGHTS if place.is_dir() else place
    if not weights.is_file() or (place.is_dir() and not (place / CONFIG).is_file()):
        raise DisaError(
            f"{named(place)} holds no DINOv2 weights: expected a folder with {CONFIG} and {WEIGHTS}, as "
            "facebook/dinov2-large, or a file of the authors, as dinov2_vitl14_pretrain.pth."
        )
    if place.is_file():
        state = read_tensors(place)
        try:
            model = Dinov2Model(Dinov2Config(**architecture(state)))
            model.load_state_dict(renamed(state))
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise DisaError(f"{named(place)} does not hold the weights of a DINOv2 model of the authors.") from error
        return model, weights
    try:
        return Dinov2Model.from_pretrained(place, local_files_only=True, use_safetensors=True), weights
    except Exception as error:  # whatever a configuration of something else makes it stumble over
        raise DisaError(f"{named(place)} does not hold a DINOv2 model: {first_line(error)}.") from error


def architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of transformers' configuration. Raises KeyError where this is something else."""
    width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    gated = "blocks.0.mlp.w12.weight" in state
    return {
        "hidden_size": width,
        "num_attention_heads": width // HEAD_WIDTH,
        "num_hidden_layers": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "mlp_ratio": 4 if gated else state["blocks.0.mlp.fc1.weight"].shape[0] // width,
        "use_swiglu_ffn": gated,
        "patch_size": patch,
        "image_size": side * patch,
    }


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of transformers."""
    found = dict[str, Tensor]()
    for name, value in state.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        prefix, rest = (f"encoder.layer.{block[1]}.", name[block.end() :]) if block else ("", name)
        stem, dot, kind = (rest, "", "") if rest in NAMES else rest.rpartition(".")
        parts = SPLIT.get(stem, (NAMES.get(stem, stem),))
        for part, values in zip(parts, torch.chunk(value, len(parts)), strict=True):
            found[f"{prefix}{part}{dot}{kind}"] = values
    return found
