"""The head asks for whole tiles."""

import pytest
import torch

from disa.core.diffusion import CosineDiffusion
from disa.models.guided import Guided
from disa.models.heads import DiffusionHead, HeadNetwork
from disa.runtime.tiles import tiles


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.6)])
def test_blocks_of_the_head_get_whole_tiles(interval: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    head = DiffusionHead(channels=4, condition_width=8, width=16, depth=1).requires_grad_(False)
    grid, seen, denoise = CosineDiffusion().grid("uniform", 5), list[int](), head.denoise

    def counted(h: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        seen.append(len(h))
        return denoise(h, modulation)

    monkeypatch.setattr(head, "denoise", counted)
    for count in (1, 8, 17, 24, 33, 70, 150):
        network = HeadNetwork.of(head, torch.zeros(count, 8), torch.ones(count, 8))
        evaluate = Guided(network, 2.0, interval).on(grid)
        for denoise_step in range(5):
            assert evaluate(torch.zeros(count, 4), denoise_step).value.shape == (count, 4)
    assert len(seen) == 7 * 5
    assert all(tiles(rows) == (rows,) for rows in seen)
