"""The order of samples: budgets, shares, whole epochs, equal numbers of steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalanda.base.errors import DataError
from nalanda.data.order import Order, by_length, cut, ladder, shares

LENGTHS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=60)


@given(LENGTHS, st.integers(10, 300), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_cut_fills_batches_up_to_the_budget(pairs: list[tuple[int, int]], budget: int, multiple: int) -> None:
    source, stream = np.array(pairs).T
    bounds = cut(source, stream, budget, multiple)
    assert bounds[0] == 0
    assert bounds[-1] == len(pairs)
    for a, b in pairwise(bounds.tolist()):
        rows = b - a
        assert rows > 0
        cost = ladder(rows, multiple) * (source[a:b].max() + stream[a:b].max())
        assert cost <= budget or rows == 1
        if b < len(pairs) and rows > multiple:
            assert rows % multiple == 0
        if b < len(pairs):  # one step of rows more would not have fitted
            c = b + (multiple if rows >= multiple else 1)
            if c <= len(pairs):
                wider = ladder(c - a, multiple) * (source[a:c].max() + stream[a:c].max())
                assert wider > budget


@given(LENGTHS, st.integers(1, 50))
def test_by_length_is_a_permutation(pairs: list[tuple[int, int]], batches: int) -> None:
    source, stream = np.array(pairs).T
    assert sorted(by_length(source, stream, batches).tolist()) == list(range(len(pairs)))


def test_ladder() -> None:
    assert [ladder(n, 8) for n in (0, 1, 8, 9)] == [0, 8, 8, 16]
    assert ladder(np.array([7, 8, 9]), 4).tolist() == [8, 8, 12]


def test_shares_follow_the_temperature() -> None:
    counts = np.array([9000, 900, 100, 0])
    assert shares(counts, 1).tolist() == [9000, 900, 100, 0]
    root = np.sqrt(counts)
    assert np.abs(shares(counts, 2) - root / root.sum() * 10_000).max() < 1
    even = shares(counts, 1e6)
    assert even.sum() == 10_000
    assert np.abs(even[:3] - 3333).max() <= 1
    assert even[3] == 0


def order(count: int = 5000, temperature: float = 1.0, seed: int = 1, drift: bool = False) -> Order:
    generator = np.random.default_rng(0)
    source, stream = generator.integers(2, 40, (2, count))
    groups = np.repeat([0, 1, 2], [count - count // 4 - count // 20, count // 4, count // 20])

    def sizes(ids: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return source[ids], stream[ids] + (epoch % 3 if drift else 0)

    return Order(groups, sizes, budget=256, seed=seed, temperature=temperature, multiple=4)


@pytest.mark.parametrize("drift", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_every_epoch_has_as_many_steps(temperature: float, drift: bool) -> None:
    """Also where the lengths, and so the number of batches that a budget gives, differ by epoch."""
    made = order(temperature=temperature, drift=drift)
    assert made.steps_per_epoch > 3 * 128  # several windows
    for epoch in range(4):
        plan = made.plan(epoch)
        assert len(plan.turn) == len(plan.bounds) - 1 == made.steps_per_epoch
        assert np.diff(plan.bounds).min() > 0
        assert sorted(plan.turn.tolist()) == list(range(made.steps_per_epoch))
        steps = range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch)
        ids = np.concatenate([made.step(step)[1] for step in steps])
        assert len(ids) == 5000
        if temperature == 1.0:
            assert sorted(ids.tolist()) == list(range(5000))


def test_a_small_group_comes_as_often_as_its_share_and_evenly() -> None:
    made = order(temperature=4.0)
    ids = np.concatenate([made.draw(epoch) for epoch in range(8)])
    seen = np.bincount(ids, minlength=5000)
    groups = [seen[:3500], seen[3500:4750], seen[4750:]]
    expected = shares(np.array([3500, 1250, 250]), 4.0) * 8
    assert [int(group.sum()) for group in groups] == expected.tolist()
    for group in groups:  # no member is ever two visits ahead of another
        assert group.max() - group.min() <= 1


def test_epochs_and_seeds_shuffle_companions() -> None:
    made = order()
    first, second, other = made.plan(0), made.plan(1), order(seed=2).plan(0)
    batches = {frozenset(first.ids[a:b].tolist()) for a, b in pairwise(first.bounds)}
    for plan in (second, other):
        again = {frozenset(plan.ids[a:b].tolist()) for a, b in pairwise(plan.bounds)}
        assert len(batches & again) < len(batches) / 50


def test_only_two_plans_stay_in_memory() -> None:
    made = order(500)
    for epoch in range(6):
        made.plan(epoch)
    assert len(made._plans) == 2


def test_no_samples() -> None:
    with pytest.raises(DataError, match="no samples"):
        Order(np.empty(0), lambda ids, epoch: (ids, ids), 10, 1)
