"""What drawing took, AR step by AR step."""

from __future__ import annotations

from collections.abc import Sequence
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

    @classmethod
    def of(cls, step: ARStep) -> TraceStep:
        """From a turn of the loop."""
        asked = float(step.steps) if isinstance(step.steps, int) else step.steps.cpu().double().mean().item()
        rows = step.problem.num_rows
        return cls(step.ar_step, rows, asked, step.evaluations, step.seconds_backbone, step.seconds_head)

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
        )
