"""What the backbone computes is counted where it runs, and operations are those that PyTorch counts itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import small
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.orders import Counts
from disa.core.request import Guidance, Prompts, Request
from disa.core.reuse import parse_reuse
from disa.core.solvers import make_solver
from disa.core.texts import parse
from disa.core.work import Work, attention, product, ran
from disa.models.registry import find_preset
from disa.models.spec import Preset

BATCH = 32
"""A multiple of it is never padded to a tile, so that nothing is computed that nobody asked for."""
ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    )
}


ONE_BY_ONE = replace(small.BITDANCE_CONFIG, latent_size=(2, 2), group_size=1, head_depth=4)
SMALL = {
    "bitdance": small.BITDANCE,
    "bitdance-1x": small.changed(small.BITDANCE, architecture=ONE_BY_ONE),
    "unipic, editing": small.changed(small.UNIPIC, architecture=replace(small.UNIPIC_CONFIG, head_depth=8)),
    "nextstep": small.changed(small.NEXTSTEP, architecture=replace(small.NEXTSTEP_CONFIG, head_depth=8)),
}
"""Of families that have no embedded model."""


def preset(name: str) -> Preset:
    return SMALL[name] if name in SMALL else find_preset(name)


def request(name: str, guidance: Guidance, **options: Any) -> Request:
    able = preset(name).spec.architecture.capabilities
    options = {"num_ar_steps": able.num_tokens if able.one_by_one else able.num_ar_steps or 3} | options
    if able.condition == "labels":
        return Request(BATCH, labels=torch.arange(BATCH) % 10, guidance=guidance, **options)
    words = [[5, 6, 7]] * BATCH + [[5, 9]] * BATCH
    if able.in_place:
        config: Any = preset(name).spec.architecture
        words = [[config.placeholder_id] * config.num_image_tokens() + row for row in words]
        options["source"] = torch.ones(BATCH, config.latent_channels, *config.latent_size)
    return Request(BATCH, prompts=Prompts.of(words), guidance=guidance, **options)


def counted(name: str, guidance: Guidance, steps: str = "constant:2", **options: Any) -> tuple[int, int, int]:
    """Backbone tokens, operations, and operations as PyTorch counts them."""
    model: Any = small.randomised(preset(name).build())
    solver = make_solver("ddpm" if model.process.predicts == "noise" else "euler", "uniform")
    asked = request(name, guidance, **options)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        turns = list(generate_steps(model, asked, parse(steps), solver, SeededNoise(range(BATCH))))
    return (
        sum(turn.backbone_tokens for turn in turns),
        sum(turn.operations for turn in turns),
        counter.get_total_flops(),
    )


@pytest.mark.parametrize("reuse", ["residual:2", "tokens:2"])
def test_operations_that_reuse_leaves_out_are_not_counted(reuse: str) -> None:
    _, operations, expected = counted(
        "mar-digits", Guidance(2.0), "constant:1", num_ar_steps=8, reuse=parse_reuse(reuse)
    )
    assert 0.99 * expected < operations <= expected


@pytest.mark.parametrize("name", ["mar-digits", "harmon-shapes", "flowar-digits", "xar-digits", *SMALL])
def test_operations_are_those_that_pytorch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1 %: what depends on time alone is computed once per grid and not counted; what both halves of guidance
    share, such as a head's input, is computed once and counted for both. No tile of attention is filled up here."""
    monkeypatch.setattr("disa.runtime.kernels.QUERY_TILE", 1)
    if preset(name).prompts:
        pytest.importorskip("transformers")
    for guidance in (Guidance(1.0), Guidance(2.0), Guidance(2.0, progress=(0.5, 1.0))):
        _, operations, expected = counted(name, guidance, "constant:16" if name in SMALL else "constant:2")
        assert abs(operations - expected) < 0.01 * expected


def test_backbone_tokens_worked_out_by_hand() -> None:
    """MAR of 64 tokens, 8 in the buffer: 2 encoder blocks over what is visible, 3 decoder blocks over all."""
    tokens, _, _ = counted("mar-digits", Guidance(1.0), counts=Counts("linear"), num_ar_steps=4)
    assert tokens == BATCH * (2 * (8 + 24 + 40 + 56) + 3 * 4 * 72)
    guided, _, _ = counted("mar-digits", Guidance(2.0, progress=(0.6, 1.0)), counts=Counts("linear"), num_ar_steps=4)
    assert guided == BATCH * (2 * (8 + 24 + 2 * 40 + 2 * 56) + 3 * 6 * 72)


def test_reports_tell_what_was_counted() -> None:
    samples = small.sampler().sample([1, 2], [0, 1])
    report = samples.report()
    assert report["backbone_tokens"] == sum(step["backbone_tokens"] for step in report["trace"]) > 0
    assert report["operations"] == sum(step["operations"] for step in report["trace"]) > 0
    halves = small.sampler().sample([1, 2], [0, 1], batch_size=1)
    assert (halves.backbone_tokens, halves.operations) == (samples.backbone_tokens, samples.operations)


def test_work_is_counted_where_it_is_listened_to() -> None:
    outer, inner = Work(), Work()
    ran(1, 1)
    with outer:
        ran(2, 3)
        with inner:
            ran(5, 7)
    ran(1, 1)
    with inner:
        ran(10, 10)
    assert (outer.tokens, outer.operations, inner.tokens, inner.operations) == (7, 10, 15, 17)
    assert (product(2, 3, 4, 5), attention(2, 3, 4, 5)) == (2 * 2 * (12 + 20), 4 * 120)
