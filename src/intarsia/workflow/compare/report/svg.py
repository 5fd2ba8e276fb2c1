"""Plots as SVG, by hand: they follow the page's colours in dark mode, scale, print, and need nothing from a network."""

import math
from collections.abc import Iterator, Sequence
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
        """Words beside points: to the right, else to the left, else further up or down, where they lie on nothing else."""
        places = [self.place(x, y) for x, y, _ in named]
        taken = [(x - 6.0, y - 6.0, x + 6.0, y + 6.0) for x, y in places]
        for (x, y), (_, _, text) in sorted(zip(places, named, strict=True), key=lambda one: one[0][1]):
            box = next(
                (box for box in _boxes(x, y, 6.3 * len(text)) if not any(_meet(box, other) for other in taken)), None
            )
            left, top, right, bottom = box or next(_boxes(x, y, 6.3 * len(text)))
            taken.append((left, top, right, bottom))
            at, anchor = (right, ' text-anchor="end"') if right <= x else (left, "")
            self.parts.append(f'<text class="name" x="{at:.1f}" y="{bottom - 2:.1f}"{anchor}>{escape(text)}</text>')

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


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _boxes(x: float, y: float, width: float) -> Iterator[Box]:
    """Where words of this width may stand beside a point, the best places first."""
    for away in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5):
        top = y - 6 + 12 * away
        if not TOP <= top <= HEIGHT - BOTTOM - 13:
            continue
        for left in (x + 8, x - 8 - width):
            if left >= LEFT and left + width <= WIDTH:
                yield left, top, left + width, top + 12
    yield x + 8, y - 6, x + 8 + width, y + 6


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


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
