"""Fast mode: every way of sharing the work learns what one process learns, within the rounding of sums."""

from __future__ import annotations

from typing import Any

import pytest
from processes import together
from small_runs import Trained, Work, largest_difference, trained


def check(work: Work, ranks: int, parallel: dict[str, Any], losses: float, weights: float) -> Trained:
    one = trained(work)
    runs = together(ranks, trained, Work(**{**vars(work), "loop": {**work.loop, "parallel": parallel}}))
    assert not isinstance(runs[0], Exception), runs
    found = largest_difference(one, runs[0])
    assert found[0] <= losses
    assert found[1] <= weights
    return runs[0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("shard", [False, True])
def test_data_parallel(shard: bool, optimizer: str) -> None:
    check(
        Work({"optimizer": {"kind": optimizer}, "ema": {"decay": 0.9}, "clip": 0.1}, evaluate=True),
        2,
        {"shard": shard},
        1e-6,
        1e-6,
    )
