"""The counter-based random numbers: even, independent, and the same for ever."""

from __future__ import annotations

import numpy as np

from nalanda.data.noise import permutation, row_keys, uniform


def test_the_streams_never_change() -> None:
    """A resumed run needs these very numbers; if this fails, every saved run would go on differently."""
    keys = row_keys(7, "mask", 3, np.arange(2))
    assert keys.tolist() == [14508936736311443321, 18068522164628206124]
    assert permutation(8, 7, "epoch", 1).tolist() == [1, 0, 4, 7, 5, 6, 3, 2]


def test_uniform_is_even_and_uncorrelated() -> None:
    keys = row_keys(1, "x", 0, np.arange(1000))
    draws = uniform(np.repeat(keys, 100), np.tile(np.arange(100), 1000)).reshape(1000, 100)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 50  # chi square, 19 degrees: 43.8 at p = 0.001
    for other in (draws[1:], np.roll(draws, 1, axis=1)[:-1]):  # the next sample, the next token
        assert abs(np.corrcoef(draws[: len(other)].ravel(), other.ravel())[0, 1]) < 0.015
    for key in (
        row_keys(1, "y", 0, np.arange(1000)),
        row_keys(1, "x", 1, np.arange(1000)),
        row_keys(2, "x", 0, np.arange(1000)),
    ):
        again = uniform(np.repeat(key, 100), np.tile(np.arange(100), 1000))
        assert abs(np.corrcoef(draws.ravel(), again)[0, 1]) < 0.015


def test_a_sample_draws_the_same_in_any_company() -> None:
    assert row_keys(1, "x", 5, np.array([9, 4, 7]))[1] == row_keys(1, "x", 5, np.array([4]))[0]


def test_permutations() -> None:
    first, second = permutation(1000, 1, "epoch", 0), permutation(1000, 1, "epoch", 1)
    assert sorted(first.tolist()) == list(range(1000))
    assert abs((first == second).sum() - 1) < 6  # as few fixed points as chance gives
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.12
    assert permutation(0, 1).tolist() == []
