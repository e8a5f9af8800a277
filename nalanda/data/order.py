"""In which order samples are seen: pure functions of (seed, epoch), looked up by step in O(1).

    order = Order(groups, shares, sizes, budget=8192, seed=1, multiple=8)
    order.steps_per_epoch
    epoch, ids = order.step(1234)        # the samples of optimizer step 1234

An epoch is drawn (which samples, by language share), shuffled, sorted by length within windows, cut into batches
by a budget of PADDED tokens, and the batches are shuffled:

    epoch e -> draw -> shuffle -> windows of ~128 batches -> sort by (source, target) length -> cut -> shuffle batches

Every epoch has the same number of steps, so step -> (epoch, place) is a division. Where an epoch's draw would
give a batch more or less (its lengths differ), the budget is raised by single percents or the largest batches
are halved until the number fits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from nalanda.base.errors import DataError
from nalanda.data.noise import permutation

Sizes = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(sample ids, epoch) -> (source lengths, stream lengths) in tokens, special tokens included."""

WINDOW_BATCHES = 128


Length = TypeVar("Length", int, np.ndarray)


def ladder(length: Length, multiple: int) -> Length:
    """The length that a row of `length` is padded to: the next multiple of `multiple`."""
    return -(-length // multiple) * multiple


def cut(source: np.ndarray, stream: np.ndarray, budget: int, row_multiple: int = 1) -> np.ndarray:
    """Bounds of batches of consecutive rows with rows x (longest source + longest stream) <= budget.

    Rows count as padded to `row_multiple`, and are rounded down to it where more than that fit. A row that
    alone exceeds the budget gets its own batch. Returns int64 bounds, from 0 to the number of rows.
    """
    bounds, at, count = [0], 0, len(source)
    while at < count:
        most = max(1, budget // max(1, int(source[at] + stream[at])))
        widest = np.maximum.accumulate(source[at : at + most]) + np.maximum.accumulate(stream[at : at + most])
        cost = widest * ladder(np.arange(1, len(widest) + 1), row_multiple)
        rows = max(1, int(np.searchsorted(cost, budget, side="right")))
        if at + rows < count and rows > row_multiple:
            rows -= rows % row_multiple
        at += rows
        bounds.append(at)
    return np.array(bounds, dtype=np.int64)


def by_length(source: np.ndarray, stream: np.ndarray, batches: int) -> np.ndarray:
    """An order in which neighbours have nearly equal source and stream lengths (ties keep their order).

    Groups of equal source length come first; inside them stream lengths go up and down in turn, so that
    the last rows of one group fit beside the first of the next.
    """
    by_source = np.lexsort((stream, source))
    groups = max(1, int(np.sqrt(batches)))
    group = np.empty(len(source), dtype=np.int64)
    group[by_source] = np.arange(len(source)) * groups // max(1, len(source))
    return np.lexsort((source, np.where(group % 2 == 0, stream, -stream), group))


def shares(counts: np.ndarray, temperature: float) -> np.ndarray:
    """How many samples of each group an epoch holds: p ~ count^(1/temperature), summing to all samples."""
    weights = np.where(counts > 0, counts.astype(np.float64) ** (1.0 / temperature), 0.0)
    exact = weights / max(weights.sum(), 1e-300) * counts.sum()
    quota = np.floor(exact).astype(np.int64)
    for index in np.argsort(-(exact - quota), kind="stable")[: int(counts.sum() - quota.sum())]:
        quota[index] += 1
    return quota


@dataclass(frozen=True)
class Plan:
    """The batches of one epoch: batch b holds the samples ids[bounds[b] : bounds[b + 1]], in shuffled order."""

    ids: np.ndarray
    bounds: np.ndarray
    turn: np.ndarray


class Order:
    """The order of one source.

    `groups` gives each sample's group (its language, for example), `temperature` how far small groups are
    raised: at 1 every sample comes exactly once an epoch. `sizes` gives planned lengths of samples.
    """

    def __init__(
        self,
        groups: np.ndarray,
        sizes: Sizes,
        budget: int,
        seed: int,
        temperature: float = 1.0,
        multiple: int = 1,
        row_multiple: int = 1,
    ) -> None:
        if len(groups) == 0:
            raise DataError("the source has no samples: the corpus split is empty, or every row was dropped")
        self.seed, self.budget, self.multiple, self.row_multiple = seed, budget, multiple, row_multiple
        self._sizes = sizes
        names, group = np.unique(groups, return_inverse=True)
        self._members = [np.flatnonzero(group == index) for index in range(len(names))]
        self._quota = shares(np.array([len(m) for m in self._members]), temperature)
        self._lock = threading.Lock()
        self._plans: dict[int, Plan] = {}
        self.steps_per_epoch = 0
        self.steps_per_epoch = len(self.plan(0).turn)

    def step(self, step: int) -> tuple[int, np.ndarray]:
        """The epoch of optimizer step `step` (from 0) and the ids of its samples."""
        epoch, place = divmod(step, self.steps_per_epoch)
        plan = self.plan(epoch)
        batch = plan.turn[place]
        return epoch, plan.ids[plan.bounds[batch] : plan.bounds[batch + 1]]

    def plan(self, epoch: int) -> Plan:
        """The epoch's plan; the two last used are kept in memory."""
        with self._lock:
            plan = self._plans.get(epoch)
            if plan is None:
                plan = self._make(epoch)
                while len(self._plans) > 1:
                    del self._plans[next(iter(self._plans))]
                self._plans[epoch] = plan
            return plan

    def split(self, ids: np.ndarray, epoch: int, budget: int) -> list[np.ndarray]:
        """The samples of a step as micro-batches of at most `budget` padded tokens each."""
        source, stream = self._padded(ids, epoch)
        bounds = cut(source, stream, budget, self.row_multiple)
        return [ids[a:b] for a, b in pairwise(bounds)]

    def ordered(self, budget: int) -> list[np.ndarray]:
        """Every sample exactly once, in batches of nearly equal lengths; the same for every seed."""
        ids = np.arange(sum(len(members) for members in self._members))
        source, stream = self._padded(ids, 0)
        order = by_length(source, stream, self._batches(source, stream))
        return self.split(ids[order], 0, budget)

    def draw(self, epoch: int) -> np.ndarray:
        """The samples of an epoch, shuffled. Each group is an endless stream of permutations of its members."""
        parts = []
        for index, (members, quota) in enumerate(zip(self._members, self._quota)):
            at, stop = epoch * int(quota), (epoch + 1) * int(quota)
            while at < stop:
                cycle, offset = divmod(at, len(members))
                turn = permutation(len(members), self.seed, "group", index, cycle)
                taken = turn[offset : offset + stop - at]
                parts.append(members[taken])
                at += len(taken)
        ids = np.concatenate(parts)
        return ids[permutation(len(ids), self.seed, "epoch", epoch)]

    def _padded(self, ids: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        source, stream = self._sizes(ids, epoch)
        return ladder(source, self.multiple), ladder(stream, self.multiple)

    def _batches(self, source: np.ndarray, stream: np.ndarray) -> int:
        return max(1, int((source + stream).sum()) // self.budget)

    def _make(self, epoch: int) -> Plan:
        ids = self.draw(epoch)
        source, stream = self._padded(ids, epoch)
        windows = max(1, round(self._batches(source, stream) / WINDOW_BATCHES))
        edges = np.arange(windows + 1) * len(ids) // windows
        orders = []
        for a, b in pairwise(edges):
            batches = self._batches(source[a:b], stream[a:b])
            orders.append(a + by_length(source[a:b], stream[a:b], batches))
        order = np.concatenate(orders)
        bounds = self._fit(source[order], stream[order], edges)
        turn = permutation(len(bounds) - 1, self.seed, "batches", epoch)
        return Plan(ids[order], bounds, turn)

    def _fit(self, source: np.ndarray, stream: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """Bounds of exactly `steps_per_epoch` batches (of as many as it takes, for the first plan)."""
        budget = self.budget
        while True:
            parts = [a + cut(source[a:b], stream[a:b], budget, self.row_multiple) for a, b in pairwise(edges)]
            bounds = np.unique(np.concatenate(parts))
            if not self.steps_per_epoch or len(bounds) - 1 <= self.steps_per_epoch:
                break
            budget += max(1, budget // 100)
        while self.steps_per_epoch and len(bounds) - 1 < self.steps_per_epoch:
            rows = np.diff(bounds)
            largest = int(rows.argmax())
            bounds = np.insert(bounds, largest + 1, bounds[largest] + rows[largest] // 2)
        return bounds
