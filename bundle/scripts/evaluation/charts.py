"""Line and bar charts as SVG text, for pages that must open without a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike

WIDTH, HEIGHT = 620, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 16, 46
COLORS = ("#1f6fb4", "#d9730d", "#2b8a57", "#8250c4", "#b3362d")


@dataclass
class Axis:
    """Maps values between ``low`` and ``high`` to pixels between ``start`` and ``end``; values outside are clipped."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, given: ArrayLike) -> np.ndarray:
        values = np.clip(np.asarray(given, float), self.low, self.high)
        low, high = self.low, self.high
        if self.logarithmic:
            values, low, high = np.log(values), math.log(low), math.log(high)
        return self.start + (self.end - self.start) * (values - low) / max(high - low, 1e-12)

    def ticks(self) -> list[float]:
        """Round numbers along the axis: powers of ten, or about five steps."""
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**power for power in range(first, last + 1)]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        step *= next(factor for factor in (5, 2, 1, 0.5, 0.2) if (self.high - self.low) / (factor * step) >= 4)
        return [index * step for index in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]


@dataclass
class Line:
    """A curve, drawn as a line through its points, or as a filled outline."""

    name: str
    x: np.ndarray
    y: np.ndarray
    filled: bool = False
    dashed: bool = False


@dataclass
class Mark:
    """A point with a caption above or below it, and a vertical line down to the axis."""

    caption: str
    x: float
    y: float
    color: int = 0
    below: bool = False


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _frame(x_axis: Axis, y_axis: Axis, x_title: str, y_title: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in y_axis.ticks():
        y = float(y_axis(tick))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick:.3g}", "end"))
    for tick in x_axis.ticks():
        x = float(x_axis(tick))
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 16, f"{tick:.3g}"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, x_title))
    middle = (TOP + bottom) / 2
    parts.append(_text(14, middle, y_title, extra=f' transform="rotate(-90 14 {middle:.1f})"'))
    return parts


def _line(line: Line, color: str, x_axis: Axis, y_axis: Axis) -> str:
    points = np.stack([x_axis(line.x), y_axis(line.y)], axis=1).round(1)
    changed = np.append(True, (np.diff(points, axis=0) != 0).any(axis=1))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points[changed])
    if line.filled:
        path = f"{points[0, 0]:.1f},{HEIGHT - BOTTOM} {path} {points[-1, 0]:.1f},{HEIGHT - BOTTOM}"
    fill = f' fill="{color}" fill-opacity="0.25"' if line.filled else ' fill="none"'
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    return f'<polyline points="{path}" stroke="{color}"{fill}{dash}/>'


def _mark(mark: Mark, x_axis: Axis, y_axis: Axis) -> list[str]:
    x, y, color = float(x_axis(mark.x)), float(y_axis(mark.y)), COLORS[mark.color % len(COLORS)]
    left = x > (LEFT + WIDTH) / 2
    return [
        f'<path d="M{x:.1f} {y:.1f}V{HEIGHT - BOTTOM}" stroke="{color}" stroke-dasharray="2 3"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>',
        _text(x + (-8 if left else 8), y + (18 if mark.below else -7), mark.caption, "end" if left else "start"),
    ]


def chart(
    lines: Sequence[Line],
    x_title: str,
    y_title: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float] = (0.0, 1.0),
    logarithmic: bool = False,
    marks: Sequence[Mark] = (),
) -> str:
    """Draw curves with axes, ticks and a legend.

    Args:
        lines: At most five; each takes the next color.
        x_title: Below the horizontal axis.
        y_title: Beside the vertical axis.
        x_range: First and last value shown.
        y_range: Likewise.
        logarithmic: Whether the horizontal axis is.
        marks: Points to point out.

    Returns:
        An SVG element.
    """
    x_axis = Axis(*x_range, LEFT, WIDTH - RIGHT, logarithmic)
    y_axis = Axis(*y_range, HEIGHT - BOTTOM, TOP)
    parts = _frame(x_axis, y_axis, x_title, y_title)
    legend = []
    for index, line in enumerate(lines):
        color = COLORS[index % len(COLORS)]
        parts.append(_line(line, color, x_axis, y_axis))
        legend.append(f'<span><i style="background:{color}"></i>{escape(line.name)}</span>')
    for mark in marks:
        parts += _mark(mark, x_axis, y_axis)
    title = escape(f"{y_title} over {x_title}")
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
        f'<figcaption class="legend">{"".join(legend)}</figcaption></figure>'
    )
