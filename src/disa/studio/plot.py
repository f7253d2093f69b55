"""Small plots as SVG, in the colours of the page around them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 120, 34, 18, 8


def counts_plot(counts: Sequence[float], drawn: int = 0) -> str:
    """Denoising steps of every AR step as bars, the first `drawn` of them filled."""
    most = max(counts)
    width = (WIDTH - LEFT) / len(counts)
    bars = []
    for k, count in enumerate(counts):
        height = max(1.0, _high(count, most))
        kind = ' class="done"' if k < drawn else ""
        bars.append(
            f'<rect{kind} x="{LEFT + k * width:.2f}" y="{HEIGHT - BOTTOM - height:.2f}" '
            f'width="{max(0.5, width * 0.86):.2f}" height="{height:.2f}"/>'
        )
    mean = sum(counts) / len(counts)
    told = f"Denoising steps of {len(counts)} AR steps: {counts[0]:g} in the first, {counts[-1]:g} in the last"
    axis = _axis(f"{most:g}", "0", f"AR step 1 to {len(counts)}", f"{mean:.1f} denoising steps on average")
    return _svg(told, "".join(bars) + axis)


def curve_plot(mean: Sequence[float], low: Sequence[float], high: Sequence[float], told: str) -> str:
    """A measurement over AR steps, with a band between quartiles. told: in words, for those who cannot see it."""
    top = max(*high, *mean, 0.0)
    bottom = min(*low, *mean, 0.0)
    span = (top - bottom) or 1.0
    places = [LEFT + (WIDTH - LEFT - 4) * k / max(1, len(mean) - 1) for k in range(len(mean))]

    def points(values: Sequence[float]) -> list[str]:
        return [f"{x:.1f},{HEIGHT - BOTTOM - _high(y - bottom, span):.1f}" for x, y in zip(places, values, strict=True)]

    band = " ".join([*points(low), *reversed(points(high))])
    line = " ".join(points(mean))
    axis = _axis(f"{top:.2g}", f"{bottom:.2g}", f"AR step 1 to {len(mean)}")
    return _svg(told, f'<polygon class="band" points="{band}"/><polyline points="{line}"/>{axis}')


def _high(value: float, most: float) -> float:
    return (HEIGHT - BOTTOM - TOP) * value / most


def _axis(top: str, bottom: str, below: str, right: str = "") -> str:
    base = HEIGHT - BOTTOM
    return (
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{base}" y2="{base}"/>'
        f'<text x="{LEFT - 5}" y="{TOP + 8}" text-anchor="end">{top}</text>'
        f'<text x="{LEFT - 5}" y="{base}" text-anchor="end">{bottom}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 4}">{below}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">{right}</text>'
    )


def _svg(told: str, content: str) -> str:
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">{content}</svg>'
