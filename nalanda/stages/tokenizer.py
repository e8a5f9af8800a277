"""`nalanda tokenizer`: a corpus's training text -> a tokenizer, with its fertility by language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from nalanda.base.run import Run
from nalanda.corpus.store import read_split
from nalanda.stages.stage import Context, Stage
from nalanda.tokenizer.train import TokenizerConfig, train


class TokenizerStage(TokenizerConfig):
    """A recipe's tokenizer stage."""

    verb: Literal["tokenizer"] = "tokenizer"
    corpus: Path


def run(config: TokenizerStage, run: Run, context: Context) -> dict[str, Any]:
    """Trains on both sides of the training split; writes the tokenizer into the run folder."""
    tokenizer = train(texts(config.corpus, "train"), config, context.progress)
    tokenizer.save(run.path)
    return {"vocabulary": tokenizer.vocabulary, "tokenizer": tokenizer.fingerprint}


def texts(corpus: Path, split: str) -> Iterator[str]:
    """Every text of a split, both sides of pairs, each once per row."""
    for document in read_split(corpus, split):
        yield document.text
        if document.target is not None:
            yield document.target


STAGE = Stage(config=TokenizerStage, run=run, inputs=lambda config: {"corpus": config.corpus})
