"""Leaves: what packing leaves behind."""

import weakref

import pytest
import torch
from torch import nn

from disa.models import layers


@pytest.mark.skipif(not layers.can_pack(torch.float32), reason="this build of PyTorch cannot pack weights")
def test_packing_lets_go_of_a_layer_before_it_packs_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Sequential(layers.Linear(8, 8), layers.Linear(8, 8)) for _ in range(3)))
    originals = [weakref.ref(m) for m in model.modules() if type(m) is layers.Linear]
    alive = list[int]()
    packed = layers.PackedLinear

    def counted(linear: nn.Linear) -> layers.PackedLinear:
        alive.append(sum(original() is not None for original in originals))
        return packed(linear)

    monkeypatch.setattr(layers, "PackedLinear", counted)
    layers.pack(model)
    assert alive == [6, 5, 4, 3, 2, 1]
