"""What a model can draw, and the one place where a request is held against it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from disa.core.orders import COSINE, RANDOM, Counts, Order
from disa.core.request import Guidance, Prompts, Request
from disa.core.reuse import Reuse
from disa.errors import DisaError


@dataclass(frozen=True)
class Capabilities:
    """What a model can do; messages call it by its family."""

    family: str
    condition: Literal["labels", "prompts"]
    num_tokens: int
    """Tokens of an image of the model's own size."""
    num_classes: int | None = None
    """Labels are 0 to one less; None where prompts are drawn."""
    vocab_size: int | None = None
    """Token ids of prompts are 0 to one less; None where the model checks them itself."""
    any_size: bool = False
    """Whether images of other sizes than its own can be drawn."""
    keeps_tokens: bool = False
    """Whether tokens that are known can be kept, and the others drawn."""
    reuses: tuple[str, ...] = ()
    """What of the backbone can be kept from earlier AR steps: `residual`, `tokens`."""
    describes: bool = False
    """Whether it can write a text about an image."""
    num_ar_steps: int | None = None
    """The only number of AR steps that there is; None for any from 1 to the number of tokens to draw."""
    one_by_one: bool = False
    """Whether every AR step draws one token, so that there are as many AR steps as tokens, whatever the size."""
    edits: bool = False
    """Whether it can draw a picture anew as prompts say."""
    in_place: bool = False
    """Whether that picture has the size of the image and stands where nothing is drawn yet. It has no guidance of its
    own then."""
    most_tokens: int = 65_536
    """Tokens of an image of any size, at most: more is a mistake in a number."""
    group: str = "token"
    """What an AR step draws where their number is fixed."""

    def check(self, request: Request) -> None:
        """Refuse a request that the model cannot draw. Raises DisaError."""
        if request.checked:
            return
        also = [name for name, can in (("token_grid", self.any_size), ("source", self.edits)) if can]
        request.check_fits(self.family, self.condition, *also)
        order = None if request.order == RANDOM else request.order
        self.check_order(order, None if request.counts == COSINE else request.counts)
        self.check_reuse(request.reuse)
        if request.labels is not None:
            self.check_labels(request.labels.tolist())
        if request.prompts is not None and self.vocab_size is not None:
            check_ids(request.prompts, self.vocab_size)
        if request.known is not None:
            self.check_keeps_tokens()
        if request.source is not None:
            self.check_edits(request.guidance)
        num_tokens = None if request.token_grid is None else math.prod(request.token_grid)
        unknown = num_tokens if request.mask is None else int(request.mask.flatten(1).sum(1).min())
        self.check_ar_steps(request.num_ar_steps, unknown)

    def check_ar_steps(self, num_ar_steps: int, num_tokens: int | None = None) -> None:
        """Every AR step draws at least one token; num_tokens: to draw, None for those of an image. Raises DisaError."""
        if self.num_ar_steps is not None and num_ar_steps != self.num_ar_steps:
            raise DisaError(
                f"{self._in_order}: the number of AR steps must be {self.num_ar_steps}, found {num_ar_steps}."
            )
        count = self.num_tokens if num_tokens is None else num_tokens
        if self.one_by_one and num_ar_steps != count:
            raise DisaError(f"{self._in_order}: an image of {count} has {count} AR steps, found {num_ar_steps}.")
        if not 1 <= num_ar_steps <= count:
            raise DisaError(f"the number of AR steps must be 1 to {count} (tokens to draw), found {num_ar_steps}.")

    @property
    def in_order(self) -> bool:
        """Whether what AR steps draw is fixed."""
        return self.num_ar_steps is not None or self.one_by_one

    def check_order(self, order: Order | None, counts: Counts | None) -> None:
        """Refuse an order or counts where what AR steps draw is fixed; None where none is asked for. Raises
        DisaError."""
        if self.in_order and (asked := [str(part) for part in (order, counts) if part is not None]):
            raise DisaError(f"{self._in_order}: leave {' and '.join(asked)} out.")

    def check_reuse(self, reuse: Reuse) -> None:
        """Refuse to keep what cannot be kept. Raises DisaError."""
        if not reuse.kinds or set(reuse.kinds) <= set(self.reuses):
            return
        if self.in_order:
            raise DisaError(f"{self._in_order}, and each has tokens of its own: leave {reuse} out.")
        raise DisaError(f"{self.family} can reuse {' and '.join(self.reuses)} of earlier AR steps, found {reuse}.")

    def check_size(self, token_grid: tuple[int, int], stride: int) -> None:
        """Refuse an image of too many tokens; stride: pixels along one side of a token. Raises DisaError."""
        rows, columns = token_grid
        if rows * columns <= self.most_tokens:
            return
        share = math.sqrt(self.most_tokens / (rows * columns))
        height, width = (min(self.most_tokens, max(1, int(count * share))) * stride for count in token_grid)
        raise DisaError(
            f"an image of {rows * stride}x{columns * stride} has {rows * columns} tokens, and this {self.family} draws "
            f"at most {self.most_tokens}: the largest of this shape is {height}x{width}."
        )

    def check_keeps_tokens(self) -> None:
        """Refuse known tokens where they cannot be kept. Raises DisaError."""
        if not self.keeps_tokens:
            raise DisaError(f"{self._in_order} and cannot keep known tokens; use a MAR model.")

    def check_edits(self, guidance: Guidance | None = None) -> None:
        """Refuse a picture where none can be edited, and guidance by it where it has none. Raises DisaError."""
        if not self.edits:
            raise DisaError(f"{self.family} cannot edit a picture; use a model that does, such as unipic-1.")
        if self.in_place and guidance is not None and guidance.three_way:
            raise DisaError(f"{self.family} guides by prompt and picture together: leave source_guidance out.")

    def check_labels(self, labels: Iterable[int]) -> None:
        """Every label must be a class of the model. Raises DisaError."""
        wrong = [label for label in labels if not 0 <= label < (self.num_classes or 0)]
        if wrong:
            raise DisaError(f"labels must be 0 to {(self.num_classes or 0) - 1}, found {wrong[0]}.")

    @property
    def _in_order(self) -> str:
        count = "" if self.num_ar_steps is None else f"{self.num_ar_steps} "
        return f"this {self.family} draws its {count}{self.group}s one after the other"


def check_ids(prompts: Prompts, vocab_size: int) -> None:
    """Refuse token ids that are not in a vocabulary. Raises DisaError."""
    low, high = (int(end) for end in prompts.ids.aminmax())
    if not 0 <= low <= high < vocab_size:
        raise DisaError(
            f"token ids must be 0 to {vocab_size - 1}, found {low} to {high}: "
            "the prompts were made with another model's tokenizer."
        )
