"""Charts as SVG text, from plain numbers: curves with bands, and dots with whiskers.

    line_chart(LineChart(...)) -> Markup     interval_chart(IntervalChart(...)) -> Markup

Pure functions. Colours are classes (`hue-0`, `hue-1` ..., `hue-none`) that the page's style sheet fills, so that one
picture serves light, dark and print. Values that are not finite are left out; nothing else is ever drawn at nan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nalanda.evaluate import content
from nalanda.evaluate.content import IntervalChart, LineChart, Series
from nalanda.evaluate.html import Markup, element

WIDTH = 680.0
# On a phone the picture is drawn at half size and the style sheet doubles its letters: margins have room for both.
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 14.0, 34.0, 64.0
_LETTER = 12.5
_LANE = 10.0


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values laid onto a range of the picture."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where `value` lies in the picture."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) inside [low, high], at least one."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else [0.0]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)] or [low]


def span(values: Iterable[float], pad: float = 0.06) -> tuple[float, float]:
    """The range of the finite `values`, padded; (0, 1) when there are none, and never empty."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1.0):
        margin = abs(low) * 0.1 or 1.0
    else:
        margin = (high - low) * pad
    return low - margin, high + margin


def tick_label(value: float, step: float) -> str:
    """A tick's number with as many decimals as its step needs."""
    digits = 0 if step >= 1 else min(6, math.ceil(-math.log10(step) - 1e-9))
    return content.number(value, digits)


def hue(index: int) -> str:
    """The style class of a colour."""
    return f"hue-{index}" if index >= 0 else "hue-none"


def _finite(series: Series) -> list[tuple[float, float]]:
    return [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y)]


def _text(x: float, y: float, words: str, anchor: str = "middle", class_: str = "tick") -> Markup:
    return element("text", words, x=x, y=y, text_anchor=anchor, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _svg(height: float, title: str, description: str, marks: Sequence[Markup]) -> Markup:
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        marks,
        viewBox=f"0 0 {WIDTH:.0f} {height:.0f}",
        role="img",
        aria_label=f"{title}. {description}",
        class_="chart",
    )


def _x_axis(axis: Axis, bottom: float, top: float, label: str, grid: bool) -> list[Markup]:
    places = ticks(axis.low, axis.high)
    step = places[1] - places[0] if len(places) > 1 else abs(places[0]) or 1.0
    marks = [_line(axis.start, bottom, axis.end, bottom, "axis")]
    for value in places:
        x = axis.place(value)
        marks.append(_line(x, bottom, x, top if grid else bottom + 4, "grid" if grid else "axis"))
        marks.append(_text(x, bottom + 20, tick_label(value, step)))
    marks.append(_text(axis.end, bottom + 50, label, "end", "label"))
    return marks


def _y_axis(axis: Axis, left: float, right: float, label: str) -> list[Markup]:
    places = ticks(axis.low, axis.high, 4)
    step = places[1] - places[0] if len(places) > 1 else abs(places[0]) or 1.0
    marks = [_text(2, 14, label, "start", "label")]
    for value in places:
        y = axis.place(value)
        marks.append(_line(left, y, right, y, "grid"))
        marks.append(_text(left - 8, y + 4, tick_label(value, step), "end"))
    return marks


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)


def _curve(series: Series, x_axis: Axis, y_axis: Axis) -> list[Markup]:
    color = hue(series.hue)
    marks: list[Markup] = []
    edges = [
        (x_axis.place(x), y_axis.place(low), y_axis.place(high))
        for (x, _), (low, high) in zip(series.points, series.band)
        if math.isfinite(x) and math.isfinite(low) and math.isfinite(high)
    ]
    if len(edges) > 1:
        outline = [(x, high) for x, _, high in edges] + [(x, low) for x, low, _ in reversed(edges)]
        marks.append(element("path", d=_path(outline) + "Z", class_=f"band {color}"))
    points = [(x_axis.place(x), y_axis.place(y)) for x, y in _finite(series)]
    if len(points) > 1:
        dash = " dashed" if series.dashed else ""
        marks.append(element("path", d=_path(points), class_=f"curve {color}{dash}"))
    if points:
        marks.append(element("circle", cx=points[-1][0], cy=points[-1][1], r=3.5, class_=f"dot {color}"))
    return marks


def line_chart(chart: LineChart, height: float = 330.0) -> Markup:
    """Curves with axes; each curve ends in a dot. An empty chart says so inside its axes."""
    every = [point for series in chart.series for point in _finite(series)]
    edges = [edge for series in chart.series for pair in series.band for edge in pair]
    low, high = span([y for _, y in every] + edges)
    x_low, x_high = span([x for x, _ in every], pad=0.0)
    if every and min(x for x, _ in every) >= 0:
        x_low = 0.0  # a curve that begins late must look late
    if every and min(y for _, y in every) >= 0:
        low = max(low, 0.0)
    x_axis = Axis(x_low, x_high, _LEFT, WIDTH - _RIGHT)
    y_axis = Axis(low, high, height - _BOTTOM, _TOP)
    marks = _y_axis(y_axis, _LEFT, WIDTH - _RIGHT, chart.y_label)
    marks += _x_axis(x_axis, height - _BOTTOM, _TOP, chart.x_label, grid=False)
    for series in chart.series:
        marks += _curve(series, x_axis, y_axis)
    if not every:
        marks.append(_text(WIDTH / 2, height / 2, "no values", class_="label"))
    description = "; ".join(content.summary(series, chart.digits) for series in chart.series) or "no values"
    return _svg(height, chart.title, description, marks)


def thin(points: Sequence[tuple[float, float]], limit: int = 400) -> tuple[tuple[float, float], ...]:
    """At most about `limit` points: means of equal runs, the first and the last point kept as they are."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) <= limit:
        return tuple(finite)
    inner = finite[1:-1]
    count = max(1, limit - 2)
    runs = [inner[len(inner) * i // count : len(inner) * (i + 1) // count] for i in range(count)]
    means = [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs if run]
    return (finite[0], *means, finite[-1])


_SHAPES = ("circle", "square", "diamond", "triangle")


def marker(shape: int, x: float, y: float, class_: str, size: float = 4.5) -> Markup:
    """A system's mark; systems differ by shape too, for eyes and printers that see no colour."""
    name = _SHAPES[shape % len(_SHAPES)]
    if name == "circle":
        return element("circle", cx=x, cy=y, r=size, class_=class_)
    s = size * 0.9
    corners = {
        "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "diamond": [(0, -size * 1.25), (size * 1.25, 0), (0, size * 1.25), (-size * 1.25, 0)],
        "triangle": [(0, -size * 1.15), (size * 1.1, s), (-size * 1.1, s)],
    }[name]
    return element("path", d=_path([(x + dx, y + dy) for dx, dy in corners]) + "Z", class_=class_)


def shape_of(names: Sequence[str], name: str) -> int:
    """Which shape a system has in a chart whose systems are `names`, in order of first appearance."""
    return list(dict.fromkeys(names)).index(name)


def interval_chart(chart: IntervalChart) -> Markup:
    """Dots with whiskers over a shared x axis, a row for each group, systems side by side within it."""
    shown = [i for i in chart.intervals if math.isfinite(i.score.value)]
    rows = list(dict.fromkeys(i.row for i in chart.intervals))
    names = [i.name for i in chart.intervals]
    lanes = max(1, len(set(names)))
    row_height = lanes * _LANE + 16.0
    head = 6.0
    height = head + max(1, len(rows)) * row_height + _BOTTOM
    edges = [e for i in shown for e in (i.score.value, i.score.low, i.score.high) if e is not None]
    low, high = span(edges)
    if edges and min(edges) >= 0:
        low = 0.0
    left = min(240.0, 20.0 + _LETTER * max((len(row) for row in rows), default=0))
    axis = Axis(low, high, left, WIDTH - _RIGHT)
    marks = _x_axis(axis, height - _BOTTOM, head, chart.x_label, grid=True)
    for index, row in enumerate(rows):
        top = head + index * row_height
        marks.append(_text(2, top + row_height / 2 + 4, row, "start", "row"))
        if index:
            marks.append(_line(2, top, WIDTH - _RIGHT, top, "rule"))
        for item in (i for i in shown if i.row == row):
            lane = shape_of(names, item.name)
            y = top + 8.0 + (lane + 0.5) * _LANE
            ends = [
                axis.place(e) for e in (item.score.low, item.score.high) if e is not None and math.isfinite(e)
            ]
            if len(ends) == 2:
                marks.append(_line(ends[0], y, ends[1], y, f"whisker {hue(item.hue)}"))
            marks.append(marker(lane, axis.place(item.score.value), y, f"mark {hue(item.hue)}"))
    description = "; ".join(f"{i.row}, {i.name}: {content.plain(i.score)}" for i in shown) or "no values"
    return _svg(height, chart.title, description, marks)
