"""`nalanda corpus`: sources -> cleaned, deduplicated, split rows with an exact ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from nalanda.base.run import Run
from nalanda.corpus.build import CorpusConfig, build, input_files
from nalanda.stages.stage import Context, Stage


class CorpusStage(CorpusConfig):
    """A recipe's corpus stage."""

    verb: Literal["corpus"] = "corpus"


def run(config: CorpusStage, run: Run, context: Context) -> dict[str, Any]:
    """Fills the run folder with train, dev and test; returns the ledger and the counts."""
    return build(config, run.path, context.progress)


def inputs(config: CorpusStage) -> dict[str, Path]:
    """The files and folders that the sources name; packages are watched by their versions instead."""
    return input_files(config)


def shrink(config: CorpusStage) -> CorpusStage:
    """The first rows of each source, split so that every part gets some."""
    sources = tuple(
        source.model_copy(update={"rows": min(source.rows or 1000, 1000)}) for source in config.sources
    )
    split = config.split.model_copy(update={"modulo": 4, "test": (1,), "dev": (2,), "near": 0.0})
    return config.model_copy(update={"sources": sources, "split": split})


STAGE = Stage(config=CorpusStage, run=run, shrink=shrink, inputs=inputs)
