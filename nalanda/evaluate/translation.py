"""Scores translations: chrF++, BLEU, exact matches, and perplexity where likelihoods are given.

    scores = evaluate_translations(rows, folder, name="pre-trained", role="main", model="finetune")
        folder/translations.jsonl   every row with its own chrF++        folder/scores.json   what is returned
    comparison = compare(rows, other_rows)     # the same test rows, translated by two systems
    comparison.verdict                         # "better", "worse" or "not distinguishable"

Every score is of the whole set (n-gram counts are summed, never scores averaged), with a bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nalanda.base import io
from nalanda.base.errors import DataError
from nalanda.base.progress import ProgressFactory, silent
from nalanda.evaluate import rows as rows_file
from nalanda.evaluate import slices
from nalanda.evaluate.rows import Translation
from nalanda.evaluate.scoring import METRICS, Settings, Statistics
from nalanda.metrics import bootstrap

FORMAT = 1
TRANSLATIONS, SCORES = "translations.jsonl", "scores.json"
Role = Literal["main", "control", "baseline"]


def evaluate_translations(
    rows: Sequence[Translation],
    folder: Path,
    *,
    name: str,
    role: Role = "main",
    model: str = "",
    settings: Settings | None = None,
    progress: ProgressFactory = silent,
) -> dict[str, Any]:
    """Scores `rows` and writes translations.jsonl and scores.json into `folder`; returns what scores.json holds.

    `name` and `role` say which system this is in a report; `model` names the training stage it came from.
    Raises DataError where there are no rows or two rows share an id.
    """
    settings = settings or Settings()
    _check(rows)
    with progress(f"scoring {name}", total=len(rows), unit="rows") as bar:
        statistics = Statistics.of(rows)
        bar.update(len(rows))
    everything = np.arange(len(rows))
    scores: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "role": role,
        "model": model,
        "settings": settings.to_dict(),
        "signatures": {key: metric.signature for key, metric in METRICS.items()},
        "overall": statistics.measure(everything, settings),
        "languages": {
            code: statistics.measure(inside, settings) for code, inside in _languages(rows).items()
        },
        "slices": {
            kind: [{"name": s.name, "small": s.small, **statistics.measure(s.rows, settings)} for s in found]
            for kind, found in slices.partitions(rows).items()
        },
    }
    per_row = statistics.sentences("chrf")
    extra = [{"chrf": round(float(score), 2), "exact": row.exact} for row, score in zip(rows, per_row)]
    rows_file.write(folder / TRANSLATIONS, rows, extra)
    io.write_json(folder / SCORES, scores)
    return scores


def _check(rows: Sequence[Translation]) -> None:
    if not rows:
        raise DataError("no translations to score; is the test split empty?")
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(f"two translations have the id '{row.id}'; give every test row its own id")
        seen.add(row.id)


def _languages(rows: Sequence[Translation]) -> dict[str, NDArray[np.int64]]:
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.target_language, []).append(index)
    return {code: np.array(inside, np.int64) for code, inside in sorted(groups.items())}


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher the first system scores than the second, with its interval and a two-sided p-value."""

    first: float
    second: float
    value: float
    low: float
    high: float
    p: float
    rows: int

    @staticmethod
    def of(found: bootstrap.Comparison, rows: int) -> Difference:
        """The outcome of a paired bootstrap over `rows` rows."""
        return Difference(found.first, found.second, found.difference, found.low, found.high, found.p, rows)

    @property
    def verdict(self) -> str:
        """The first against the second: 'better', 'worse' or 'not distinguishable' (5 % level, both ways)."""
        if self.p < 0.05 and self.low > 0:
            return "better"
        if self.p < 0.05 and self.high < 0:
            return "worse"
        return "not distinguishable"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same rows: per metric overall, and chrF++ per language."""

    overall: dict[str, Difference]
    languages: dict[str, Difference] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)

    @property
    def verdict(self) -> str:
        """The verdict on chrF++ over all rows."""
        return self.overall["chrf"].verdict


def compare(
    first: Sequence[Translation], second: Sequence[Translation], settings: Settings | None = None
) -> Comparison:
    """Paired bootstrap of two systems (Koehn 2004): both are scored on the same resampled rows.

    Raises DataError unless the two hold the same ids with the same sources and references.
    """
    settings = settings or Settings()
    _check(first)
    _check(second)
    by_id = {row.id: row for row in second}
    aligned = []
    for row in first:
        other = by_id.get(row.id)
        if other is None or (other.source, other.reference) != (row.source, row.reference):
            raise DataError(f"row '{row.id}' is not the same in both systems; score both on one test set")
        aligned.append(other)
    if len(aligned) != len(second):
        raise DataError(f"{len(aligned)} rows against {len(second)}; score both systems on one test set")
    left, right = Statistics.of(first), Statistics.of(aligned)
    everything = np.arange(len(first))
    return Comparison(
        {key: Difference.of(left.against(right, key, everything, settings), len(first)) for key in METRICS},
        {
            code: Difference.of(left.against(right, "chrf", inside, settings), len(inside))
            for code, inside in _languages(first).items()
        },
        settings,
    )
