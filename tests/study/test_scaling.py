"""Chinchilla's law against the numbers of the paper and of those who used it."""

from __future__ import annotations

import pytest

from nalanda.study.scaling import HOFFMANN, REPLICATED, Fit, tradeoff

TABLE_3 = [
    (400e6, 1.92e19, 8.0e9),
    (1e9, 1.21e20, 20.2e9),
    (10e9, 1.23e22, 205.1e9),
    (67e9, 5.76e23, 1.5e12),
    (175e9, 3.85e24, 3.7e12),
    (280e9, 9.90e24, 5.9e12),
]
"""Hoffmann et al. 2022, table 3: parameters, FLOPs, tokens of compute-optimal models."""


@pytest.mark.parametrize(("parameters", "flops", "tokens"), TABLE_3)
def test_best_tokens_are_those_of_the_papers_table(parameters: float, flops: float, tokens: float) -> None:
    assert REPLICATED.optimal_tokens(parameters) == pytest.approx(tokens, rel=0.2)
    assert REPLICATED.optimum(flops)[0] == pytest.approx(parameters, rel=0.2)


def test_losses_of_chinchilla_and_gopher_are_the_known_ones() -> None:
    # Both from the published constants, as quoted widely: 1.936 for 70 B on 1.4 T tokens, 1.993 for 280 B on 300 G.
    assert HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(1.936, abs=0.002)
    assert HOFFMANN.loss(280e9, 300e9) == pytest.approx(1.993, abs=0.002)


@pytest.mark.parametrize("law", [HOFFMANN, REPLICATED])
def test_the_optimum_is_the_least_loss_of_its_compute(law: Fit) -> None:
    parameters, tokens = law.optimum(1e21)
    assert 6 * parameters * tokens == pytest.approx(1e21)
    best = law.loss(parameters, tokens)
    for factor in (0.8, 0.95, 1.05, 1.25):
        assert law.loss(parameters * factor, tokens / factor) > best
    assert law.optimal_tokens(parameters) == pytest.approx(tokens)


def test_tokens_for_a_loss_give_that_loss_and_some_losses_are_out_of_reach() -> None:
    needed = REPLICATED.tokens_for(1e9, 2.5)
    assert needed is not None
    assert REPLICATED.loss(1e9, needed) == pytest.approx(2.5)
    assert REPLICATED.tokens_for(1e8, 1.9) is None


def test_an_over_trained_model_could_have_been_smaller_in_loss_at_equal_compute() -> None:
    choices = {round(c.parameters / 1e9, 2): c for c in tradeoff(REPLICATED, 1e9, 1e12)}
    plan, double = choices[1.0], choices[2.0]
    assert plan.equal_compute == pytest.approx(1.0)
    assert double.tokens == pytest.approx(5e11)
    assert double.loss < plan.loss
    assert double.equal_compute is not None
    assert double.equal_compute < 1
    assert choices[0.5].loss > plan.loss
