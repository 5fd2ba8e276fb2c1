"""Plots as SVG, by hand: they follow the page's colours in dark mode, scale, print, and need nothing from a network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 14, 42
COLOURS = 10
"""Classes c0 to c9 of the style sheet."""


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """0 to 1."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return (self._scaled(value) - low) / ((high - low) or 1.0)

    def ticks(self) -> list[float]:
        """Round values."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def axis(values: Sequence[float], *, log: bool = False, room: float = 0.06) -> Axis:
    """One that holds all values, with some room at its ends."""
    low, high = min(values), max(values)
    if log:
        a, b = math.log10(low), math.log10(high)
        more = room * (b - a) if b > a else 0.3
        return Axis(10 ** (a - more), 10 ** (b + more), log=True)
    more = room * (high - low) if high > low else abs(high) * 0.05 or 0.5
    return Axis(low - more, high + more)


class Plot:
    """Axes, and marks upon them."""

    def __init__(self, x: Axis, y: Axis, *, x_title: str, y_title: str, label: str) -> None:
        """label: what the picture shows, for those who do not see it."""
        self.x, self.y, self.label = x, y, label
        self.parts: list[str] = []
        self._frame(x_title, y_title)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """In the picture's own units."""
        return (
            round(LEFT + self.x.at(x) * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - self.y.at(y) * (HEIGHT - TOP - BOTTOM), 1),
        )

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """kind: classes of the style sheet."""
        if len(points) > 1:
            path = " ".join(f"{x},{y}" for x, y in (self.place(*point) for point in points))
            self.parts.append(f'<polyline class="line {kind}" points="{path}"/>')

    def dot(self, x: float, y: float, kind: str, *, half: float | None = None, title: str = "") -> None:
        """A point, with half the length of an error bar."""
        cx, cy = self.place(x, y)
        if half:
            top, bottom = self.place(x, min(y + half, self.y.high))[1], self.place(x, max(y - half, self.y.low))[1]
            self.parts.append(
                f'<path class="bar {kind}" d="M{cx} {top}V{bottom}M{cx - 3} {top}h6M{cx - 3} {bottom}h6"/>'
            )
        named = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(f'<circle class="dot {kind}" cx="{cx}" cy="{cy}" r="4.5">{named}</circle>')

    def labels(self, named: Sequence[tuple[float, float, str]]) -> None:
        """Words beside points, moved apart where they would lie on each other."""
        taken: list[tuple[float, float, float]] = []
        for x, y, text in sorted(named, key=lambda one: -one[1]):
            px, py = self.place(x, y)
            width = 6.1 * len(text)
            end = px + 8 + width > WIDTH
            left = px - 8 - width if end else px + 8
            at = py + 4
            while any(abs(at - other) < 12 and left < stop and start < left + width for start, stop, other in taken):
                at += 3
            at = min(at, HEIGHT - BOTTOM - 2)
            taken.append((left, left + width, at))
            anchor = ' text-anchor="end"' if end else ""
            self.parts.append(
                f'<text class="name" x="{px - 8 if end else px + 8}" y="{at}"{anchor}>{escape(text)}</text>'
            )

    def svg(self) -> str:
        """The whole picture."""
        inner = "".join(self.parts)
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.label)}" '
            f'xmlns="http://www.w3.org/2000/svg">{inner}</svg>'
        )

    def _frame(self, x_title: str, y_title: str) -> None:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for value in self.y.ticks():
            y = self.place(self.x.low, value)[1]
            self.parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
            self.parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{short(value)}</text>')
        for value in self.x.ticks():
            x = self.place(value, self.y.low)[0]
            self.parts.append(f'<path class="grid" d="M{x} {TOP}V{bottom}"/>')
            self.parts.append(
                f'<text class="tick" x="{x}" y="{bottom + 15}" text-anchor="middle">{short(value)}</text>'
            )
        self.parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
        self.parts.append(
            f'<text class="title" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>'
        )
        self.parts.append(
            f'<text class="title" transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)" '
            f'text-anchor="middle">{escape(y_title)}</text>'
        )


def short(value: float) -> str:
    """A number for an axis: 0.92, 12.5, 30k, 2M, 1e-3."""
    size = abs(value)
    if value and (size < 1e-2 or size >= 1e9):
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if size >= factor:
            return f"{value / factor:g}{unit}"
    return f"{round(value, 4):g}"


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 10, 100 ...; 2 and 5 between them where there is room."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = max(1, (last - first) // 6)
    found = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    return [value for value in found if low <= value <= high]
