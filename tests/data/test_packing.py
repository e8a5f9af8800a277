"""Packing loses nothing, repeats nothing and keeps documents apart."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalanda.base.errors import DataError
from nalanda.config import ConfigError, parse
from nalanda.data.packing import CausalConfig, Packed, best_fit, concatenated

PACKINGS = ["concatenate", "best_fit"]


def segments_of(batch: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """(ids, targets, positions) of every segment of every row."""
    found = []
    for row in range(len(batch["ids"])):
        segments = batch["segments"][row].numpy()
        for number in range(1, segments.max(initial=0) + 1):
            inside = segments == number
            assert np.diff(np.flatnonzero(inside)).max(initial=1) == 1
            found.append(
                tuple(batch[key][row].numpy()[inside].tolist() for key in ("ids", "targets", "positions"))
            )
    return found


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_epoch_holds_every_place_once_and_no_segment_mixes_documents(make: Any, packing: str) -> None:
    source = make.causal(packing=packing)
    bos, eos = source.tokenizer.bos, source.tokenizer.eos
    documents = [source.store[i].tolist() for i in range(len(source.store)) if len(source.store[i])]
    expected = Counter((a, b) for d in documents for a, b in zip([bos, *d], [*d, eos]))
    texts = {(bos, *d, eos) for d in documents}
    contained = {text[i : i + 3] for text in texts for i in range(len(text) - 2)}
    for epoch in range(2):
        steps = range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)
        batches = [batch for step in steps for batch in source.step(step)]
        assert sum(float(b["target_weight"].sum()) for b in batches) == sum(len(d) + 1 for d in documents)
        seen: Counter[tuple[int, int]] = Counter()
        for batch in batches:
            for ids, targets, positions in segments_of(batch):
                seen.update(zip(ids, targets))
                assert positions == list(range(len(ids)))
                line = [*ids, targets[-1]]
                assert line[1:] == targets  # what is predicted is what is read next
                assert all(tuple(line[i : i + 3]) in contained for i in range(len(line) - 2))
        assert seen == expected


def test_only_the_last_row_has_padding(make: Any) -> None:
    source = make.causal()
    batches = list(source.epoch())
    real = np.concatenate([(b["segments"] != 0).sum(1).numpy() for b in batches])
    assert (real == 64).sum() == len(real) - 1
    assert source.describe()["padding"] < 1 / len(real)


def test_best_fit_cuts_only_what_is_longer_than_a_row(make: Any) -> None:
    source = make.causal(packing="best_fit", max_length=128)
    whole = 0
    for batch in source.epoch():
        for ids, targets, _ in segments_of(batch):
            whole += ids[0] == source.tokenizer.bos and targets[-1] == source.tokenizer.eos
    lengths = source.store.lengths
    assert whole == ((lengths > 0) & (lengths + 1 <= 128)).sum()
    assert source.describe()["padding"] < 0.03


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(4, 20))
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("pack", [concatenated, best_fit])
def test_parts_cover_documents_exactly(pack: Any, places: list[int], context: int) -> None:
    document, begins, lengths, bounds = pack(np.array(places), context)
    covered = sorted(
        (d, place) for d, b, n in zip(document.tolist(), begins, lengths) for place in range(b, b + n)
    )
    assert covered == [(d, place) for d, n in enumerate(places) for place in range(n)]
    used = np.add.reduceat(lengths, bounds[:-1])
    assert used.max() <= context
    if pack is concatenated:
        assert (used[:-1] == context).all()


def test_best_fit_takes_the_fullest_row_that_fits() -> None:
    document, _, _, bounds = best_fit(np.array([6, 5, 4, 3, 2]), 10)
    rows = [sorted(document[a:b].tolist()) for a, b in pairwise(bounds)]
    assert rows == [[0, 2], [1, 3, 4]]


def test_mistakes(make: Any) -> None:
    with pytest.raises(ConfigError, match="row of max_length 600 does not fit a micro-batch of 512"):
        parse(CausalConfig, make.values(max_length=600), "here")
    config, empty = CausalConfig(**make.values()), make.store([[], []])
    with pytest.raises(DataError, match="holds no text"):
        Packed(config, empty, make.tokenizer, 1)
