"""First weights for training: positions that tell near from far, and heads that look nearby."""

import torch

from disa.models.harmon.model import Harmon
from disa.models.layers import Block
from disa.tiny import tasks
from disa.tiny.start import POSITION_SCALE, VALUE_SCALE, grid_sinusoids

NAME = "harmon-shapes"


def build(seed: int) -> Harmon:
    return tasks.find_task(NAME).build(seed)


def test_the_farther_the_less_alike() -> None:
    places = grid_sinusoids((4, 6), 64).unflatten(0, (4, 6))
    assert places.shape == (4, 6, 64)
    assert places.abs().max() <= 1
    likeness = torch.nn.functional.cosine_similarity(places[1, 2], places, dim=-1)
    assert likeness.argmax() == 1 * 6 + 2
    assert likeness[1, 3] > likeness[1, 4] > likeness[1, 5]
    assert likeness[2, 2] > likeness[3, 2]
    torch.testing.assert_close(likeness[1, 1], likeness[1, 3])


def test_half_of_the_heads_start_with_the_tokens_nearby() -> None:
    mar = build(0).mar
    config = mar.config
    image = mar.decoder_positions[0, config.buffer_size :].detach()
    assert 0.8 * POSITION_SCALE < image.std() < 1.2 * POSITION_SCALE
    block = mar.decoder[0]
    assert isinstance(block, Block)
    weight = block.attn.qkv.weight.detach()
    x = torch.nn.functional.layer_norm(image, image.shape[1:])
    query, key, value = (x @ part.T for part in weight.chunk(3))
    per_head = (config.num_tokens, config.decoder_heads, -1)
    shares = torch.einsum("qhd,khd->hqk", query.view(per_head), key.view(per_head)).div(32**0.5).softmax(-1)
    near = torch.cdist(places := torch.cartesian_prod(*map(torch.arange, config.grid)).float(), places) <= 1.5
    looked = (shares * near).sum(-1).mean(-1)
    local, other = looked.split(config.decoder_heads // 2)
    assert local.min() > 2 * other.max()
    torch.testing.assert_close(value @ block.attn.proj.weight.detach().T, VALUE_SCALE * x)


def test_the_start_follows_from_the_seed() -> None:
    first, again, other = (build(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "mar.encoder.0.attn.qkv.weight"
    assert not torch.equal(first[name], other[name])
