"""The ladder of small batches and short rows: nothing lost, nothing repeated, a pure function of the step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from nalanda.config import ConfigError, parse
from nalanda.data.packing import CausalConfig
from nalanda.data.warmup import Place, Rung, place

LADDER = ({"steps": 4, "batch": 4, "length": 2}, {"steps": 2, "batch": 2})


def test_places_by_hand() -> None:
    rungs = [Rung(**values) for values in LADDER]
    assert [place(rungs, step) for step in range(9)] == [
        *(Place(0, part, 4, 2) for part in range(4)),
        *(Place(1, part, 2, 1) for part in range(2)),
        Place(2),
        Place(3),
        Place(4),
    ]
    assert place((), 7) == Place(7)


def test_a_part_is_never_empty() -> None:
    rows = np.array([5, 6])
    assert [Place(0, part, 4).of(rows).tolist() for part in range(4)] == [[5], [6], [5], [6]]


def test_a_ladder_takes_what_whole_steps_take(make: Any) -> None:
    plain, climbing = make.causal(), make.causal(warmup=LADDER)
    assert climbing.fingerprint != plain.fingerprint
    assert "warmup" not in plain.config.to_dict()

    def predictions(source: Any, steps: range) -> Counter[tuple[int, int]]:
        found: Counter[tuple[int, int]] = Counter()
        for batch in (b for step in steps for b in source.step(step)):
            real = batch["target_weight"] > 0
            found.update(zip(batch["ids"][real].tolist(), batch["targets"][real].tolist()))
        return found

    for whole, steps in ((range(1), range(4)), (range(1, 2), range(4, 6)), (range(2, 5), range(6, 9))):
        assert predictions(climbing, steps) == predictions(plain, whole)


def test_cut_rows_are_segments_of_their_own(make: Any) -> None:
    plain, climbing = make.causal(), make.causal(warmup=LADDER)
    rows, width = plain.step(0)[0]["ids"].shape
    for step in range(4):
        (batch,) = climbing.step(step)
        assert batch["ids"].shape == (rows // 4 * 2, width // 2)
        for row in range(len(batch["ids"])):
            segments, positions = batch["segments"][row].numpy(), batch["positions"][row].numpy()
            real = segments > 0
            assert segments[real].tolist() == sorted(segments[real])
            for number in set(segments[real]):
                assert positions[segments == number].tolist() == list(range(int((segments == number).sum())))
            assert not real.any() or segments[0] == 1
            assert not positions[~real].any()
        again = climbing.step(step)[0]
        assert all((again[key] == value).all() for key, value in batch.items())
    whole = {int(i) for b in plain.step(0) for i in b["sample_ids"]}
    first_pieces = {int(i) for step in range(4) for i in climbing.step(step)[0]["sample_ids"][::2]}
    assert first_pieces == whole


def test_rows_of_different_lengths_take_parts_of_a_batch(make: Any) -> None:
    ladder = ({"steps": 6, "batch": 3},)
    plain, climbing = make.masked(), make.masked(warmup=ladder)

    def samples(source: Any, steps: range) -> list[int]:
        ids = [b["sample_ids"].tolist() for step in steps for b in source.step(step)]
        return sorted(i for row in ids for i in row if i >= 0)

    assert samples(climbing, range(3)) == samples(plain, range(1))
    assert samples(climbing, range(3, 6)) == samples(plain, range(1, 2))
    assert samples(climbing, range(6, 7)) == samples(plain, range(2, 3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup": [{"steps": 5, "batch": 2}]}, "must be a multiple of batch"),
        ({"warmup": [{"steps": 6, "batch": 3}]}, "4 rows of 64 tokens do not divide by batch 3"),
        ({"warmup": [{"steps": 6, "length": 5}]}, "do not divide"),
    ],
)
def test_what_does_not_divide(values: dict[str, Any], message: str) -> None:
    base = {"corpus": "c", "tokenizer": "t", "kind": "causal", "max_length": 64, "batch_tokens": 256}
    with pytest.raises(ConfigError, match=message):
        parse(CausalConfig, {**base, **values}, "x.yaml")


def test_only_packed_rows_can_be_cut() -> None:
    from nalanda.data.masking import MaskedConfig

    with pytest.raises(ConfigError, match="only rows of kind 'causal' can be cut"):
        parse(
            MaskedConfig,
            {"corpus": "c", "tokenizer": "t", "kind": "masked", "warmup": [{"steps": 2, "length": 2}]},
            "x.yaml",
        )
