"""The arithmetic behind benchmarks/quality.py and ablations.py, and that their recipes are recipes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nalanda.config import load_yaml, override, parse

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import ablations
    import quality
    import quality_common

    yield type("Modules", (), {"ablations": ablations, "quality": quality, "common": quality_common})
    for name in ("ablations", "quality", "quality_common", "quality_data", "quality_ours"):
        sys.modules.pop(name, None)


def test_when_a_curve_reaches_a_goal(modules: Any) -> None:
    reached = modules.quality.reached
    falling = [[10.0, 3.0], [20.0, 2.0], [30.0, 1.0]]
    assert reached(falling, 1.5, False) == 25.0
    assert reached(falling, 3.5, False) == 10.0
    assert reached(falling, 0.5, False) is None
    assert reached([[10.0, 1.0], [20.0, 5.0]], 2.0, True) == 12.5


def test_schedules_by_hand(modules: Any) -> None:
    common = modules.common
    assert common.cosine(0.01, 0.02, 0.1) == 0.5
    assert common.cosine(0.51, 0.02, 0.1) == pytest.approx(0.55)
    assert common.cosine(1.0, 0.02, 0.1) == pytest.approx(0.1)
    assert common.linear(0.55, 0.1) == pytest.approx(0.5)
    assert common.inverse_sqrt(0.4, 0.1) == pytest.approx(0.5)


def test_bits_per_byte_of_a_model_that_knows_nothing(modules: Any, tmp_path: Path) -> None:
    shape = (5, 4)
    ones = np.ones(shape, dtype=np.int32)
    ones[-1, 2:] = 0
    names = ("ids", "targets", "segments", "positions")
    np.savez(
        tmp_path / "held.npz", weight=ones, bytes=36, **{name: np.zeros(shape, np.int32) for name in names}
    )
    held = modules.common.HeldOut(tmp_path / "held.npz")
    found = held.nats(lambda part: torch.full(part["ids"].shape, math.log(16)), rows=2)
    assert found == (pytest.approx(18 * math.log(16)), 18.0)  # padding and rows that fill up do not count
    assert held.bits_per_byte(lambda part: torch.full(part["ids"].shape, math.log(16))) == pytest.approx(2.0)


def test_a_curve_is_done_when_it_has_its_name(modules: Any, tmp_path: Path) -> None:
    curve = modules.common.Curve(tmp_path / "one.json", every=5, seed=3)
    assert curve.due(5.0)
    curve.add(6.0, 1.5, steps=2)
    assert not curve.due(10.9)
    assert not (tmp_path / "one.json").exists()
    curve.finish(tokens=7)
    kept = json.loads((tmp_path / "one.json").read_text())
    assert kept == {"seed": 3, "steps": 2, "tokens": 7, "curve": [[6.0, 1.5]]}


@pytest.mark.parametrize("job", ["causal", "masked", "translation"])
def test_recipes_are_recipes(job: str) -> None:
    from nalanda.stages.train import TrainStage

    path = FOLDER / "recipes" / f"{job}.yaml"
    parse(TrainStage, load_yaml(path), origin=str(path))


def test_ablations_change_the_recipe(modules: Any) -> None:
    from nalanda.stages.train import TrainStage

    values = load_yaml(FOLDER / "recipes" / "causal.yaml")
    base = parse(TrainStage, values, origin="causal.yaml")
    made = {}
    for name, row in modules.ablations.ROWS.items():
        changed = modules.ablations.changes(base, row)
        made[name] = parse(TrainStage, override(values, changed), origin=name)
    assert made["base"] == base
    assert made["rate x 2"].optimizer.lr == 2 * base.optimizer.lr
    assert made["half the batch and twice the steps"].data.batch_tokens == base.data.batch_tokens // 2
    assert sum(config != base for config in made.values()) > len(made) // 2
