"""Intervals and paired tests against sacrebleu, theory and cases worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from nalanda.metrics import bootstrap
from nalanda.metrics.bootstrap import interval, mean_score, paired, randomization, resample
from nalanda.metrics.overlap import ChrF


def _means(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones_like(values)], axis=1)


def _normal(rows: int, seed: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, rows)


def test_a_resample_draws_as_many_rows_and_sums_their_counts() -> None:
    counts = np.eye(7)
    drawn = resample(counts, 500, seed=3)
    assert drawn.shape == (500, 7)
    assert (drawn.sum(1) == 7).all()
    assert (drawn == np.round(drawn)).all()
    # each row is drawn once on average, with variance 1 - 1/7
    assert drawn.mean(0) == pytest.approx(np.ones(7), abs=0.15)
    assert drawn.var(0) == pytest.approx(np.full(7, 6 / 7), abs=0.2)


def test_draws_depend_on_the_seed_and_not_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = _means(_normal(50, 1))
    whole = resample(counts, 100, seed=5)
    assert (whole == resample(counts, 100, seed=5)).all()
    assert not (whole == resample(counts, 100, seed=6)).all()
    monkeypatch.setattr(bootstrap, "_BLOCK", 333)
    assert np.allclose(whole, resample(counts, 100, seed=5), rtol=0, atol=1e-12)


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    values = _normal(400, seed=2, mean=5)
    found = interval(_means(values), mean_score, resamples=4000)
    error = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    # the ends of 4,000 resamples vary by about 4 % of the half-width
    assert found.low == pytest.approx(values.mean() - error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.15 * error)
    narrow = interval(_means(values), mean_score, confidence=0.5)
    assert found.low < narrow.low < narrow.high < found.high
    assert found.to_dict()["confidence"] == 0.95


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(200):
        found = interval(_means(_normal(60, seed)), mean_score, confidence=0.8, resamples=300, seed=seed)
        inside += found.low <= 0 <= found.high
    assert 0.70 <= inside / 200 <= 0.88  # 0.8 less the percentile method's shortfall, with 200 trials' error


def test_rows_that_are_all_alike_have_no_spread() -> None:
    found = interval(np.tile([3.0, 1.0], (20, 1)), mean_score)
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)


def test_paired_tests_agree_with_sacrebleus() -> None:
    from sacrebleu.metrics import CHRF
    from sacrebleu.significance import PairedTest

    generator = np.random.default_rng(4)
    references = ["".join(generator.choice(list("abcdefgh "), size=30)) for _ in range(80)]

    def noisy(share: float) -> list[str]:
        return [
            "".join(
                c if generator.random() > share else generator.choice(list("abcdefgh ")) for c in reference
            )
            for reference in references
        ]

    first, second = noisy(0.38), noisy(0.4)
    metric = ChrF()
    counts = [metric.statistics(system, references) for system in (first, second)]
    ours = {
        "bs": paired(*counts, metric.score, resamples=4000),
        "ar": randomization(*counts, metric.score, trials=4000),
    }
    for kind, found in ours.items():
        systems = [("second", second), ("first", first)]
        test = PairedTest(systems, {"chrF": CHRF(word_order=2)}, [references], kind, n_samples=4000)
        theirs = test()[1]["chrF2++"][1]
        assert found.first == pytest.approx(theirs.score)
        assert found.p == pytest.approx(theirs.p_value, abs=0.03)  # two random tests of 4,000 trials
        assert 0.02 < found.p < 0.8


def test_randomization_equals_the_exact_permutation_test() -> None:
    first, second = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0]), np.array([2.0, 1.5, 3.0, 0.5, 4.0, 4.0])
    differences = first - second
    seen = abs(differences.mean())
    swaps = [
        abs((np.array(signs) * differences).mean()) >= seen - 1e-12
        for signs in itertools.product([1, -1], repeat=6)
    ]
    exact = sum(swaps) / 64
    found = randomization(_means(first), _means(second), mean_score, trials=40_000)
    assert found.p == pytest.approx(exact, abs=0.005)
    assert found.difference == pytest.approx(differences.mean())


@pytest.mark.parametrize("test", [paired, randomization])
def test_a_clear_difference_is_found_and_none_is_not(test: object) -> None:
    assert callable(test)
    base = _normal(200, 1)
    better = test(_means(base + 0.5 + 0.5 * _normal(200, 2)), _means(base), mean_score)
    assert better.p < 0.002
    assert 0.3 < better.low < better.difference < better.high < 0.7
    assert better.wins == 1.0
    same = test(_means(base), _means(base), mean_score)
    assert (same.p, same.difference, same.low, same.high, same.wins) == (1.0, 0.0, 0.0, 0.0, 0.5)
    back = test(_means(base), _means(base + 0.5 + 0.5 * _normal(200, 2)), mean_score)
    assert back.difference == pytest.approx(-better.difference)
    assert (back.low, back.high) == pytest.approx((-better.high, -better.low))
    assert back.p == pytest.approx(better.p)
    assert set(back.to_dict()) >= {"first", "second", "p"}


@pytest.mark.parametrize("test", [paired, randomization])
def test_without_a_difference_p_is_below_a_tenth_one_time_in_ten(test: object) -> None:
    assert callable(test)
    options = {"resamples": 200} | ({"trials": 200} if test is randomization else {})
    small = sum(
        test(_means(_normal(40, 2 * i)), _means(_normal(40, 2 * i + 1)), mean_score, **options).p < 0.1
        for i in range(300)
    )
    assert 0.05 < small / 300 < 0.16  # binomial error of 300 trials: 0.017


def test_pairing_makes_the_test_sharper() -> None:
    base = 10 * _normal(100, 1)
    close = paired(_means(base + 0.1), _means(base), mean_score)
    apart = paired(_means(base + 0.1), _means(np.roll(base, 1)), mean_score)
    assert close.high - close.low < 0.01 * (apart.high - apart.low)


def test_mistakes() -> None:
    counts = _means(_normal(5, 1))
    for call, message in (
        (lambda: interval(counts[:0], mean_score), "at least one row"),
        (lambda: interval(counts[:, 0], mean_score), "shape"),
        (lambda: interval(counts, mean_score, confidence=95), "confidence is 95"),
        (lambda: interval(counts, mean_score, resamples=0), "resamples is 0"),
        (lambda: paired(counts, counts[:4], mean_score), "not scored on the same rows"),
        (lambda: randomization(counts, counts, mean_score, trials=0), "trials is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
