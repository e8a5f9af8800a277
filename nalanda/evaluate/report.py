"""What a report says, in which order, and the two files it becomes.

    page = pipeline_page(Path("runs/quickstart"))
    write_report(Path("runs/quickstart"), page)          # report.html and report.md, the same words and numbers

The sections read what a run holds and leave out what it does not: a run that was only trained has curves and timings,
one that was evaluated has scores too.
"""

from __future__ import annotations

from pathlib import Path

from nalanda.base import io
from nalanda.evaluate import record as run_record
from nalanda.evaluate import render_html, render_markdown, sections_run, sections_scores
from nalanda.evaluate.content import Block, Page, Paragraph

HTML, MARKDOWN = "report.html", "report.md"


def pipeline_page(folder: Path) -> Page:
    """The report of the run at `folder`, a pipeline or a single stage. Raises RunError where there is no run."""
    record = run_record.read(folder)
    comparison = sections_scores.comparison_of(record)
    blocks: list[Block] = [
        *sections_scores.headline(record, comparison),
        *sections_scores.gain(record, comparison),
        *sections_scores.languages(record),
        *sections_run.curves(record),
        *sections_scores.errors(record),
        *sections_scores.examples(record),
        *sections_run.corpus(record),
        *sections_run.tokenizer(record),
        *sections_run.cost(record),
        *sections_run.environment(record),
        *sections_run.method(record),
    ]
    if not blocks:
        blocks = [Paragraph(("No stage of this run has finished yet.",))]
    return Page(record.name, record.about or "Nalanda report", tuple(blocks))


def write_report(folder: Path, page: Page) -> tuple[Path, Path]:
    """Writes `page` as report.html and report.md into `folder`, each atomically; returns the two paths."""
    html, markdown = folder / HTML, folder / MARKDOWN
    io.write_text(html, render_html.render(page))
    io.write_text(markdown, render_markdown.render(page))
    return html, markdown
