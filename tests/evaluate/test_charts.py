"""Charts and the element builder: finite coordinates whatever comes in, everything escaped."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nalanda.evaluate import content
from nalanda.evaluate.charts import interval_chart, line_chart, span, thin, tick_label, ticks
from nalanda.evaluate.content import Interval, IntervalChart, LineChart, Score, Series
from nalanda.evaluate.html import Markup, document, element, escape

NAN, INF = math.nan, math.inf


def coordinates(svg: str) -> list[float]:
    """Every number in the attributes that place things; fails on nan or inf anywhere in them."""
    found = []
    for node in ElementTree.fromstring(svg).iter():
        for key, value in node.attrib.items():
            if key in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "d", "viewBox"):
                assert "nan" not in value
                assert "inf" not in value
                found += [float(n) for n in re.findall(r"-?\d+\.?\d*", value)]
    return found


POINTS = [
    (), ((1, 2),), ((1, 2), (2, NAN)), ((NAN, NAN),), ((1, 5), (2, 5), (3, 5)), ((0, 0),), ((1, INF), (2, 1)),
    ((5, -3), (6, 1e9)), ((1e-9, 1e-12), (2e-9, 3e-12)),
]  # fmt: skip


@pytest.mark.parametrize("points", POINTS)
def test_line_charts_stay_inside_the_picture(points: tuple[tuple[float, float], ...]) -> None:
    band = tuple((y - 1, y + 1) for _, y in points)
    svg = line_chart(LineChart("t", (Series("a", points, band), Series("b", ())), "x", "y"))
    assert all(-1 <= number <= 700 for number in coordinates(svg))
    assert ("no values</text>" in svg) == (not any(math.isfinite(x) and math.isfinite(y) for x, y in points))


@pytest.mark.parametrize(
    "scores", [[], [Score(NAN)], [Score(3.0)], [Score(0.0, 0.0, 0.0)], [Score(5, NAN, 6)]]
)
def test_interval_charts_stay_inside_the_picture(scores: list[Score]) -> None:
    items = tuple(Interval("row", str(i), score) for i, score in enumerate(scores))
    if any(math.isnan(edge) for s in scores for edge in (s.low, s.high) if edge is not None):
        items = (*items, Interval("row", "other", Score(1.0, 0.5, 2.0)))
    assert all(-1 <= number <= 700 for number in coordinates(interval_chart(IntervalChart("t", items, "x"))))


def test_a_picture_names_itself_and_tells_its_numbers() -> None:
    svg = line_chart(LineChart("Loss", (Series("dev", ((0, 3), (1, 2))),), "steps", "nats"))
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.findtext("title") == "Loss"
    assert root.findtext("desc") == "dev: 3.00 → 2.00"


@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12))
def test_ticks_are_round_and_inside(low: float, width: float) -> None:
    high = low + width
    found = ticks(low, high)
    assert 1 <= len(found) <= 12
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= value <= high + slack for value in found)
    assert found == sorted(found)


def test_ticks_by_hand() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(3, 3) == [3]
    assert [tick_label(v, 0.05) for v in ticks(0.1, 0.3)] == ["0.10", "0.15", "0.20", "0.25", "0.30"]
    assert tick_label(12000.0, 2000) == "12,000"


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=5))
def test_a_span_is_never_empty(values: list[float]) -> None:
    low, high = span([v for v in values if not abs(v) > 1e300])
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low < high


def test_thinning_keeps_ends_and_means() -> None:
    points = [(float(i), float(i % 2)) for i in range(10_001)]
    found = thin(points, 101)
    assert len(found) <= 101
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert all(abs(y - 0.5) < 0.02 for _, y in found[1:-1])
    assert thin(points[:50]) == tuple(points[:50])


def test_elements_escape_everything_but_markup() -> None:
    assert element("b", "<i>&\"'", class_='a"b') == '<b class="a&quot;b">&lt;i&gt;&amp;&quot;&#39;</b>'
    assert (
        element("p", element("br"), None, ["x", ["y"]], hidden=True, id=None)
        == '<p hidden="hidden"><br />xy</p>'
    )
    assert element("text", text_anchor="end", x=1.5, y=2.0) == '<text text-anchor="end" x="1.5" y="2"></text>'
    assert escape("a\x00\x1b\ud800b") == "a\ufffd\ufffd\ufffdb"
    with pytest.raises(ValueError, match="attribute"):
        element("b", **{"on click=x ": "y"})
    with pytest.raises(ValueError, match="style sheet"):
        document("t", "</style><script>", Markup(""))


@given(st.text())
def test_any_text_survives_as_xml(text: str) -> None:
    root = ElementTree.fromstring(element("p", text, title=text))
    assert root.tag == "p"
    assert len(root) == 0


def test_numbers_as_written() -> None:
    assert content.number(-0.04) == "0.0"
    assert content.number(-1234.56) == "−1,234.6"
    assert content.number(NAN) == "–"
    assert content.plain(Score(57.123, 55.8, 58.4)) == "57.1 (55.8 to 58.4)"
    assert content.plain(Score(3.0, 1.0, 5.0, sign=True)) == "+3.0 (1.0 to 5.0)"
    assert content.plain(Score(0.01, sign=True)) == "0.0"
    assert content.plain(None) == "–"
    assert content.plain(12345) == "12,345"
