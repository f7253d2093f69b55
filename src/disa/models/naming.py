"""Official parameter names on the outside, ours on the inside: a bijection on state dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from disa.errors import DisaError
from disa.layout import check_names

TRUNK = {
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
"""Our names of what MAR, FlowAR and xAR have around their blocks, and the official ones."""
HEAD = {
    "time_in": "time_embed.mlp.0",
    "time_out": "time_embed.mlp.2",
    "condition": "cond_embed",
    "input": "input_proj",
    "output": "final_layer.linear",
}
"""The same of the heads of MAR and FlowAR."""
GATED_MLP = {".mlp.gate.": ".mlp.fc1_g.", ".mlp.value.": ".mlp.fc1_x.", ".mlp.out.": ".mlp.fc2."}
"""The same of a layer inside the blocks of FlowAR and xAR."""


def renamed(name: str, first: Mapping[str, str], inside: Mapping[str, str] | None = None) -> str:
    """A name whose first part has another name, and what stands inside of it."""
    module, dot, rest = name.partition(".")
    name = first.get(module, module) + dot + rest
    for ours, official in (inside or {}).items():
        name = name.replace(ours, official)
    return name


@dataclass(frozen=True)
class Part:
    """An official tensor that is all of one of ours (rows is None), or so many of its rows."""

    name: str
    rows: int | None = None


_HEAD_BLOCK = {"norm": "in_ln", "fc1": "mlp.0", "fc2": "mlp.2"}


def head_parts(name: str, net: str, width: int, depth: int) -> list[Part]:
    """The official tensors of one of a `DiffusionHead`, whose modulations are one tensor; net: what they begin with."""
    layer, _, leaf = name.partition(".")
    if layer == "modulation":
        blocks = [Part(f"{net}.res_blocks.{i}.adaLN_modulation.1.{leaf}", 3 * width) for i in range(depth)]
        return [*blocks, Part(f"{net}.final_layer.adaLN_modulation.1.{leaf}", 2 * width)]
    if layer == "blocks":
        index, part, leaf = leaf.split(".")
        return [Part(f"{net}.res_blocks.{index}.{_HEAD_BLOCK[part]}.{leaf}")]
    return [Part(f"{net}.{renamed(name, HEAD)}")]


@dataclass(frozen=True)
class NameMap:
    """Our name -> the official tensors that it is made of, stacked along the first dimension.

    ignored: whether an official name is a buffer that follows from the architecture, or of another model: a checkpoint
    may hold it or not. copies: official names under which another official tensor lies once more; a checkpoint may
    hold both or one of them. stale_copies: whether copies may have other values, which do not count.
    """

    parts: Mapping[str, list[Part]]
    ignored: Callable[[str], bool] = lambda _: False
    copies: Mapping[str, str] = field(default_factory=dict)
    stale_copies: bool = False

    @property
    def official(self) -> set[str]:
        """Every official name."""
        return {part.name for parts in self.parts.values() for part in parts} | set(self.copies)

    def known(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official tensors without the ignored ones, and with every copy."""
        known = {name: value for name, value in state.items() if not self.ignored(name)}
        for copy, name in self.copies.items():
            found = [known[each] for each in (name, copy) if each in known]
            if self.stale_copies and len({value.shape for value in found}) > 1:
                continue  # neither is the other's copy: the shapes will be told
            if len(found) == 2 and not (self.stale_copies or _same(*found)):
                raise DisaError(f"the checkpoint does not fit this model: {copy} should be equal to {name}.")
            known |= dict.fromkeys((name, copy), found[0]) if found else {}
        return known

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every official tensor, and no other but ignored ones, must be there."""
        state = self.known(state)
        check_names(self.official, state)
        return {
            name: state[parts[0].name] if len(parts) == 1 else torch.cat([state[part.name] for part in parts])
            for name, parts in self.parts.items()
        }

    def to_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `from_official`."""
        check_names(self.parts, state)
        official: dict[str, Tensor] = {}
        for name, parts in self.parts.items():
            pieces = [state[name]] if len(parts) == 1 else state[name].split([part.rows or 0 for part in parts])
            official |= {part.name: piece for part, piece in zip(parts, pieces, strict=True)}
        # A file cannot hold one tensor under two names.
        return official | {copy: official[name].clone() for copy, name in self.copies.items()}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.is_meta or b.is_meta or torch.equal(a, b))
