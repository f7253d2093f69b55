"""What drawing took, AR step by AR step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from disa.core.problem import ARStep


@dataclass(frozen=True)
class TraceStep:
    """One AR step, over all batches."""

    ar_step: int
    rows: int
    """Rows that were drawn."""
    steps: float
    """Denoising steps that were asked for, mean over rows."""
    evaluations: int
    """Evaluations that were made."""
    seconds_backbone: float
    seconds_head: float
    backbone_tokens: int = 0
    """Tokens that blocks of the backbone ran over."""
    operations: int = 0
    """Of matrix products: of the backbone, and of all evaluations."""

    @classmethod
    def later(cls, step: ARStep) -> Callable[[], TraceStep]:
        """From a turn of the loop, of which it holds no more than it needs. To call it waits for the device."""
        index, asked, moments = step.ar_step, step.steps, step.moments
        rows, made = step.problem.num_rows, step.evaluations
        work = step.backbone_tokens, step.operations

        def tell() -> TraceStep:
            mean = float(asked) if isinstance(asked, int) else asked.cpu().double().mean().item()
            return cls(index, rows, mean, made, moments.seconds_backbone, moments.seconds_head, *work)

        return tell

    @classmethod
    def sum(cls, parts: Sequence[TraceStep]) -> TraceStep:
        """The same AR step of several batches."""
        rows = sum(part.rows for part in parts)
        return cls(
            parts[0].ar_step,
            rows,
            sum(part.steps * part.rows for part in parts) / rows,
            sum(part.evaluations for part in parts),
            sum(part.seconds_backbone for part in parts),
            sum(part.seconds_head for part in parts),
            sum(part.backbone_tokens for part in parts),
            sum(part.operations for part in parts),
        )
