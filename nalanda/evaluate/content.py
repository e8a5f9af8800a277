"""What a report says, before anyone decides how it looks: a page is a tuple of blocks.

    page = Page("quickstart", (Heading("Result"), Paragraph(("chrF++ ", Strong("57.1"))), Table(...)))
    render_html.render(page); render_markdown.render(page)

Both renderers take a value's text from `plain` here, so that the two files cannot say different numbers.

    Page -- Heading | Paragraph | Figures | Facts | Table | LineChart | IntervalChart | Examples
                          |                     |           |             |              |
                        Inline                 Cell       Series       Interval       Example
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Score:
    """A measured value with its confidence interval (None where it has none); `sign` writes the + of a difference."""

    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 1
    unit: str = ""
    sign: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """Words in a named language, so that a browser picks the right font; `language` is a code such as hin_Deva."""

    text: str
    language: str = ""


@dataclass(frozen=True, slots=True)
class Strong:
    """Words that matter most in their sentence."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """A file, key, command or signature."""

    text: str


@dataclass(frozen=True, slots=True)
class Arm:
    """The name of a system, in the colour that its curves and dots have; `hue` counts from 0, -1 is grey."""

    text: str
    hue: int = -1


Inline = str | Strong | Code | Arm
Cell = str | int | Score | Text | Code | Strong | Arm | None


@dataclass(frozen=True, slots=True)
class Heading:
    """A title inside the page; level 2 opens a section, level 3 a part of one."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text; `lead` sets the page's opening sentence larger, `note` sets an aside smaller."""

    parts: tuple[Inline, ...]
    style: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """A few large numbers in a row: (label, value, what it means)."""

    items: tuple[tuple[str, Score | str, str], ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with their values, one pair a line."""

    items: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; a column whose cells are numbers is set to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    note: str = ""
    last_is_total: bool = False
    bold: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: points (x, y), and a band (low, high) per point where there is one."""

    name: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float], ...] = ()
    hue: int = -1
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class LineChart:
    """Curves over one x axis. `x_unit` 's' shows minutes where that reads better."""

    title: str
    series: tuple[Series, ...]
    x_label: str
    y_label: str
    digits: int = 2


@dataclass(frozen=True, slots=True)
class Interval:
    """One dot with its whisker: which row it stands in, which system it is."""

    row: str
    name: str
    score: Score
    hue: int = -1


@dataclass(frozen=True, slots=True)
class IntervalChart:
    """Dots with whiskers, one row for each group; `in_table` where a table beside it tells the same numbers."""

    title: str
    intervals: tuple[Interval, ...]
    x_label: str
    in_table: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One translation as a person judges it."""

    source: Text
    reference: Text
    hypothesis: Text
    score: Score
    note: str = ""


@dataclass(frozen=True, slots=True)
class Examples:
    """Translations under one heading, such as 'Best'."""

    title: str
    items: tuple[Example, ...]


Block = Heading | Paragraph | Figures | Facts | Table | LineChart | IntervalChart | Examples


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report: its title, a line under it, and the blocks in reading order."""

    title: str
    subtitle: str
    blocks: tuple[Block, ...]


def number(value: float, digits: int = 1) -> str:
    """`value` with thousands separated and `digits` decimals; what is not a number is a dash."""
    if not math.isfinite(value):
        return ABSENT
    text = f"{value:,.{digits}f}"
    if text.lstrip("-").strip("0.,") == "":
        text = text.lstrip("-")
    return text.replace("-", "−")


def interval(score: Score) -> str:
    """The interval of a score as 'low to high', or nothing where it has none."""
    if score.low is None or score.high is None:
        return ""
    return f"{number(score.low, score.digits)} to {number(score.high, score.digits)}"


def value(score: Score) -> str:
    """The value of a score with its unit."""
    text = number(score.value, score.digits)
    plus = "+" if score.sign and score.value > 0 and text.strip("0.,") else ""
    return plus + text + score.unit


def plain(cell: Cell | Inline) -> str:
    """The text of a cell, the same in every rendering."""
    if cell is None:
        return ABSENT
    if isinstance(cell, Score):
        around = interval(cell)
        return f"{value(cell)} ({around})" if around else value(cell)
    if isinstance(cell, int):
        return number(cell, 0)
    return cell if isinstance(cell, str) else cell.text


def summary(series: Series, digits: int) -> str:
    """A curve in words: where it starts and ends, for readers without the picture."""
    points = [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return f"{series.name}: no values"
    if len(points) == 1:
        return f"{series.name}: {number(points[0][1], digits)}"
    first, last = points[0][1], points[-1][1]
    return f"{series.name}: {number(first, digits)} → {number(last, digits)}"


def is_number(cell: Cell) -> bool:
    """Whether a cell belongs in a column of numbers."""
    return isinstance(cell, int | Score)
