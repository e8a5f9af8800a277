"""How sure a score is: intervals, and whether one system is better than another, from counts per segment.

    first, second = metric.statistics(a, references), metric.statistics(b, references)     # metrics/overlap.py
    interval(first, metric.score)                # Interval(value, low, high)
    paired(first, second, metric.score)          # paired bootstrap: difference, its interval, p
    randomization(first, second, metric.score)   # approximate randomization: the same with a permutation test's p

`score` is any function from summed counts (..., K) to scores (...); for a mean, give counts (value, 1) and
`mean_score`. Rows are what is drawn: segments, or documents whose counts were summed before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ScoreOf = Callable[[Array], Array]
_BLOCK = 4_000_000  # numbers in a block of weights: 32 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with the percentile interval of its bootstrap distribution."""

    value: float
    low: float
    high: float
    confidence: float
    resamples: int

    def to_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same rows: difference = first - second, its interval, and a two-sided p-value.

    `wins` is the share of resamples in which the first scores higher (ties count half).
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    wins: float
    confidence: float
    resamples: int

    def to_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


def mean_score(statistics: Array) -> Array:
    """The mean, from summed (value, weight): for scores that are plain averages over rows."""
    return np.asarray(statistics[..., 0] / statistics[..., 1])


def resample(statistics: Array, resamples: int, seed: int) -> Array:
    """Summed counts of bootstrap resamples: (rows, K) -> (resamples, K).

    Each resample draws as many rows as there are, with replacement; the draws depend on (rows, seed) alone, so
    that two systems see the same ones.
    """
    rows = len(statistics)
    sums = [weights @ statistics for weights in _draws(rows, resamples, np.random.default_rng(seed))]
    return np.concatenate(sums)


def _draws(rows: int, resamples: int, random: np.random.Generator) -> Iterator[Array]:
    """How often each row is drawn, in blocks (some resamples, rows), so that memory does not grow with both."""
    for size in _blocks(rows, resamples):
        yield random.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)


def _blocks(rows: int, total: int) -> list[int]:
    size = max(1, _BLOCK // rows)
    return [min(size, total - start) for start in range(0, total, size)]


def _ends(values: Array, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def interval(
    statistics: Array, score: ScoreOf, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """The score of counts (rows, K) with its percentile bootstrap interval (Efron 1979; Koehn 2004 for corpora).

    Raises ValueError when there are no rows or a parameter is out of range.
    """
    _check(statistics, confidence, resamples)
    low, high = _ends(score(resample(statistics, resamples, seed)), confidence)
    return Interval(float(score(statistics.sum(0))), low, high, confidence, resamples)


def paired(
    first: Array,
    second: Array,
    score: ScoreOf,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap resampling (Koehn 2004) of two systems' counts (rows, K) on the same rows.

    p is two-sided: how often a resample's difference, moved to mean zero as under the null hypothesis, is as large
    as the one seen (Riezler and Maxwell 2005), with one added to both counts so that it is never 0. Raises
    ValueError when the shapes differ, there are no rows, or a parameter is out of range.
    """
    _check_pair(first, second, confidence, resamples)
    ours, theirs = (score(resample(counts, resamples, seed)) for counts in (first, second))
    differences = ours - theirs
    seen = float(score(first.sum(0)) - score(second.sum(0)))
    p = _p_value(differences - differences.mean(), seen)
    return _comparison(first, second, score, differences, p, confidence, resamples)


def randomization(
    first: Array,
    second: Array,
    score: ScoreOf,
    *,
    trials: int = 10_000,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Paired approximate randomization (Noreen 1989; Riezler and Maxwell 2005) of two systems' counts (rows, K).

    In each trial every row's two outputs change places with probability one half; p is how often the difference is
    then as large as the one seen, one added to both counts. The interval is the paired bootstrap's. Raises
    ValueError as `paired` does.
    """
    _check_pair(first, second, confidence, resamples)
    if trials < 1:
        raise ValueError(f"trials is {trials}, expected at least 1")
    moved = second - first
    sums, others = first.sum(0), second.sum(0)
    seen = float(score(sums) - score(others))
    random = np.random.default_rng([seed, 1])  # another stream than the bootstrap's
    shuffled = []
    for size in _blocks(len(first), trials):
        shift = random.integers(0, 2, size=(size, len(first))).astype(np.float64) @ moved
        shuffled.append(score(sums + shift) - score(others - shift))
    p = _p_value(np.concatenate(shuffled), seen)
    ours, theirs = (score(resample(counts, resamples, seed)) for counts in (first, second))
    return _comparison(first, second, score, ours - theirs, p, confidence, resamples)


def _p_value(null: Array, seen: float) -> float:
    # Differences that are equal on paper may differ in their last digits.
    as_large = np.abs(null) >= abs(seen) - 1e-9 * max(1.0, abs(seen))
    return float((as_large.sum() + 1) / (len(null) + 1))


def _comparison(
    first: Array,
    second: Array,
    score: ScoreOf,
    differences: Array,
    p: float,
    confidence: float,
    resamples: int,
) -> Comparison:
    ours, theirs = float(score(first.sum(0))), float(score(second.sum(0)))
    low, high = _ends(differences, confidence)
    wins = float((differences > 0).mean() + (differences == 0).mean() / 2)
    return Comparison(ours, theirs, ours - theirs, low, high, p, wins, confidence, resamples)


def _check(statistics: Array, confidence: float, resamples: int) -> None:
    if statistics.ndim != 2 or not len(statistics):
        raise ValueError(
            f"expected counts of shape (rows, K) with at least one row, found {statistics.shape}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected at least 1")


def _check_pair(first: Array, second: Array, confidence: float, resamples: int) -> None:
    _check(first, confidence, resamples)
    if first.shape != second.shape:
        raise ValueError(f"the systems were not scored on the same rows: {first.shape} and {second.shape}")
