"""Measuring: a process's job gives what is asked for; the whole follows from two copies where the parts are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nalanda.base.io import write_text
from nalanda.config import dump_yaml
from nalanda.data.synthetic import synthetic
from nalanda.models.reading import build_empty
from nalanda.stages import calibrate
from nalanda.stages.calibrate_steps import WARM, _LargestFirst, measure, resized
from nalanda.stages.plan_work import Work, flops_per_place, shape_of, works
from nalanda.stages.recipe import load
from nalanda.train.plan_memory import Rows

RECIPE: dict[str, Any] = {
    "verb": "train",
    "data": {
        "kind": "causal",
        "corpus": "nowhere",
        "tokenizer": "none",
        "max_length": 32,
        "batch_tokens": 256,
    },
    "model": {"kind": "decoder", "layers": 6, "hidden": 32, "heads": 2},
    "precision": "fp32",
    "budget": {"steps": 100},
    "threads": 1,
}


@pytest.fixture
def work(tmp_path: Path) -> Work:
    write_text(tmp_path / "mine.yaml", dump_yaml(RECIPE))
    return works(load(tmp_path / "mine.yaml", [], tmp_path / "runs"))[0]


@pytest.mark.parametrize("turns", [False, True])
def test_a_job_gives_the_seconds_of_each_step(work: Work, tmp_path: Path, turns: bool) -> None:
    job = {
        "spec": calibrate.shallow(work.model.spec, 1).to_dict(),
        "heads": {name: head.to_dict() for name, head in work.model.head_specs.items()},
        "config": work.config.to_dict(),
        "lengths": {key: lengths.tolist() for key, lengths in work.lengths.items()},
        "seconds": 0.0,
        "turns": turns,
        "real": False,
    }
    result = measure(job, tmp_path)
    assert len(result["seconds"]) == len(result["cpu"]) == WARM + (6 if turns else 2)
    assert min(result["seconds"]) > 0
    assert result["peak"] > result["base"] > 0
    assert result["precision"] == "fp32"


def test_the_whole_follows_from_two_copies(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is made up: so much for a place by its FLOPs, for a micro-batch and for an update by the weights."""
    config = resized(work.config, 0.25)
    rows = shape_of(config, work.model.spec.vocabulary, work.lengths).micro
    assert rows.places == work.shape.micro.places / 4

    def told(model: Any, each: Rows, micro: float) -> tuple[float, float]:
        numbers = model.parameter_count()
        per_micro = flops_per_place(model, each) * each.places * 1e-9 + numbers * 2e-9
        return micro * per_micro + numbers * 5e-9, 3e8 + 1.5 * calibrate._of_turns(
            work, model, rows, "fp32", "cpu"
        )

    def child(_: Work, spec: Any, config: Any, seconds: float, turns: bool) -> dict[str, Any]:
        model = build_empty(spec, work.model.head_specs)
        large = Rows(2 * rows.count, rows.length)
        one, two, twice = told(model, rows, 1)[0], told(model, rows, 2)[0], told(model, large, 1)[0]
        steps = [9.0] * WARM + [one, two, twice] * 3
        peak = told(model, rows, 1)[1]
        half = {"seconds": [2 * s for s in steps], "cpu": steps, "threads": 1, "peak": peak, "base": 3e8}
        return {**half, "after": 0.1, "device": "cpu", "precision": "fp32"}

    monkeypatch.setattr(calibrate, "_child", child)
    specs = [calibrate.shallow(work.model.spec, layers) for layers in (1, 3)]
    results = [child(work, spec, config, 1.0, True) for spec in specs]
    found = calibrate._extrapolated(work, specs, results, rows, {"fp32": 1e9})
    wanted, _ = told(work.model, work.shape.micro, 1)
    assert found.cpu == pytest.approx(wanted, rel=1e-6)
    assert found.step == pytest.approx(2 * wanted, rel=1e-6)
    assert found.share == pytest.approx(0.5)
    whole = calibrate.arithmetic(work, work.model, work.shape.micro, 1, "fp32", "cpu").peak
    assert found.peak == pytest.approx(3e8 + 1.5 * whole, rel=1e-6)


def test_a_model_that_is_quick_is_measured_itself(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def child(_: Work, spec: Any, config: Any, seconds: float, turns: bool) -> dict[str, Any]:
        asked.append(turns)
        steps = [1.0, 0.3, 0.2] + [0.2] * 6
        half = {"seconds": steps, "cpu": steps, "threads": 1, "peak": 5e8, "base": 3e8}
        return {**half, "after": 0.1, "device": "cpu", "precision": "fp32"}

    monkeypatch.setattr(calibrate, "_child", child)
    monkeypatch.setattr(calibrate, "rates", lambda work: {"fp32": 1e12})
    found = calibrate.calibrate(work, 10.0, 8e9)
    assert asked == [False]
    assert found.step == pytest.approx(0.2)
    assert found.first == pytest.approx(0.9)
    monkeypatch.setattr(calibrate, "rates", lambda work: {"fp32": 1e7})
    calibrate.calibrate(work, 10.0, 8e9)
    assert asked == [False, True, True]


def test_the_longest_rows_come_first(work: Work) -> None:
    lengths = {"data": np.array([[0, 4]] * 60 + [[0, 32]] * 8)}
    values = {**work.config.to_dict(), "data": {**RECIPE["data"], "kind": "masked"}}
    values["model"] = {**RECIPE["model"], "kind": "encoder"}
    source = synthetic(type(work.config).model_validate(values).data, 100, lengths)
    widths = [source.step(step)[0]["ids"].shape[1] for step in range(source.steps_per_epoch)]
    ordered = _LargestFirst(source)
    assert ordered.step(0)[0]["ids"].shape[1] == max(widths)
    assert min(widths) < max(widths)
    assert ordered.step(3)[0]["ids"].shape == source.step(2)[0]["ids"].shape
