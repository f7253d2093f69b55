"""What is to be drawn, as a model takes it: a batch of labels or prompts, its guidance, and what is known already."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from disa.core.orders import COSINE, RANDOM, Counts, Order
from disa.core.ramps import RAMPS
from disa.core.reuse import NONE, Reuse
from disa.errors import DisaError
from disa.values import many, number, one_of, shown


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: its scale, its ramp over AR steps, and where it acts.

    Where it does not act the unconditional half is not evaluated.
    """

    scale: float = 1.0
    """1 is off, and any other finite number is on."""
    ramp: str = "linear"
    """How the scale follows the share of the image that is known: one of `RAMPS`."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts where low <= t <= high, t from 0 (data) to 1 (noise) (Kynkäänniemi et al. 2024)."""
    progress: tuple[float, float] = (0.0, 1.0)
    """And where low <= k / (K - 1) <= high, which is 0 with a single AR step."""
    source_guidance: float = 1.0
    """Where a picture is edited, the scale of what the picture says beside what the words say; 1 leaves it to them
    (InstructPix2Pix, Brooks et al. 2023, eq. 3)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number(self.scale, "guidance"))
        object.__setattr__(self, "source_guidance", number(self.source_guidance, "source_guidance"))
        one_of(self.ramp, RAMPS, "guidance ramp")
        for name, what in (("interval", "times"), ("progress", "shares")):
            given, ends = getattr(self, name), list[float]()
            with suppress(DisaError):
                ends = many(given, number, name)
            if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= 1:
                raise DisaError(f"the guidance {name} must be two {what} 0 <= low <= high <= 1, found {shown(given)}.")
            object.__setattr__(self, name, (ends[0], ends[1]))

    @property
    def active(self) -> bool:
        return self.scale != 1.0 or self.three_way

    @property
    def three_way(self) -> bool:
        """Whether words and picture have scales of their own."""
        return self.source_guidance != 1.0

    def of_source(self) -> Guidance:
        """The same of the picture's scale."""
        return replace(self, scale=self.source_guidance)

    def to_json(self) -> dict[str, Any]:
        """By the names of the options of drawing."""
        ends = {"interval": list(self.interval), "progress": list(self.progress)}
        source = {"source_guidance": self.source_guidance} if self.three_way else {}
        return {"guidance": self.scale, "ramp": self.ramp} | ends | source

    def at(self, known: float) -> float:
        """What the ramp makes of the scale when the share `known` of the image will be known after this AR step."""
        return self.scale if self.ramp == "constant" else 1 + (self.scale - 1) * RAMPS[self.ramp](known)

    def scales(self, known: Sequence[float]) -> list[float]:
        """[K] the scale of every AR step, 1 where guidance is off. known: [K] what the ramp follows, see `at`."""
        last, (low, high) = max(1, len(known) - 1), self.progress
        return [self.at(share) if low <= k / last <= high else 1.0 for k, share in enumerate(known)]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Tokenised prompts."""

    ids: Tensor
    """[N, P] token ids, padded on the right with any id."""
    lengths: Tensor
    """[N] tokens of each prompt without its padding."""

    def __post_init__(self) -> None:
        if self.ids.dim() != 2 or tuple(self.lengths.shape) != (len(self.ids),):
            found = f"{tuple(self.ids.shape)} and {tuple(self.lengths.shape)}"
            raise DisaError(f"prompts are ids [N, P] with lengths [N], found {found}.")
        shortest, longest = (int(end) for end in self.lengths.aminmax()) if len(self.ids) else (1, 0)
        if not 1 <= shortest <= longest <= self.ids.shape[1]:
            raise DisaError(
                f"the lengths of prompts must be 1 to {self.ids.shape[1]} (columns of ids), "
                f"found {shortest} to {longest}."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Prompts:
        """From token ids of any lengths."""
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return cls(ids, lengths)


@dataclass(frozen=True, eq=False)
class Request:
    """A batch as a model takes it. Raises DisaError where its parts do not go together.

    Unconditional images have neither labels nor prompts.
    """

    batch_size: int
    num_ar_steps: int
    labels: Tensor | None = None
    """[B] class indices."""
    guidance: Guidance = Guidance()
    known: Tensor | None = None
    """[B, C, H, W] latents that are kept where the mask is false; None to draw everything."""
    mask: Tensor | None = None
    """[B, h, w] booleans over tokens: true where one is drawn. It goes with `known`."""
    prompts: Prompts | None = None
    """One per image, followed by one unconditional prompt per image where guidance is active, and where it is three-way
    by one per image that knows of no picture either."""
    token_grid: tuple[int, int] | None = None
    """Rows and columns of tokens; None for those that the model was made for."""
    order: Order = RANDOM
    """In which order tokens are drawn."""
    counts: Counts = COSINE
    """How many in each AR step."""
    reuse: Reuse = NONE
    """What of the backbone is kept from earlier AR steps."""
    source: Tensor | None = None
    """[B, C, H, W] latents of a picture that prompts hold places for; or [2 B, C, H, W], others for the unconditional
    prompts."""
    checked: bool = False
    """Whether it was held against the model already: its values are not looked at again."""

    def __post_init__(self) -> None:
        if self.labels is not None and self.prompts is not None:
            raise DisaError("labels and prompts are alternatives: found both.")
        for name, value in (("labels", self.labels), ("known", self.known), ("mask", self.mask)):
            if value is not None and len(value) != self.batch_size:
                raise DisaError(f"expected {name} of {self.batch_size} images, found {len(value)}.")
        rows = self.batch_size * (3 if self.guidance.three_way else 2 if self.guidance.active else 1)
        if self.guidance.three_way and self.source is None:
            raise DisaError(f"source_guidance = {self.guidance.source_guidance:g} needs a picture to edit: found none.")
        if self.source is not None and len(self.source) not in {self.batch_size, 2 * self.batch_size}:
            raise DisaError(f"expected pictures for {self.batch_size} images, found {len(self.source)}.")
        if self.prompts is not None and len(self.prompts) not in {rows, 2 * self.batch_size}:
            also = " and as many unconditional ones after them, for guidance" if self.guidance.active else ""
            raise DisaError(f"expected {self.batch_size} prompts{also}: {rows} rows, found {len(self.prompts)}.")
        self.counts.check_ar_steps(self.num_ar_steps)
        if self.token_grid is not None and min(self.token_grid) < 1:
            raise DisaError(f"an image has at least one row and one column of tokens, found {self.token_grid}.")
        if (self.known is None) != (self.mask is None):
            given, missing = ("mask", "known") if self.known is None else ("known", "mask")
            raise DisaError(f"known latents and the mask of what to draw go together: found {given} without {missing}.")

    def check_fits(self, model: str, *takes: str) -> None:
        """Refuse labels, prompts, a token grid or a picture that a model does not take. Raises DisaError."""
        for name in ("labels", "prompts", "token_grid", "source"):
            if getattr(self, name) is not None and name not in takes:
                expected, found = (words.replace("_", " ") for words in (" and ".join(takes), name))
                raise DisaError(f"{model} cannot take {found}: expected {expected}, found {found}.")
