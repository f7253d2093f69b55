"""Published models, small: presets of the same names, families and defaults with few and random weights, and their
files as their authors publish them, so that whatever reads the real ones reads these."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from disa.codecs import dc, kl16
from disa.codecs.binary import BinaryAE
from disa.codecs.dc import DCCodec
from disa.evaluate import spaces
from disa.evaluate.spaces import Space
from disa.models.nextstep.text import AREA, BEGIN, END, PLACE
from disa.models.registry import PRESETS
from disa.models.spec import Preset
from disa.weights import load as loading
from disa.weights.folders import save_codec
from small import changed, randomised
from test_harmon import tokenizer

FEW: dict[str, Any] = {
    "width": 32, "head_width": 64, "depth": 1, "heads": 2, "latent_size": (4, 4), "scales": (1, 2, 4), "buffer_size": 4,
    "class_tokens": 3, "head_modulations": 1, "llm_hidden": 48, "vocab_size": 300, "max_positions": 400,
    "placeholder_id": 99,
}  # fmt: skip
"""Of an architecture, by the names of its fields or by what these end in. The tokenizers below have a token of a
picture, the fourth behind their 96 characters."""
CODECS: dict[str, tuple[int, dict[str, Any]]] = {
    "VAEConfig": (8, {"layers_per_block": 1, "norm_groups": 4, "encoder_attention_levels": ()}),
    "BinaryConfig": (32, {"layers_per_block": 1}),
    "DCConfig": (32, {"encoder_layers": (0, 0, 0, 1, 1, 1), "decoder_layers": (0, 0, 0, 1, 1, 1)}),
}
"""Of an autoencoder: the width of every level, and what else is small."""
QWEN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
WORDS = {"harmon": QWEN, "unipic": QWEN, "nextstep": (AREA, BEGIN, END, PLACE)}
"""Tokens of a family's tokenizer, beside letters."""
AR_STEPS = 2


def in_few_steps(preset: Preset) -> Preset:
    """Drawn in two AR steps, if its family leaves their number open, and in few denoising steps."""
    number = preset.spec.architecture.capabilities.num_ar_steps or AR_STEPS
    return changed(preset, num_ar_steps=number, steps="linear:5-2", original="constant:20")


def narrow(config: Any, **kept: Any) -> Any:
    """An architecture of few weights; kept: fields that are as they are given."""
    few = {name: FEW.get(name) or FEW.get(name.rpartition("_")[2]) for name in vars(config)}
    return replace(config, **{name: value for name, value in few.items() if value} | kept)


def small_preset(preset: Preset) -> Preset:
    """The same with few weights, for images of its own size."""
    codec: Any = preset.spec.codec
    config = narrow(preset.spec.architecture)
    width, blocks = CODECS[type(codec).__name__]
    codec = replace(codec, block_widths=(width,) * len(codec.block_widths), **blocks)
    return in_few_steps(changed(preset, architecture=config, codec=codec, size=None))


def small_presets() -> dict[str, Preset]:
    """Every preset by its name: what ships as it is, all else small."""
    return {name: in_few_steps(preset) if preset.embedded else small_preset(preset) for name, preset in PRESETS.items()}


def shrink(name: str, patch: pytest.MonkeyPatch) -> None:
    """Few and random weights in the place of those that ship; the autoencoder stays."""
    own, real = PRESETS[name], loading.read_embedded
    config = own.spec.architecture
    preset = changed(own, architecture=narrow(config, latent_size=config.latent_size))
    weights = randomised(preset.build()).state_dict()
    patch.setitem(PRESETS, name, preset)
    patch.setattr(loading, "read_embedded", lambda each: weights if each == name else real(each))


def official(preset: Preset) -> dict[str, Tensor]:
    """Random weights under official names."""
    return preset.official_names().to_official(randomised(preset.build()).state_dict())


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous().clone() for name, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def kl16_file(path: Path, preset: Preset) -> Path:
    """The autoencoder of a preset, as the authors of latent diffusion name its tensors."""
    config: Any = preset.spec.codec
    torch.manual_seed(0)
    state = kl16.to_official(dict(kl16.build(config).state_dict()), config)
    return written(path, state if path.suffix == ".safetensors" else {"model": state})


def write_files(folder: Path, presets: dict[str, Preset]) -> None:
    """Files that commands name, beside those of the hub in `hub`."""
    mar = official(presets["mar-base"])
    written(folder / "checkpoint-last.pth", {"model": mar, "model_ema": mar, "epoch": 399})
    seven = changed(presets["mar-base"], architecture=replace(presets["mar-base"].spec.architecture, num_classes=7))
    written(folder / "mine.pth", official(seven))
    for name, file in {"flowar-large": "FlowAR-L.pth", "xar-base": "xAR-B.pth", "bitdance-base": "BitDance_B_1X.pt",
                       "emigm-base-512": "eMIGM_base_512_checkpoint.pth", "harmon-0.5b": "harmon_0.5b.pth",
                       "unipic-1": "pytorch_model.bin"}.items():  # fmt: skip
        written(folder / file, official(presets[name]))
    kl16_file(folder / "kl16.ckpt", presets["mar-base"])
    binary: Any = presets["bitdance-base"].spec.codec
    written(folder / "ae_d16c32.pt", randomised(BinaryAE(binary)).state_dict())
    compressed: Any = presets["emigm-base-512"].spec.codec
    save_codec(folder / "dc-ae-f32c32-in-1.0-diffusers", DCCodec(dc.build(compressed).requires_grad_(False)))
    for name in ("unipic-1", "nextstep-1", "nextstep-1-edit", "harmon-0.5b"):
        write_hub(folder / "hub", presets[name])


def write_hub(hub: Path, preset: Preset) -> None:
    """Weights, autoencoder and tokenizer of a preset, in the repositories where it looks for them."""
    assets, family = preset.assets, preset.spec.family
    assert assets.weights is not None
    assert assets.codec_weights is not None
    tokenizer(hub / assets.tokenizer, *WORDS[family])
    written(hub / assets.weights.repo / assets.weights.name.replace("*", "model"), official(preset))
    kl16_file(hub / assets.codec_weights.repo / assets.codec_weights.name, preset)


def answer_from(hub: Path, patch: pytest.MonkeyPatch) -> None:
    """The hub has what lies in this folder, and nobody asks the real one."""
    patch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    patch.setattr("huggingface_hub.hf_hub_download", lambda name, file, **_: str(hub / name / file))
    patch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(hub / name))


# -- what others measured ------------------------------------------------------------------------------------------


def write_measured(folder: Path) -> None:
    """A reference in ADM's form, and results of GenEval and GenEval 2."""
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    np.savez(folder / "VIRTUAL_imagenet256_labeled.npz", images)
    lines = [
        {"tag": tag, "prompt": f"{tag} {i}", "correct": i % 2 == 0, "metadata": json.dumps({"prompt": f"{tag} {i}"})}
        for tag in ("counting", "colors")
        for i in range(20)
    ]
    (folder / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "score_lists.json").write_text(json.dumps([[1.0, 0.25], [0.5], [0.0, 1.0]] * 10))


def random_features(patch: pytest.MonkeyPatch) -> None:
    """In the place of the networks that see photographs, whose weights are large, a random one."""
    real, random = spaces.load_space, torch.Generator().manual_seed(0)
    first = torch.randn(3 * 8 * 8, 6, generator=random) / 8

    def network(images: Tensor) -> tuple[Tensor, None]:
        return spaces.resized(images, 8).flatten(1) @ first / 127.5, None

    def load(text: str, device: torch.device) -> Space:
        name = text.partition(":")[0]
        photographs = name in ("inception", "efficientnet-lite0")
        return Space(name, "random", network) if photographs else real(text, device)

    patch.setattr(spaces, "load_space", load)
