"""A page of content as one self-contained HTML file: no script, no network, style inside."""

from __future__ import annotations

import re
from importlib import resources

from nalanda.evaluate import charts, content
from nalanda.evaluate.content import (
    Arm,
    Cell,
    Code,
    Examples,
    Facts,
    Figures,
    Heading,
    Inline,
    IntervalChart,
    LineChart,
    Page,
    Paragraph,
    Score,
    Strong,
    Table,
    Text,
)
from nalanda.evaluate.html import Markup, document, element, join
from nalanda.text.language import LANGUAGES


def language_tag(code: str) -> str | None:
    """The `lang` attribute of a code, as BCP 47 wants it: hin_Deva -> hi-Deva; None for what is not a code."""
    if not re.fullmatch(r"[A-Za-z]{2,8}(_[A-Za-z]{4})?", code):
        return None
    language, _, script = code.partition("_")
    row = LANGUAGES.get(code)
    if row is not None and row.locales:
        language = row.locales[0].partition("_")[0]
    return "-".join(part for part in (language, script) if part)


def direction(code: str) -> str | None:
    """'rtl' for a language written from right to left."""
    row = LANGUAGES.get(code)
    return "rtl" if row is not None and row.direction == "rtl" else None


def slug(title: str) -> str:
    """A heading's anchor."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


def _words(text: Text, tag: str = "span", class_: str = "words") -> Markup:
    return element(
        tag, text.text, lang=language_tag(text.language), dir=direction(text.language), class_=class_
    )


def inline(part: Cell | Inline) -> Markup:
    """One piece of a sentence or the content of one cell."""
    if isinstance(part, Text):
        return _words(part)
    if isinstance(part, Strong):
        return element("strong", part.text)
    if isinstance(part, Code):
        return element("code", part.text)
    if isinstance(part, Arm):
        return element("span", part.text, class_=f"arm {charts.hue(part.hue)}")
    if isinstance(part, Score):
        around = content.interval(part)
        if around:
            return join([content.value(part), " ", element("span", f"({around})", class_="interval")])
    return join(content.plain(part))


def _heading(block: Heading) -> Markup:
    return element(f"h{block.level}", block.text, id=slug(block.text))


def _paragraph(block: Paragraph) -> Markup:
    return element("p", [inline(part) for part in block.parts], class_=block.style or None)


def _figures(block: Figures) -> Markup:
    items = []
    for label, item, meaning in block.items:
        around = content.interval(item) if isinstance(item, Score) else ""
        shown = content.value(item) if isinstance(item, Score) else item
        items.append(
            element(
                "div",
                element("div", label, class_="label"),
                element("div", shown, class_="value"),
                element("div", f"({around})", class_="interval") if around else None,
                element("div", meaning, class_="meaning"),
                class_="figure",
            )
        )
    return element("div", items, class_="figures")


def _facts(block: Facts) -> Markup:
    pairs = [element("div", element("dt", name), element("dd", inline(item))) for name, item in block.items]
    return element("dl", pairs, class_="facts")


def _table(block: Table) -> Markup:
    right = [any(content.is_number(row[i]) for row in block.rows) for i in range(len(block.columns))]
    head = element(
        "tr",
        [
            element("th", name, scope="col", class_="number" if right[i] else None)
            for i, name in enumerate(block.columns)
        ],
    )
    rows = []
    for r, row in enumerate(block.rows):
        cells = []
        for i, cell in enumerate(row):
            shown = inline(cell)
            if (r, i) in block.bold:
                shown = element("strong", shown)
            class_ = "number" if right[i] else None
            scope = "row" if i == 0 else None
            cells.append(element("th" if i == 0 else "td", shown, class_=class_, scope=scope))
        total = block.last_is_total and r == len(block.rows) - 1
        rows.append(element("tr", cells, class_="total" if total else None))
    table = element(
        "table",
        element("caption", block.caption) if block.caption else None,
        element("thead", head),
        element("tbody", rows),
    )
    # The box scrolls, so it must be reachable with the keyboard.
    box = element(
        "div", table, class_="scroll", tabindex=0, role="region", aria_label=block.caption or "table"
    )
    return join([box, element("p", block.note, class_="note") if block.note else None])


def _legend(entries: list[tuple[str, int, int]]) -> Markup | None:
    """Name, hue and shape of each system; shape -1 is a line, -2 a dashed one."""
    if not entries:
        return None
    items = []
    for name, hue, shape in entries:
        if shape < 0:
            dashed = " dashed" if shape == -2 else ""
            mark = element("line", x1=1, y1=6, x2=17, y2=6, class_=f"curve {charts.hue(hue)}{dashed}")
        else:
            mark = charts.marker(shape, 9, 6, f"mark {charts.hue(hue)}")
        key = element("svg", mark, viewBox="0 0 18 12", class_="key", aria_hidden="true")
        items.append(element("li", key, name))
    return element("ul", items, class_="legend")


def _line_chart(block: LineChart) -> Markup:
    said = "; ".join(content.summary(series, block.digits) for series in block.series)
    return element(
        "figure",
        element("figcaption", block.title),
        _legend([(series.name, series.hue, -2 if series.dashed else -1) for series in block.series]),
        charts.line_chart(block),
        element("p", said, class_="note"),
    )


def _interval_chart(block: IntervalChart) -> Markup:
    names = [item.name for item in block.intervals]
    entries = [
        (name, next(i.hue for i in block.intervals if i.name == name), charts.shape_of(names, name))
        for name in dict.fromkeys(names)
    ]
    return element(
        "figure", element("figcaption", block.title), _legend(entries), charts.interval_chart(block)
    )


def _examples(block: Examples) -> Markup:
    items = []
    for example in block.items:
        meta = join([element("span", inline(example.score), class_="score"), " ", example.note])
        pairs = (("source", example.source), ("reference", example.reference), ("model", example.hypothesis))
        lines = [
            element("div", element("dt", name), _words(text, "dd", f"words {name}")) for name, text in pairs
        ]
        items.append(
            element("article", element("dl", lines), element("p", meta, class_="note"), class_="example")
        )
    return join([element("h3", block.title, id=slug(block.title)), element("div", items, class_="examples")])


def _block(block: content.Block) -> Markup:
    if isinstance(block, Heading):
        return _heading(block)
    if isinstance(block, Paragraph):
        return _paragraph(block)
    if isinstance(block, Figures):
        return _figures(block)
    if isinstance(block, Facts):
        return _facts(block)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, LineChart):
        return _line_chart(block)
    if isinstance(block, IntervalChart):
        return _interval_chart(block)
    return _examples(block)


def _contents(page: Page) -> Markup | None:
    titles = [block.text for block in page.blocks if isinstance(block, Heading) and block.level == 2]
    if len(titles) < 3:
        return None
    links = [element("li", element("a", title, href=f"#{slug(title)}")) for title in titles]
    return element("nav", element("ol", links), aria_label="Contents")


def render(page: Page) -> str:
    """The page as HTML text."""
    style = (resources.files("nalanda.evaluate") / "report.css").read_text(encoding="utf-8")
    header = element(
        "header", element("h1", page.title), element("p", page.subtitle, class_="subtitle"), _contents(page)
    )
    body = element("main", header, "\n", [[_block(block), "\n"] for block in page.blocks])
    return str(document(page.title, style, body))
