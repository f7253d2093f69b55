"""What can be drawn again without a mouse, in words and in numbers. The page has them before PyTorch is imported."""

from __future__ import annotations

WHAT_I_PAINT = "what I paint"
HALVES = {
    "the left half": (0, 0, 1, 0.5),
    "the right half": (0, 0.5, 1, 1),
    "the top half": (0, 0, 0.5, 1),
    "the bottom half": (0.5, 0, 1, 1),
}
"""Top, left, bottom and right as shares of the picture."""
