"""Mixtures: exact shares at every moment, and a lookup that equals counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nalanda.config import ConfigError, parse
from nalanda.data.mixture import PERIOD, Mixture, MixtureConfig, chairman, whole_shares


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7))
@settings(max_examples=100, deadline=None)
def test_no_share_is_ever_off_by_one(shares: list[int]) -> None:
    weights = np.array(shares)
    turn = chairman(weights)
    had = (turn[:, None] == np.arange(len(weights))).cumsum(axis=0)
    owed = np.arange(1, len(turn) + 1)[:, None] * weights / weights.sum()
    assert np.abs(had - owed).max() < 1
    assert had[-1].tolist() == shares


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([1, 1], [1, 1]),
        ([0.75, 0.25], [3, 1]),
        ([2], [1]),
        ([1 / 3, 2 / 3], [1, 2]),
        ([0.7, 0.2, 0.1], [7, 2, 1]),
    ],
)
def test_weights_in_lowest_terms(weights: list[float], shares: list[int]) -> None:
    assert whole_shares(weights).tolist() == shares


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_any_weights_are_met_to_a_thousandth(weights: list[float]) -> None:
    shares = whole_shares(weights)
    assert shares.min() > 0
    assert np.abs(shares / shares.sum() - np.array(weights) / sum(weights)).max() < 3 / PERIOD


class Counting:
    """A source whose batch is its step."""

    steps_per_epoch, fingerprint = 7, "x"

    def step(self, step: int) -> list[Any]:
        return [step]


def test_every_part_gives_its_steps_in_order_and_none_twice() -> None:
    mixture = Mixture([Counting(), Counting(), Counting()], [0.5, 0.3, 0.2], picks=3)  # type: ignore[list-item]
    counts = [0, 0, 0]
    for number in range(500):
        part, its_step = mixture.pick(number)
        assert its_step == counts[part]
        counts[part] += 1
    assert counts == [250, 150, 100]
    expected = [mixture.pick(number)[1] for number in range(300, 303)]
    assert mixture.step(100) == expected
    assert mixture.pick(10**12)[1] > 10**11  # no replay


def test_an_epoch_is_over_when_every_part_was_seen() -> None:
    mixture = Mixture([Counting(), Counting()], [3, 1])  # type: ignore[list-item]
    last = [mixture.pick(n) for n in range(mixture.steps_per_epoch)]
    for part in (0, 1):
        assert {step for p, step in last if p == part} >= set(range(7))


def test_steps_join_what_the_parts_give(make: Any) -> None:
    mixture = make.mixture()
    got = mixture.step(5)
    want = [b for n in (10, 11) for part, step in [mixture.pick(n)] for b in mixture.parts[part].step(step)]
    assert len(got) == len(want)
    assert all(torch.equal(a["ids"], b["ids"]) for a, b in zip(got, want))
    assert mixture.describe()["shares"] == [0.5, 0.25, 0.25]


def test_mistakes(make: Any) -> None:
    part = {**make.values(), "corpus": "x", "tokenizer": "y", "kind": "pairs"}
    for weights, message in (([1], "2 parts but 1 weights"), ([1, 0], "greater than 0")):
        with pytest.raises(ConfigError, match=message):
            parse(MixtureConfig, {"kind": "mixture", "parts": [part, part], "weights": weights}, "here")
