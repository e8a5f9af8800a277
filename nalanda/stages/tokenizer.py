"""`nalanda tokenizer`: a corpus's training text -> a tokenizer, with its fertility by language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from nalanda.base.run import Run
from nalanda.corpus.store import read_split
from nalanda.stages.stage import Context, Stage
from nalanda.tokenizer.evaluate import evaluate
from nalanda.tokenizer.train import TokenizerConfig, train


class TokenizerStage(TokenizerConfig):
    """A recipe's tokenizer stage."""

    verb: Literal["tokenizer"] = "tokenizer"
    corpus: Path


def run(config: TokenizerStage, run: Run, context: Context) -> dict[str, Any]:
    """Trains on the training split; writes the tokenizer into the run folder and measures its fit on dev."""
    tokenizer = train((text for _, text in texts(config.corpus, "train")), config, context.progress)
    tokenizer.save(run.path)
    fit = {code: row.to_dict() for code, row in evaluate(tokenizer, texts(config.corpus, "dev")).items()}
    return {"vocabulary": tokenizer.vocabulary, "tokenizer": tokenizer.fingerprint, "fit": fit}


def texts(corpus: Path, split: str) -> Iterator[tuple[str, str]]:
    """Language and text of every text of a split; of pairs, both sides."""
    for document in read_split(corpus, split):
        yield document.language, document.text
        if document.target is not None:
            yield document.target_language, document.target


def shrink(config: TokenizerStage) -> TokenizerStage:
    """A vocabulary that a sliver of text supports: every pair of pieces counts, and the rarest letters are bytes."""
    return config.model_copy(
        update={"min_frequency": 1, "vocabulary": min(config.vocabulary, 1200), "character_coverage": 0.99}
    )


STAGE = Stage(config=TokenizerStage, run=run, shrink=shrink, inputs=lambda config: {"corpus": config.corpus})
