"""`nalanda report`: what a run's folders hold -> report.html and report.md.

report: {verb: report, stages: ["${corpus}", "${scores}"]}     # in a pipeline, after the stages it names
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nalanda.base import io
from nalanda.base.run import Run
from nalanda.config import Config
from nalanda.evaluate.report import pipeline_page, write_report
from nalanda.stages.stage import Context, Stage


class ReportStage(Config):
    """A report of the run that `stages` belong to; it is written again when one of them changes."""

    verb: Literal["report"] = "report"
    stages: tuple[Path, ...] = Field(min_length=1)


def run(config: ReportStage, run: Run, context: Context) -> dict[str, Any]:
    """Reads the pipeline's folder and writes the two files into the stage's own."""
    html, markdown = write_report(run.path, pipeline_page(config.stages[0].parent))
    return {"report": html.name, "markdown": markdown.name}


def write(folder: Path) -> Path:
    """The report of a run at any time, into the run's folder. Returns the HTML file's path.

    Raises RunError for a damaged plan; what else is damaged is named in the report.
    """
    if (folder / "pipeline.json").exists():
        io.read_sealed(folder / "pipeline.json")
    html, _ = write_report(folder, pipeline_page(folder))
    return html


def inputs(config: ReportStage) -> dict[str, Path]:
    """The stages named."""
    return {f"stages.{index}": place for index, place in enumerate(config.stages)}


STAGE = Stage(config=ReportStage, run=run, inputs=inputs)
