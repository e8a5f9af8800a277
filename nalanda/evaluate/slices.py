"""Where a model fails: its rows grouped by source length, target language and origin of the data.

    partitions(rows) -> {"source length": [Slice("1 word", array([0, 4])), ...], "language": [...], "origin": [...]}

Each partition holds every row exactly once. A slice below `minimum` rows is merged with its neighbour (lengths) or
with the other small ones (languages, origins); one that is still small after that is marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nalanda.evaluate.rows import Translation

MINIMUM = 30
_LENGTHS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, None))


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows that have something in common; `small` where too few for their scores to mean much."""

    name: str
    rows: NDArray[np.int64]
    small: bool = False


def partitions(rows: Sequence[Translation], minimum: int = MINIMUM) -> dict[str, list[Slice]]:
    """The three partitions of `rows`; a partition with nothing to tell apart (all one origin) is left out."""
    found = {
        "source length": _by_length([len(row.source.split()) for row in rows], minimum),
        "language": _by_name([row.target_language for row in rows], minimum),
        "origin": _by_name([row.origin for row in rows], minimum),
    }
    return {name: slices for name, slices in found.items() if len(slices) > 1}


def _length_name(low: int, high: int | None) -> str:
    if high is None:
        return f"{low} words or more"
    if low == high:
        return f"{low} word" if low == 1 else f"{low} words"
    return f"{low} to {high} words"


def _by_length(lengths: Sequence[int], minimum: int) -> list[Slice]:
    """Neighbouring bins are merged from the long end, where rows are rare, then from the short end."""
    bins: list[tuple[int, int | None, list[int]]] = []
    for low, high in _LENGTHS:
        inside = [
            i for i, n in enumerate(lengths) if max(n, 1) >= low and (high is None or max(n, 1) <= high)
        ]
        bins.append((low, high, inside))
    while len(bins) > 1 and not bins[-1][2]:
        bins.pop()
    merged: list[tuple[int, int | None, list[int]]] = []
    for low, high, inside in reversed(bins):
        if merged and len(merged[-1][2]) < minimum:
            _, top, others = merged.pop()
            merged.append((low, top, sorted(inside + others)))
        else:
            merged.append((low, high, inside))
    merged.reverse()
    if len(merged) > 1 and len(merged[0][2]) < minimum:
        (low, _, first), (_, high, second) = merged[:2]
        merged[:2] = [(low, high, sorted(first + second))]
    return [
        Slice(_length_name(low, high), np.array(inside, np.int64), len(inside) < minimum)
        for low, high, inside in merged
        if inside
    ]


def _by_name(names: Sequence[str], minimum: int) -> list[Slice]:
    """Largest first; the small ones together at the end."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name or "(none)", []).append(index)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    large = [(name, rows) for name, rows in ordered if len(rows) >= minimum]
    small = [(name, rows) for name, rows in ordered if len(rows) < minimum]
    if len(small) > 1:
        small = [(f"{len(small)} others", sorted(row for _, rows in small for row in rows))]
    return [Slice(name, np.array(rows, np.int64), len(rows) < minimum) for name, rows in large + small]
