"""What a model says that it can do decides which requests it takes, before any work."""

from typing import Any

import pytest
import torch

from disa.core.capabilities import Capabilities
from disa.core.request import Prompts, Request
from disa.errors import DisaError
from disa.models.registry import PRESETS

ANY = Capabilities("Any", "labels", num_tokens=16, num_classes=10, any_size=True, keeps_tokens=True)
FIXED = Capabilities("Fixed", "labels", num_tokens=20, num_classes=10, num_ar_steps=3, group="scale")
ONE_BY_ONE = Capabilities("Serial", "labels", num_tokens=16, num_classes=10, any_size=True, one_by_one=True)
WORDS = Capabilities("Words", "prompts", num_tokens=16, any_size=True)


def known(num_unknown: int) -> dict[str, Any]:
    """Of one image of 4x4 tokens."""
    return {"known": torch.zeros(1, 2, 4, 4), "mask": (torch.arange(16) < num_unknown).view(1, 4, 4)}


@pytest.mark.parametrize(
    ("model", "request_"),
    [
        (ANY, Request(2, 16, torch.tensor([0, 9]))),
        (ANY, Request(1, 1)),
        (ANY, Request(1, 6, token_grid=(2, 3))),
        (ANY, Request(1, 5, **known(5))),
        (FIXED, Request(1, 3)),
        (WORDS, Request(1, 16, prompts=Prompts.of([[1, 2]]))),
        (ONE_BY_ONE, Request(1, 16)),
        (ONE_BY_ONE, Request(1, 6, token_grid=(2, 3))),
    ],
)
def test_what_a_model_can_do_is_taken(model: Capabilities, request_: Request) -> None:
    model.check(request_)


@pytest.mark.parametrize(
    ("model", "request_", "message"),
    [
        (ANY, Request(1, 17), r"1 to 16 \(tokens to draw\), found 17"),
        (ANY, Request(1, 0), "found 0"),
        (ANY, Request(1, 7, token_grid=(2, 3)), "1 to 6 .*found 7"),
        (ANY, Request(1, 6, **known(5)), "1 to 5 .*found 6"),
        (ANY, Request(2, 4, torch.tensor([0, 10])), "labels must be 0 to 9, found 10"),
        (ANY, Request(2, 4, torch.tensor([0, -1])), "labels must be 0 to 9, found -1"),
        (ANY, Request(1, 4, prompts=Prompts.of([[1]])), "Any cannot take prompts: expected labels"),
        (FIXED, Request(1, 4), "this Fixed draws its 3 scales one after the other: .* must be 3, found 4"),
        (FIXED, Request(1, 3, **known(5)), "its 3 scales .* cannot keep known tokens; use a MAR model"),
        (FIXED, Request(1, 3, token_grid=(2, 3)), "Fixed cannot take token grid"),
        (ONE_BY_ONE, Request(1, 15), "draws its tokens one after the other: an image of 16 has 16 AR steps, found 15"),
        (ONE_BY_ONE, Request(1, 16, token_grid=(2, 3)), "an image of 6 has 6 AR steps, found 16"),
        (ANY, Request(1, 3, source=torch.zeros(1, 2, 4, 4)), "Any cannot take source: expected labels and token grid"),
        (WORDS, Request(1, 3, torch.tensor([1])), "Words cannot take labels: expected prompts and token grid"),
    ],
)
def test_what_it_cannot_is_refused(model: Capabilities, request_: Request, message: str) -> None:
    with pytest.raises(DisaError, match=message):
        model.check(request_)


def test_what_the_families_can_do() -> None:
    for preset in PRESETS.values():
        can, family = preset.spec.architecture.capabilities, preset.spec.family
        words = family in {"harmon", "unipic", "nextstep"}
        assert (can.condition == "prompts") == (can.num_classes is None) == words
        assert can.describes == (family in {"harmon", "unipic"})
        assert can.one_by_one == (family == "nextstep")
        assert (can.edits, can.in_place) == (family in {"nextstep", "unipic"}, family == "unipic")
        assert can.keeps_tokens == (family in {"mar", "emigm", "harmon", "unipic"})
        assert can.any_size == (can.num_ar_steps is None) == (words or family in {"mar", "emigm"})
        can.check_ar_steps(preset.defaults.num_ar_steps)
