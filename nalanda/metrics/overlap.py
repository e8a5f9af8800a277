"""BLEU and chrF++ as sacrebleu computes them, split into counts per segment and a score of summed counts.

    metric = ChrF()                                         # chrF++; or Bleu()
    counts = metric.statistics(hypotheses, references)      # (segments, K), made once
    metric.score(counts.sum(0))                             # the corpus score, in percent
    metric.score(weights @ counts)                          # of many resamples at once (metrics/bootstrap.py)
    metric.sentences(counts)                                # each segment by itself
    metric.signature()                                      # to print beside every score

A reference is a string, or several strings where a segment has more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sacrebleu.metrics import BLEU, CHRF

Array = NDArray[np.float64]
References = Sequence[str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Score:
    """A corpus score in percent and the signature that says how it was made."""

    value: float
    signature: str


class Overlap(Protocol):
    """A metric whose corpus score is a function of summed counts."""

    def statistics(self, hypotheses: Sequence[str], references: References) -> Array: ...

    def score(self, statistics: ArrayLike) -> Array: ...

    def sentences(self, statistics: ArrayLike) -> Array: ...

    def signature(self, references: int = 1) -> str: ...


class Bleu:
    """BLEU (Papineni et al. 2002): counts are both lengths, matches and totals of 1- to 4-grams.

    `tokenize` is sacrebleu's ("13a", "intl", "char", "none" ...). Corpus scores have exponential smoothing, as
    sacrebleu's default; sentence scores also leave out the orders that a sentence is too short for.
    """

    ORDERS = 4

    def __init__(self, tokenize: str = "13a", lowercase: bool = False) -> None:
        # `force` silences advice on tokenized input, which is written to the log for every call.
        self._metric = BLEU(tokenize=tokenize, lowercase=lowercase, force=True, effective_order=False)

    def statistics(self, hypotheses: Sequence[str], references: References) -> Array:
        """Counts by segment, (segments, 10). Raises ValueError when the two differ in length."""
        return _statistics(self._metric, hypotheses, references, 2 + 2 * self.ORDERS)

    def score(self, statistics: ArrayLike) -> Array:
        """The corpus score, in percent, of summed counts (..., 10); a score for each leading index."""
        return self._score(statistics, effective_order=False)

    def sentences(self, statistics: ArrayLike) -> Array:
        """The sentence-level score, in percent, of each row of counts (..., 10)."""
        return self._score(statistics, effective_order=True)

    def signature(self, references: int = 1) -> str:
        """sacrebleu's signature of the corpus score, for so many references (-1: it varies)."""
        return _signature(self._metric, references)

    def _score(self, statistics: ArrayLike, effective_order: bool) -> Array:
        counts = np.asarray(statistics, np.float64)
        length, reference = counts[..., 0], counts[..., 1]
        matches, totals = counts[..., 2 : 2 + self.ORDERS], counts[..., 2 + self.ORDERS :]
        # An order without a match counts as half a match, the next as a quarter ... (NIST mteval)
        halvings = np.cumsum(matches == 0, axis=-1)
        smoothed = np.where(matches == 0, 0.5**halvings, matches)
        usable = np.cumprod(totals > 0, axis=-1).astype(bool)
        precision = 100.0 * smoothed / np.where(usable, totals, 1.0)
        logs = np.where(usable, np.log(precision), 0.0 if effective_order else _LOG_OF_NOTHING)
        orders = np.maximum(usable.sum(-1), 1) if effective_order else self.ORDERS
        short = length < reference
        penalty = np.where(short, 1.0 - reference / np.where(length > 0, length, 1.0), 0.0)
        result = np.exp(penalty) * np.exp(logs.sum(-1) / orders)
        return np.where((matches > 0).any(-1) & (length > 0), result, 0.0)


# sacrebleu's logarithm of a precision of 0: the score becomes 0 without a special case
_LOG_OF_NOTHING = -9999999999.0


class ChrF:
    """chrF++ (Popovic 2017): counts are, for each order, n-grams of hypothesis, of reference, and matches.

    `word_order=0` is chrF (Popovic 2015). Recall weighs twice as much as precision.
    """

    BETA = 2

    def __init__(self, word_order: int = 2, char_order: int = 6, lowercase: bool = False) -> None:
        self._metric = CHRF(word_order=word_order, char_order=char_order, lowercase=lowercase, beta=self.BETA)
        self._orders = word_order + char_order

    def statistics(self, hypotheses: Sequence[str], references: References) -> Array:
        """Counts by segment, (segments, 3 x orders). Raises ValueError when the two differ in length."""
        return _statistics(self._metric, hypotheses, references, 3 * self._orders)

    def score(self, statistics: ArrayLike) -> Array:
        """The score, in percent, of summed counts (..., 3 x orders); a score for each leading index."""
        counts = np.asarray(statistics, np.float64)
        ours, theirs, matches = (counts[..., i::3] for i in range(3))
        used = (ours > 0) & (theirs > 0)
        orders = np.maximum(used.sum(-1), 1)
        precision = np.where(used, matches / np.where(used, ours, 1.0), 0.0).sum(-1) / orders
        recall = np.where(used, matches / np.where(used, theirs, 1.0), 0.0).sum(-1) / orders
        factor = self.BETA**2
        below = factor * precision + recall
        return np.where(
            below > 0, 100.0 * (1 + factor) * precision * recall / np.where(below > 0, below, 1.0), 0.0
        )

    def sentences(self, statistics: ArrayLike) -> Array:
        """The score, in percent, of each row of counts (..., 3 x orders)."""
        return self.score(statistics)

    def signature(self, references: int = 1) -> str:
        """sacrebleu's signature, for so many references (-1: it varies)."""
        return _signature(self._metric, references)


def bleu(hypotheses: Sequence[str], references: References, tokenize: str = "13a") -> Score:
    """The corpus BLEU of `hypotheses`, with its signature. Raises ValueError for no or unpaired segments."""
    return _corpus(Bleu(tokenize), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: References, word_order: int = 2) -> Score:
    """The corpus chrF++ (chrF with `word_order=0`), with its signature. Raises ValueError as `bleu` does."""
    return _corpus(ChrF(word_order), hypotheses, references)


def _corpus(metric: Overlap, hypotheses: Sequence[str], references: References) -> Score:
    if not hypotheses:
        raise ValueError("there are no segments to score")
    statistics = metric.statistics(hypotheses, references)
    sizes = {len(_all(reference)) for reference in references}
    return Score(
        float(metric.score(statistics.sum(0))), metric.signature(sizes.pop() if len(sizes) == 1 else -1)
    )


def _all(reference: str | Sequence[str]) -> Sequence[str]:
    return [reference] if isinstance(reference, str) else reference


def _statistics(metric: Any, hypotheses: Sequence[str], references: References, width: int) -> Array:
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses but {len(references)} references")
    if not hypotheses:
        return np.zeros((0, width))
    rows = [_all(reference) for reference in references]
    if not all(rows):
        raise ValueError(f"segment {next(i for i, row in enumerate(rows) if not row)} has no reference")
    most = max(len(row) for row in rows)
    streams = [[row[i] if i < len(row) else None for row in rows] for i in range(most)]
    # Not public, but the only door to chrF's counts; the tests hold it to sacrebleu's public scores.
    return np.array(metric._extract_corpus_statistics(hypotheses, streams), np.float64)


def _signature(metric: Any, references: int) -> str:
    metric.num_refs = references
    return str(metric.get_signature())
