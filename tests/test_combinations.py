"""Every order, counts, reuse, step policy, solver and guidance goes with every other, or is refused with one line."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

import small
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.harmon.text import FixedLength
from test_families import sampler as flow_sampler
from test_families import shrunk

OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "order": tuple({"order": order} for order in (None, "raster", "checkerboard:3", "halton")),
    "counts": (
        {}, {"counts": "exp", "num_ar_steps": 7}, {"counts": "linear", "num_ar_steps": 7}, {"counts": "stages:3-2-2"},
    ),
    "reuse": tuple({"reuse": reuse} for reuse in (None, "residual:2", "tokens:2", "residual:2+tokens:3")),
    "steps": tuple({"steps": steps} for steps in (
        "constant:2", "linear:4-2", "cosine:4-2/drawn", "two-stage:4-2/drawn", "frequency:4-2", "frequency:5",
    )),
    "solver": (
        {}, {"solver": "ddim", "grid": "uniform", "eta": 0.5}, {"solver": "dpm-solver++-2"}, {"solver": "euler"},
    ),
    "guidance": (
        {"guidance": 1.0}, {"guidance": 2.0}, {"guidance": 0.5, "ramp": "constant"},
        {"guidance": 2.0, "interval": (0.2, 0.8)}, {"guidance": 2.0, "progress": (0.5, 1.0)},
        {"guidance": 2.0, "progress": (0.2, 0.6)},
    ),
}  # fmt: skip


def pairs() -> list[dict[str, Any]]:
    """Settings in which every value of an option meets every value of every other one: more would take hours."""
    names, lists = list(OPTIONS), list(OPTIONS.values())
    wanted = {
        (a, i, b, j)
        for a in range(len(names))
        for b in range(a)
        for i, j in product(range(len(lists[a])), range(len(lists[b])))
    }
    chosen = list[dict[str, Any]]()
    random = torch.Generator().manual_seed(0)
    while wanted:
        tried = [[int(torch.randint(len(each), (), generator=random)) for each in lists] for _ in range(50)]
        covers = [{(a, row[a], b, row[b]) for a in range(len(row)) for b in range(a)} for row in tried]
        best = max(range(len(tried)), key=lambda n: len(covers[n] & wanted))
        if covers[best] & wanted:
            wanted -= covers[best]
            options = {name: value for place, row in zip(tried[best], lists, strict=True)
                       for name, value in row[place].items() if value is not None}  # fmt: skip
            chosen.append(options)
    return chosen


PAIRS = pairs()


@cache
def sampler(family: str) -> tuple[Sampler, dict[str, Any]]:
    """A small one, and what it is asked for."""
    if family == "mar":
        return small.sampler(), {"labels": [1, 2, 3]}
    if family != "harmon":
        return flow_sampler(shrunk(f"{family}-digits")), {"labels": [1, 2, 3]}
    pytest.importorskip("transformers")
    from test_harmon import CONFIG, PRESET, random_weights

    model = random_weights(CONFIG)
    return Sampler(PRESET, model, device="cpu", tokenizer=FixedLength(5)), {"prompts": ["a", "b", "c"]}


def drawn(family: str, options: dict[str, Any], **more: Any) -> torch.Tensor | str:
    """Latents, or what is said instead."""
    model, asked = sampler(family)
    try:
        return model.sample(seeds=[0, 1, 2], output_type="latent", **asked, **options, **more).latents
    except DisaError as error:
        return str(error)


@pytest.mark.parametrize("options", PAIRS, ids=lambda options: " ".join(map(str, options.values())))
@pytest.mark.parametrize("family", ["mar", "harmon", "flowar", "xar"])
def test_every_combination_draws_or_is_one_clear_line(family: str, options: dict[str, Any]) -> None:
    found = drawn(family, options)
    if isinstance(found, str):
        assert len(found.splitlines()) == 1
        assert expected_refusals(family, options), found
        return
    assert not expected_refusals(family, options)
    assert torch.isfinite(found).all()
    again = drawn(family, options, batch_size=2)
    assert isinstance(again, torch.Tensor)
    assert torch.equal(found, again)


def expected_refusals(family: str, options: dict[str, Any]) -> list[str]:
    """The options that cannot be."""
    wrong = ["steps"] if options["steps"] == "frequency:5" else []
    if family in ("flowar", "xar"):
        wrong += [name for name in ("order", "counts", "reuse") if name in options]
        wrong += ["steps"] if options["steps"].startswith("frequency") else []
        wrong += ["solver"] if options.get("solver") == "ddim" else []
    else:
        wrong += ["solver"] if options.get("solver") == "euler" else []
        wrong += ["reuse"] if family == "harmon" and "tokens" in options.get("reuse", "") else []
    return wrong
