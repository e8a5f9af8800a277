"""Per-row counts of a system's translations, from which any set of rows is scored with an interval.

statistics = Statistics.of(rows)
statistics.measure(np.arange(len(rows)), Settings())
{"rows": 900, "chrf": {"value": 57.1, "low": ..., "high": ...}, "bleu": ..., "exact": ...}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sacrebleu.metrics import BLEU, CHRF

from nalanda.base.seeds import derive
from nalanda.config import Config
from nalanda.evaluate.rows import Translation

Counts = NDArray[np.float64]


class Settings(Config):
    """How intervals are made: resamples of the bootstrap, its seed, and the interval's level."""

    resamples: int = Field(default=1000, ge=100, le=100_000)
    seed: int = 0
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A corpus score in percent: counts per row, and the score of summed counts (any leading shape)."""

    title: str
    counts: Callable[[Sequence[Translation]], Counts]
    score: Callable[[Counts], Counts]
    signature: str


_CHRF = CHRF(word_order=2)
_BLEU = BLEU()
_CHRF.num_refs = _BLEU.num_refs = 1  # a signature names the number of references


def _rows_of(metric: Any, rows: Sequence[Translation]) -> Counts:
    hypotheses, references = [row.hypothesis for row in rows], [[row.reference for row in rows]]
    return np.array(metric._extract_corpus_statistics(hypotheses, references), np.float64)


def _chrf_score(counts: Counts) -> Counts:
    """chrF++ of counts (..., 8 orders x [hypothesis, reference, matching]), as sacrebleu has it: mean precision and
    mean recall over the orders that both sides have, then F with recall counting double (Popovic 2017)."""
    hypothesis, reference, matching = np.moveaxis(counts.reshape(*counts.shape[:-1], -1, 3), -1, 0)
    there = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(there.sum(-1), 1)
    precision = (there * matching / np.maximum(hypothesis, 1)).sum(-1) / orders
    recall = (there * matching / np.maximum(reference, 1)).sum(-1) / orders
    total = 4 * precision + recall
    return np.asarray(100 * 5 * precision * recall / np.where(total > 0, total, 1))


def _bleu_score(counts: Counts) -> Counts:
    """BLEU of counts (..., [length, reference length, 4 correct, 4 total]) with sacrebleu's default smoothing: the
    k-th order without a match counts 1 / 2^k matches (Chen and Cherry 2014, method 3)."""
    length, target = counts[..., 0], counts[..., 1]
    correct, total = counts[..., 2:6], counts[..., 6:10]
    empty = correct == 0
    smoothed = np.where(empty, 0.5 ** np.cumsum(empty, axis=-1), correct)
    precision = smoothed / np.maximum(total, 1)
    mean = np.exp(np.log(np.maximum(precision, 1e-300)).mean(-1))
    shorter = np.minimum(1 - target / np.maximum(length, 1), 0.0)
    scored = (total > 0).all(-1) & (correct > 0).any(-1)
    return np.asarray(np.where(scored, 100 * np.exp(shorter) * mean, 0.0))


def _exact_counts(rows: Sequence[Translation]) -> Counts:
    return np.array([[row.exact, 1] for row in rows], np.float64)


def _exact_score(counts: Counts) -> Counts:
    return 100 * counts[..., 0] / np.maximum(counts[..., 1], 1)


METRICS: dict[str, Metric] = {
    "chrf": Metric("chrF++", lambda rows: _rows_of(_CHRF, rows), _chrf_score, str(_CHRF.get_signature())),
    "bleu": Metric("BLEU", lambda rows: _rows_of(_BLEU, rows), _bleu_score, str(_BLEU.get_signature())),
    "exact": Metric("exact match", _exact_counts, _exact_score, "equal but for spaces at the ends, percent"),
}


def resample(rows: int, settings: Settings) -> Counts:
    """How often each of `rows` rows is drawn in each resample: (resamples, rows), each line sums to `rows`."""
    generator = np.random.default_rng(derive(settings.seed, "bootstrap", rows))
    drawn = generator.integers(0, rows, size=(settings.resamples, rows))
    lines = np.arange(settings.resamples)[:, None] * rows
    return (
        np.bincount((drawn + lines).reshape(-1), minlength=settings.resamples * rows)
        .reshape(settings.resamples, rows)
        .astype(np.float64)
    )


def _ends(values: Counts, settings: Settings) -> tuple[float, float]:
    tail = 100 * (1 - settings.confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Statistics:
    """One system's rows and each metric's counts for them."""

    rows: Sequence[Translation]
    counts: dict[str, Counts]

    @staticmethod
    def of(rows: Sequence[Translation]) -> Statistics:
        """Counts every row once."""
        return Statistics(rows, {key: metric.counts(rows) for key, metric in METRICS.items()})

    def sentences(self, key: str) -> Counts:
        """The score of each row by itself."""
        return METRICS[key].score(self.counts[key])

    def measure(self, inside: NDArray[np.int64], settings: Settings) -> dict[str, Any]:
        """All scores of the rows `inside`: {"rows", metric: {"value", "low", "high"}, ...}."""
        weights = resample(len(inside), settings)
        values: dict[str, Any] = {"rows": len(inside)}
        for key, metric in METRICS.items():
            counts = self.counts[key][inside]
            low, high = _ends(metric.score(weights @ counts), settings)
            values[key] = {"value": float(metric.score(counts.sum(0))), "low": low, "high": high}
        return values | self._likelihood([self.rows[index] for index in inside])

    def _likelihood(self, rows: list[Translation]) -> dict[str, float]:
        """Perplexity and bits per byte of the references, where every row has its likelihood."""
        if any(row.nll is None for row in rows):
            return {}
        nats = sum(row.nll for row in rows if row.nll is not None)
        found = {}
        size = sum(len(row.reference.encode("utf-8")) for row in rows)
        if size:
            found["bits_per_byte"] = nats / math.log(2) / size
        tokens = sum(row.tokens or 0 for row in rows)
        if all(row.tokens for row in rows):
            found["perplexity"] = math.exp(min(nats / tokens, 700.0))
        return found

    def against(
        self, other: Statistics, key: str, inside: NDArray[np.int64], settings: Settings
    ) -> dict[str, Any]:
        """Paired bootstrap of one metric: scores, difference, its interval and two-sided p-value."""
        metric = METRICS[key]
        mine, theirs = self.counts[key][inside], other.counts[key][inside]
        weights = resample(len(inside), settings)
        first, second = float(metric.score(mine.sum(0))), float(metric.score(theirs.sum(0)))
        differences = metric.score(weights @ mine) - metric.score(weights @ theirs)
        low, high = _ends(differences, settings)
        # Resamples whose difference, moved to mean zero, is at least as large as the one seen; +1 keeps p above 0.
        beyond = np.abs(differences - differences.mean()) >= abs(first - second) - 1e-12
        p = float((beyond.sum() + 1) / (settings.resamples + 1))
        return {
            "first": first, "second": second, "value": first - second,
            "low": low, "high": high, "p": p, "rows": len(inside),
        }  # fmt: skip
