"""Scores decoder language models on held-out text: perplexity and bits per byte, with intervals.

Every text is scored whole, from BOS to EOS; one longer than the model's positions in pieces, each from BOS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nalanda.base.errors import DataError
from nalanda.corpus.store import read_split
from nalanda.evaluate.scoring import Settings
from nalanda.generate.scoring import log_probabilities
from nalanda.metrics.bootstrap import interval
from nalanda.metrics.language_model import bits_per_byte, perplexity
from nalanda.stages.stage import Context
from nalanda.stages.use import Opened


@dataclass(frozen=True)
class Likelihood:
    """Per text: nats, tokens (EOS included) and UTF-8 bytes, as three columns."""

    counts_N3: np.ndarray

    def scores(self, settings: Settings) -> dict[str, Any]:
        """Perplexity and bits per byte of all texts together, each with a bootstrap interval over texts."""
        nats, tokens, size = self.counts_N3.sum(0).tolist()

        def bits(counts: np.ndarray) -> np.ndarray:
            return np.asarray(counts[..., 0] / counts[..., 2] / np.log(2))

        found = interval(
            self.counts_N3,
            bits,
            confidence=settings.confidence,
            resamples=settings.resamples,
            seed=settings.seed,
        )
        return {
            "perplexity": perplexity(nats, tokens),
            "bits_per_byte": bits_per_byte(nats, size),
            "bits_per_byte_low": found.low,
            "bits_per_byte_high": found.high,
            "texts": len(self.counts_N3),
            "tokens": int(tokens),
            "bytes": int(size),
        }


def held_out_texts(corpus: Path, split: str, rows: int | None) -> list[str]:
    """Every different text of a split, both sides of pairs, at most `rows`. Raises DataError where there is none."""
    seen: dict[str, None] = {}
    for document in read_split(corpus, split):
        for text in (document.text, document.target):
            if text:
                seen[text] = None
        if rows is not None and len(seen) >= rows:
            break
    if not seen:
        raise DataError(f"{corpus}: its {split} split has no texts")
    return list(seen)[:rows]


def _pieces(ids: list[int], room: int) -> Iterator[list[int]]:
    for start in range(0, len(ids), room):
        yield ids[start : start + room]


def likelihood(opened: Opened, texts: list[str], context: Context) -> Likelihood:
    """How likely the model finds each text."""
    model, tokenizer = opened.model, opened.tokenizer
    first, end = opened.prompting.prompt("")[:1], opened.prompting.eos
    limits = [position.limit for _, _, position in model.spec.stacks() if position.limit is not None]
    room = min(limits, default=4096)
    targets: list[list[int]] = []
    owner: list[int] = []
    for index, ids in enumerate(tokenizer.encode_batch(texts)):
        for piece in _pieces([*ids, end], room):
            targets.append(piece)
            owner.append(index)
    prompts = [first] * len(targets)
    rows = log_probabilities(model, prompts, targets, bos=first[0], progress=context.progress)
    counts = np.zeros((len(texts), 3))
    for index, row in zip(owner, rows, strict=True):
        counts[index, 0] -= sum(row)
        counts[index, 1] += len(row)
    counts[:, 2] = [len(text.encode()) for text in texts]
    return Likelihood(counts)
