"""Made-up batches have the shapes of real ones and keep the contract of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nalanda.base.errors import DataError
from nalanda.data.batch import check, trained_tokens
from nalanda.data.denoise import DenoiseConfig
from nalanda.data.masking import MaskedConfig
from nalanda.data.mixture import MixtureConfig
from nalanda.data.next_sentence import NextSentenceConfig
from nalanda.data.packing import CausalConfig
from nalanda.data.pairs import PairsConfig
from nalanda.data.synthetic import synthetic

COMMON: dict[str, Any] = {
    "corpus": Path("none"),
    "batch_tokens": 1024,
    "micro_batch_tokens": 512,
    "max_length": 64,
}
SINGLE = np.stack([np.zeros(50, dtype=np.int64), np.arange(8, 58)], axis=1)
DOUBLE = np.stack([np.arange(4, 54), np.arange(8, 58)], axis=1)


@pytest.mark.parametrize(
    ("config", "lengths"),
    [
        (MaskedConfig(**COMMON), SINGLE),
        (NextSentenceConfig(**COMMON), SINGLE),
        (PairsConfig(**COMMON), DOUBLE),
        (DenoiseConfig(**COMMON), DOUBLE),
        (CausalConfig(**COMMON), SINGLE),
        (CausalConfig(packing="best_fit", **COMMON), SINGLE),
    ],
)
def test_steps_keep_the_contract_and_the_budget(config: Any, lengths: np.ndarray) -> None:
    source = synthetic(config, 100, {"data": lengths})
    assert source.steps_per_epoch >= 8
    places = 0
    for step in range(8):
        of_step = 0
        for batch in source.step(step):
            check(batch)
            micro = sum(batch[key].numel() for key in ("ids", "source_ids") if key in batch)
            assert 0 < micro <= 512
            assert trained_tokens(batch) > 0
            of_step += micro
        assert of_step <= 1024
        places += of_step
    assert places > 0.75 * 8 * 1024
    again = synthetic(config, 100, {"data": lengths})
    assert (source.step(2)[0]["ids"] == again.step(2)[0]["ids"]).all()


def test_packed_rows_hold_documents_of_the_lengths_given() -> None:
    source = synthetic(CausalConfig(**COMMON), 100, {"data": np.array([[0, 16]])})
    batch = source.step(0)[0]
    assert batch["segments"].max() == 4
    assert batch["positions"].max() == 15


def test_a_mixture_has_lengths_for_each_part_and_nothing_is_refused() -> None:
    config = MixtureConfig(parts=(PairsConfig(**COMMON), DenoiseConfig(**COMMON)), weights=(1, 1))
    source = synthetic(config, 100, {"data.parts.0": DOUBLE, "data.parts.1": DOUBLE})
    check(source.step(0)[0])
    with pytest.raises(DataError, match="no tokens"):
        synthetic(CausalConfig(**COMMON), 100, {"data": np.array([[0, 0]])})
