"""Filters against straightforward per-row references, and random numbers that depend on (seed, step) alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nalanda.generate import sampling

NEVER = float("-inf")
rows = st.lists(
    st.lists(st.floats(-8, 8, width=32), min_size=7, max_size=7).filter(lambda r: len(set(r)) == 7),
    min_size=1,
    max_size=4,
)


def softmax(row: list[float]) -> list[float]:
    largest = max(row)
    weights = [math.exp(x - largest) for x in row]
    return [w / sum(weights) for w in weights]


def kept(filtered: Tensor) -> list[set[int]]:
    return [{i for i, x in enumerate(row) if x > NEVER} for row in filtered.tolist()]


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(0, 9))
def test_top_k_keeps_the_k_largest(logits: list[list[float]], k: int) -> None:
    expected = [set(sorted(range(7), key=lambda i: -row[i])[: k or 7]) for row in logits]
    assert kept(sampling.top_k(torch.tensor(logits), k)) == expected


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999, 1.0]))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: list[list[float]], p: float) -> None:
    for row, found in zip(logits, kept(sampling.top_p(torch.tensor(logits), p))):
        probability = softmax(row)
        order = sorted(range(7), key=lambda i: -row[i])
        expected, mass = set[int](), 0.0
        for i in order:
            if mass >= p - 1e-12 and p < 1:
                break
            expected.add(i)
            mass += probability[i]
        assert found == expected


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([0.0, 0.05, 0.3, 0.9]))
def test_min_p_keeps_what_is_near_the_likeliest(logits: list[list[float]], p: float) -> None:
    for row, found in zip(logits, kept(sampling.min_p(torch.tensor(logits), p))):
        probability = softmax(row)
        sure = {i for i in range(7) if probability[i] > p * max(probability) * (1 + 1e-4)}
        possible = {i for i in range(7) if probability[i] > p * max(probability) * (1 - 1e-4)}
        assert sure | {row.index(max(row))} <= found <= possible | ({*range(7)} if p == 0 else set())


def test_filters_leave_their_input_alone() -> None:
    logits = torch.randn(3, 7)
    history = torch.tensor([[1, 2, 1], [3, 3, 3], [0, 1, 0]])
    before = logits.clone()
    sampling.top_k(logits, 2)
    sampling.top_p(logits, 0.5)
    sampling.min_p(logits, 0.5)
    sampling.repetition_penalty(logits, history, 1.5)
    sampling.block_repeated_ngrams(logits, history, 2)
    assert torch.equal(logits, before)


def test_repetition_penalty_lowers_seen_tokens_of_either_sign_once() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    found = sampling.repetition_penalty(logits, torch.tensor([[0, 1, 0]]), 2.0)
    assert found.tolist() == [[1.0, -4.0, 1.0]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(0, 7)
)
def test_ngram_blocking_forbids_exactly_the_repeats(history: list[list[int]], n: int) -> None:
    found = sampling.block_repeated_ngrams(torch.zeros(len(history), 4), torch.tensor(history), n)
    for row, allowed in zip(history, kept(found)):
        grams = {tuple(row[i : i + n]) for i in range(len(row) - n + 1)} if n else set()
        repeats = {token for token in range(4) if n and tuple([*row, token][-n:]) in grams and n <= 6}
        assert allowed == {0, 1, 2, 3} - repeats


def test_uniforms_are_a_function_of_seed_and_step() -> None:
    seeds = np.array([5, 6, 2**63], dtype=np.uint64)
    together = sampling.uniforms(seeds, 3)
    alone = np.concatenate([sampling.uniforms(seeds[i : i + 1], 3) for i in range(3)])
    assert (together == alone).all()
    assert not (together == sampling.uniforms(seeds, 4)).any()
    many = sampling.uniforms(np.arange(20000, dtype=np.uint64), 0)
    assert 0 <= many.min() < many.max() < 1
    assert abs(many.mean() - 0.5) < 0.01  # standard error 0.002
    assert np.abs(np.histogram(many, 10, (0, 1))[0] / 20000 - 0.1).max() < 0.01


def test_choose_follows_the_distribution_and_never_takes_what_is_forbidden() -> None:
    logits = torch.tensor([[NEVER, 0.0, math.log(3.0), NEVER]]).expand(4000, 4)
    chosen = sampling.choose(logits, sampling.uniforms(np.arange(4000, dtype=np.uint64), 0))
    assert set(chosen.tolist()) == {1, 2}
    assert (chosen == 2).double().mean().item() == pytest.approx(0.75, abs=0.03)  # standard error 0.007
    ends = np.array([0.0, 1 - 2.0**-52])
    assert sampling.choose(logits[:2], ends).tolist() == [1, 2]
