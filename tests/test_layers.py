"""Leaves: rows in tiles, and what packing leaves behind."""

import weakref

import pytest
import torch
from torch import nn

from disa.core.diffusion import CosineDiffusion
from disa.core.problem import Prediction
from disa.models import layers
from disa.models.guided import Guided
from disa.models.heads import DiffusionHead, HeadNetwork


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


def test_tiles_hold_all_rows_in_few_sizes() -> None:
    sizes = {n: layers.tiles(n) for n in range(5000)}
    for n, tiles in sizes.items():
        assert 0 <= sum(tiles) - n < layers.MIN_ROWS
        assert tiles == (n,) or all(tile % layers.MIN_ROWS == 0 for tile in tiles)
    assert {tile for tiles in sizes.values() if len(tiles) > 1 for tile in tiles} == {1024, 256, 64, 48, 32, 16}
    assert sizes[0] == (0,)
    assert sizes[640] == (640,)  # no seams where the number of rows is round


@pytest.mark.parametrize("packed", [False, True])
def test_rows_do_not_depend_on_their_tiles(packed: bool) -> None:
    if packed and not layers.can_pack(torch.float32):
        pytest.skip("this build of PyTorch cannot pack weights")
    mlp = layers.MLP(32, 48).requires_grad_(False)
    layers.initialise(mlp, seed=0)
    model = layers.pack(mlp) if packed else mlp
    x = torch.randn(1, 1400, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = model(x)
        for count in (1, 11, 12, 15, 16, 17, 40, 100, 257, 333, 1103, 1399):
            assert torch.equal(model(x[:, 1:][:, :count]), together[:, 1:][:, :count])
            assert torch.equal(model(x[0, -count:]), together[0, -count:])


def test_nothing_is_divided_while_training() -> None:
    seen = list[int]()

    def apply(rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return 2 * rows

    x = torch.randn(3, 7, 5)
    assert torch.equal(layers.in_tiles(apply, x.flatten(0, 1)), 2 * x.flatten(0, 1))
    with torch.no_grad():
        assert torch.equal(layers.in_tiles(apply, x), 2 * x)
    assert seen == [21, 32]


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.6)])
def test_blocks_of_the_head_get_whole_tiles(interval: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    head = DiffusionHead(channels=4, condition_width=8, width=16, depth=1).requires_grad_(False)
    grid, seen, denoise = CosineDiffusion().grid("uniform", 5), list[int](), head.denoise

    def counted(h: torch.Tensor, modulation: torch.Tensor) -> Prediction:
        seen.append(len(h))
        return denoise(h, modulation)

    monkeypatch.setattr(head, "denoise", counted)
    for count in (1, 8, 17, 24, 33, 70, 150):
        network = HeadNetwork.of(head, torch.zeros(count, 8), torch.ones(count, 8))
        evaluate = Guided(network, 2.0, interval).on(grid)
        for denoise_step in range(5):
            assert evaluate(torch.zeros(count, 4), denoise_step).value.shape == (count, 4)
    assert len(seen) == 7 * 5
    assert all(layers.tiles(rows) == (rows,) for rows in seen)
