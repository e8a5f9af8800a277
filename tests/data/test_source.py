"""The contract that every source keeps, and what the bucketed ones share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nalanda.base.errors import DataError
from nalanda.config import ConfigError, parse
from nalanda.data.batch import check
from nalanda.data.loader import Loader
from nalanda.data.pairs import PairsConfig
from nalanda.data.preview import check_source
from nalanda.data.source import Source

MakeSource = Callable[[int], Source]


def same(left: Any, right: Any) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(left, right)
    )


def test_batches_keep_the_contract(make_source: MakeSource) -> None:
    source = make_source(1)
    assert isinstance(source, Source)
    assert source.steps_per_epoch > 2
    for step in [0, 1, source.steps_per_epoch - 1, source.steps_per_epoch, 5 * source.steps_per_epoch + 1]:
        batches = source.step(step)
        assert batches
        for batch in batches:
            check(batch)
            assert int((batch["segments"] != 0).sum()) > 0
            assert bool((batch["ids"][batch["segments"] == 0] == 0).all())
            assert bool((batch["positions"][batch["segments"] == 0] == 0).all())
    for batch in source.epoch():
        check(batch)
    assert 0 < min(check_source(source).values()) <= 1


def test_a_step_is_a_pure_function_of_its_number(make_source: MakeSource) -> None:
    source, again = make_source(1), make_source(1)
    assert source.fingerprint == again.fingerprint
    last = 2 * source.steps_per_epoch
    forward = [source.step(step) for step in range(last)]
    for step in reversed(range(last)):
        assert same(again.step(step), forward[step])
    assert all(same([a], [b]) for a, b in zip(source.epoch(), again.epoch()))


def test_a_source_made_anew_goes_on_at_any_step(make_source: MakeSource) -> None:
    source = make_source(1)
    step = 3 * source.steps_per_epoch + 2
    assert same(make_source(1).step(step), source.step(step))


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(make_source: MakeSource, workers: int) -> None:
    source = make_source(1)
    stop = source.steps_per_epoch + 3
    alone = {step: source.step(step) for step in range(2, stop)}
    with Loader(make_source(1), start_step=2, workers=workers, stop_step=stop) as loader:
        loaded = list(loader)
    assert [step for step, _ in loaded] == list(range(2, stop))
    assert all(same(batches, alone[step]) for step, batches in loaded)


def test_another_seed_is_another_source(make_source: MakeSource) -> None:
    source, other = make_source(1), make_source(9)
    assert source.fingerprint != other.fingerprint
    assert not same(source.step(0), other.step(0))


def test_epochs_differ(make_source: MakeSource) -> None:
    source = make_source(1)
    assert not same(source.step(0), source.step(source.steps_per_epoch))


def rows_of(batches: list[Any]) -> list[int]:
    return [int(i) for batch in batches for i in batch["sample_ids"] if i >= 0]


@pytest.mark.parametrize("kind", ["pairs", "denoise", "masked", "next_sentence"])
def test_every_sample_exactly_once_an_epoch(make: Any, kind: str) -> None:
    source = getattr(make, kind)(batch_tokens=300)
    steps = source.steps_per_epoch
    whole = sorted(rows_of(list(source.epoch())))
    assert len(set(whole)) == len(whole) == source.describe()["rows"]
    for epoch in range(3):
        seen = [i for step in range(epoch * steps, (epoch + 1) * steps) for i in rows_of(source.step(step))]
        assert sorted(seen) == whole


@pytest.mark.parametrize("kind", ["pairs", "denoise", "masked", "next_sentence", "causal"])
def test_micro_batches_split_a_step_without_changing_it(make: Any, kind: str) -> None:
    whole, split = getattr(make, kind)(), getattr(make, kind)(micro_batch_tokens=140)
    assert split.fingerprint == whole.fingerprint
    for step in range(4):
        (one,) = whole.step(step)
        parts = split.step(step)
        assert len(parts) > 1
        assert rows_of(parts) == rows_of([one])
        for key in ("ids", "targets", "source_ids"):
            if key in one:
                kept = [row[row != 0].tolist() for part in parts for row in part[key]]
                assert kept == [row[row != 0].tolist() for row in one[key]]


def test_batches_stay_inside_the_budget_and_on_the_ladder(make: Any) -> None:
    source = make.pairs(count=600, batch_tokens=2000, length_multiple=8, row_multiple=4)
    costs, shapes = [], set()
    for step in range(source.steps_per_epoch):
        (batch,) = source.step(step)
        shapes.add((*batch["ids"].shape, batch["source_ids"].shape[1]))
        costs.append(batch["ids"].numel() + batch["source_ids"].numel())
    assert max(costs) <= 2000
    assert np.mean(costs) > 1500  # and the budget is used
    assert all(rows % 4 == 0 and width % 8 == 0 and source % 8 == 0 for rows, width, source in shapes)
    real = sum(int((b["segments"] != 0).sum() + (b["source_segments"] != 0).sum()) for b in source.epoch())
    assert (
        real / sum(costs) > 0.6
    )  # rows of a batch have nearly equal lengths: unsorted it would be below 0.5


def test_a_row_beyond_the_budget_is_refused_at_once(make: Any) -> None:
    with pytest.raises(DataError, match="raise micro_batch_tokens"):
        make.pairs(batch_tokens=40)


def test_config_mistakes(make: Any) -> None:
    with pytest.raises(ConfigError, match="micro_batch_tokens 600 is more than batch_tokens 512"):
        parse(PairsConfig, make.values(micro_batch_tokens=600), "here")
    with pytest.raises(ConfigError, match="max_lengt: unknown key; did you mean 'max_length'"):
        parse(PairsConfig, make.values(max_lengt=3), "here")
