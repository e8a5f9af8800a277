"""A page of content as Markdown (GitHub's dialect): the same words and numbers as the HTML, charts as sentences."""

from __future__ import annotations

import re

from nalanda.evaluate import content
from nalanda.evaluate.content import (
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
    Strong,
    Table,
)

_ACTIVE = re.compile(r"([\\`*_\[\]<>|~#])")
_LINES = re.compile(r"\s*[\r\n\u2028\u2029\x0b\x0c\x85]+\s*")


def escape(text: str) -> str:
    """`text` so that Markdown shows it letter by letter, on one line."""
    return _ACTIVE.sub(r"\\\1", _LINES.sub(" ", text)).replace("&", "&amp;")


def _code(text: str) -> str:
    text = _LINES.sub(" ", text).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def inline(part: Cell | Inline) -> str:
    """One piece of a sentence or the content of one cell."""
    if isinstance(part, Code):
        return _code(part.text)
    text = escape(content.plain(part))
    return f"**{text}**" if isinstance(part, Strong) and text else text


def _table(block: Table) -> str:
    right = [any(content.is_number(row[i]) for row in block.rows) for i in range(len(block.columns))]
    lines = [f"**{escape(block.caption)}**", ""] if block.caption else []
    lines.append("| " + " | ".join(escape(name) for name in block.columns) + " |")
    lines.append("| " + " | ".join("---:" if side else "---" for side in right) + " |")
    for r, row in enumerate(block.rows):
        total = block.last_is_total and r == len(block.rows) - 1
        cells = [inline(cell) for cell in row]
        cells = [f"**{c}**" if c and ((r, i) in block.bold or total) else c for i, c in enumerate(cells)]
        lines.append("| " + " | ".join(cells) + " |")
    if block.note:
        lines += ["", escape(block.note)]
    return "\n".join(lines)


def _figures(block: Figures) -> str:
    return "\n".join(
        f"- {escape(label)}: **{inline(item)}**, {escape(meaning)}" for label, item, meaning in block.items
    )


def _interval_chart(block: IntervalChart) -> str:
    if block.in_table:
        return ""
    rows: dict[str, list[str]] = {}
    for item in block.intervals:
        rows.setdefault(item.row, []).append(f"{escape(item.name)} {inline(item.score)}")
    return "\n".join(
        [f"**{escape(block.title)}** ({escape(block.x_label)})", ""]
        + [f"- {escape(row)}: {'; '.join(items)}" for row, items in rows.items()]
    )


def _line_chart(block: LineChart) -> str:
    said = "; ".join(content.summary(series, block.digits) for series in block.series)
    return (
        f"**{escape(block.title)}** ({escape(block.y_label)} over {escape(block.x_label)})\n\n{escape(said)}"
    )


def _examples(block: Examples) -> str:
    lines = [f"### {escape(block.title)}", ""]
    for example in block.items:
        note = f", {escape(example.note)}" if example.note else ""
        lines.append(f"- {inline(example.source)}")
        lines.append(f"  - reference: {inline(example.reference)}")
        lines.append(f"  - model: {inline(example.hypothesis)}")
        lines.append(f"  - {inline(example.score)}{note}")
    return "\n".join(lines)


def _block(block: content.Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {escape(block.text)}"
    if isinstance(block, Paragraph):
        return "".join(inline(part) for part in block.parts)
    if isinstance(block, Figures):
        return _figures(block)
    if isinstance(block, Facts):
        return "\n".join(f"- {escape(name)}: {inline(item)}" for name, item in block.items)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, LineChart):
        return _line_chart(block)
    if isinstance(block, IntervalChart):
        return _interval_chart(block)
    return _examples(block)


def render(page: Page) -> str:
    """The page as Markdown text."""
    head = [f"# {escape(page.title)}", escape(page.subtitle)]
    return "\n\n".join(part for part in [*head, *map(_block, page.blocks)] if part) + "\n"
