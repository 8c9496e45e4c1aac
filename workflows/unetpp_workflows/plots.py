"""Draws small plots as SVG that follows the page's light or dark colours; knows numbers, not what they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 42
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y); those that are NaN are gaps. Dashed lines are for comparison."""

    points: Sequence[tuple[float, float]]
    color: Color | None = None
    name: str = ""
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a dot plot: a value with its interval, and the single values that it sums up."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    dots: Sequence[float] = ()
    color: Color | None = None


def curves(
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    x_range: tuple[float, float] = (0, 1),
    y_range: tuple[float, float] = (0, 1),
    bars: Sequence[tuple[float, float, float]] = (),
    title: str,
) -> Markup:
    """Return curves over axes named `x` and `y`; `bars` are (left, right, height) in their units, drawn behind.

    Args:
        title: what a screen reader says.
    """
    frame = _Frame(x_range, y_range, WIDTH, HEIGHT, _LEFT)
    parts = [frame.axes(x, y)]
    for left, right, height in bars:
        a, b, top, bottom = frame.x(left), frame.x(right), frame.y(height), frame.y(y_range[0])
        parts.append(f'<rect class="bar" x="{a + 1:.1f}" y="{top:.1f}" width="{b - a - 2:.1f}" '
                     f'height="{bottom - top:.1f}"/>')  # fmt: skip
    for line in lines:
        style = f'stroke="{_css(line.color)}"' + (' stroke-dasharray="4 4"' if line.dashed else "")
        for piece in _pieces(line.points):
            path = " ".join(f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in piece)
            parts.append(f'<polyline class="line" points="{path}" {style}/>')
            if line.dots:
                parts += [
                    f'<circle cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="3" fill="{_css(line.color)}"/>'
                    for a, b in piece
                ]
    return _svg(WIDTH, HEIGHT, parts, title)


def dot_rows(
    rows: Sequence[Row], *, x: str, x_range: tuple[float, float] = (0, 1), zero: float | None = None, title: str
) -> Markup:
    """Return one row per entry: its interval as a bar, its value as a mark, single values as dots below.

    Args:
        x: name of the axis. zero: where a vertical line is drawn.
        title: what a screen reader says.
    """
    left, pitch = 140, 30
    height = _TOP + _BOTTOM + pitch * max(1, len(rows))
    frame = _Frame(x_range, (0.0, float(max(1, len(rows)))), WIDTH + 100, height, left)
    parts = [frame.axes(x, "", y_ticks=False)]
    if zero is not None:
        parts.append(f'<line class="zero" x1="{frame.x(zero):.1f}" x2="{frame.x(zero):.1f}" y1="{_TOP}" '
                     f'y2="{height - _BOTTOM}"/>')  # fmt: skip
    for number, row in enumerate(rows):
        middle, color = _TOP + pitch * (number + 0.42), _css(row.color)
        parts.append(f'<text class="row" x="{left - 8}" y="{middle + 4:.1f}">{escape(_short(row.name))}</text>')
        if row.low is not None and row.high is not None:
            a, b = frame.x(row.low), frame.x(row.high)
            parts.append(f'<rect x="{a:.1f}" y="{middle - 4:.1f}" width="{max(1.0, b - a):.1f}" height="8" rx="4" '
                         f'fill="{color}" opacity=".35"/>')  # fmt: skip
        if row.value is not None:
            parts.append(f'<circle cx="{frame.x(row.value):.1f}" cy="{middle:.1f}" r="4.5" fill="{color}"/>')
        parts += [
            f'<circle class="dot" cx="{frame.x(dot):.1f}" cy="{middle + 10:.1f}" r="2"/>'
            for dot in row.dots
            if math.isfinite(dot)
        ]
    return _svg(WIDTH + 100, height, parts, title)


class _Frame:
    """Axes of a plot: data to pixels."""

    def __init__(
        self, x_range: tuple[float, float], y_range: tuple[float, float], width: int, height: int, left: int
    ) -> None:
        self._x, self._y, self._left, self._width, self._height = x_range, y_range, left, width, height

    def x(self, value: float) -> float:
        low, high = self._x
        share = min(1.0, max(0.0, (value - low) / ((high - low) or 1)))
        return self._left + share * (self._width - self._left - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        share = min(1.0, max(0.0, (value - low) / ((high - low) or 1)))
        return self._height - _BOTTOM - share * (self._height - _TOP - _BOTTOM)

    def axes(self, x: str, y: str, *, y_ticks: bool = True) -> str:
        base, right = self._height - _BOTTOM, self._width - _RIGHT
        parts = [f'<line class="axis" x1="{self._left}" x2="{right}" y1="{base}" y2="{base}"/>']
        for value in ticks(*self._x):
            at = self.x(value)
            parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{base}"/>')
            parts.append(f'<text class="tick" x="{at:.1f}" y="{base + 16}" text-anchor="middle">{value:g}</text>')
        for value in ticks(*self._y) if y_ticks else ():
            at = self.y(value)
            parts.append(f'<line class="grid" x1="{self._left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text class="tick" x="{self._left - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
        middle = (self._left + right) / 2
        parts.append(f'<text class="label" x="{middle:.0f}" y="{self._height - 6}" text-anchor="middle">'
                     f"{escape(x)}</text>")  # fmt: skip
        if y:
            parts.append(f'<text class="label" transform="translate(13 {(base + _TOP) / 2:.0f}) rotate(-90)" '
                         f'text-anchor="middle">{escape(y)}</text>')  # fmt: skip
        return "".join(parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers from low to high."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if all(map(math.isfinite, point)):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _css(color: Color | None) -> str:
    """Return a colour for SVG; black and white, which the page's background may be, become grey."""
    if color is None:
        return "currentColor"
    parts = (128, 128, 128) if max(color) < 40 or min(color) > 225 else color
    return f"rgb({', '.join(str(int(part)) for part in parts)})"


def _short(text: str) -> str:
    return text if len(text) <= 20 else text[:9] + "\u2026" + text[-10:]


def _svg(width: int, height: int, parts: Sequence[Any], title: str) -> Markup:
    return Markup(  # noqa: S704 (every text in `parts` is escaped above; the rest are numbers)
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(map(str, parts))}</svg>"
    )
