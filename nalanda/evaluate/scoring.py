"""Per-row counts of a system's translations, from which any set of rows is scored with an interval.

statistics = Statistics.of(rows)
statistics.measure(np.arange(len(rows)), Settings())
    {"rows": 900, "chrf": {"value": 57.1, "low": ..., "high": ...}, "bleu": ..., "exact": ...}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nalanda.config import Config
from nalanda.evaluate.rows import Translation
from nalanda.metrics import bootstrap, language_model
from nalanda.metrics.overlap import Bleu, ChrF, Overlap

Counts = NDArray[np.float64]


class Settings(Config):
    """How intervals are made: resamples of the bootstrap, its seed, and the interval's level."""

    resamples: int = Field(default=1000, ge=100, le=100_000)
    seed: int = Field(default=0, ge=0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A corpus score in percent: counts per row, and the score of summed counts (any leading shape)."""

    title: str
    counts: Callable[[Sequence[Translation]], Counts]
    score: Callable[[Counts], Counts]
    signature: str


def _overlap(title: str, metric: Overlap) -> Metric:
    def counts(rows: Sequence[Translation]) -> Counts:
        return metric.statistics([row.hypothesis for row in rows], [row.reference for row in rows])

    return Metric(title, counts, metric.score, metric.signature())


def _exact_counts(rows: Sequence[Translation]) -> Counts:
    return np.array([[100 * row.exact, 1] for row in rows], np.float64)


METRICS: dict[str, Metric] = {
    "chrf": _overlap("chrF++", ChrF()),
    "bleu": _overlap("BLEU", Bleu()),
    "exact": Metric(
        "exact match", _exact_counts, bootstrap.mean_score, "equal but for spaces at the ends, percent"
    ),
}


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
        values: dict[str, Any] = {"rows": len(inside)}
        for key, metric in METRICS.items():
            found = bootstrap.interval(self.counts[key][inside], metric.score, **settings.to_dict())
            values[key] = {"value": found.value, "low": found.low, "high": found.high}
        return values | self._likelihood([self.rows[index] for index in inside])

    def _likelihood(self, rows: list[Translation]) -> dict[str, float]:
        """Perplexity and bits per byte of the references, where every row has its likelihood."""
        if any(row.nll is None for row in rows):
            return {}
        nats = sum(row.nll for row in rows if row.nll is not None)
        size = sum(len(row.reference.encode("utf-8")) for row in rows)
        tokens = sum(row.tokens or 0 for row in rows)
        found = {"bits_per_byte": language_model.bits_per_byte(nats, size)} if size else {}
        if all(row.tokens for row in rows):
            found["perplexity"] = language_model.perplexity(nats, tokens)
        return found

    def against(
        self, other: Statistics, key: str, inside: NDArray[np.int64], settings: Settings
    ) -> bootstrap.Comparison:
        """Paired bootstrap of one metric on the rows `inside`, which both systems have in the same order."""
        pair = (self.counts[key][inside], other.counts[key][inside])
        return bootstrap.paired(*pair, METRICS[key].score, **settings.to_dict())
