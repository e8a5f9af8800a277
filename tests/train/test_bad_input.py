"""What cannot be trained, or not as asked, is said in one line before the first step."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nalanda.base.errors import RunError, UserError
from nalanda.config import ConfigError, parse
from nalanda.data.batch import Batch
from nalanda.stages.train import TrainStage
from nalanda.train import checkpoint, precision
from nalanda.train.config import LoopConfig
from nalanda.train.device import find_device
from nalanda.train.hooks import Hook

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]


def config(**values: Any) -> LoopConfig:
    defaults = {"budget": {"steps": 4}, "log_every": 1, "precision": "fp32"}
    return parse(LoopConfig, {**defaults, **values}, "test")


class Never(Hook):
    """No step may be made."""

    def after_step(self, moment: Any) -> None:
        raise AssertionError("a step was made")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"optimizer": {"kind": "adamw", "lr": 0}}, r"optimizer.*lr.*greater than 0"),
        ({"optimizer": {"kind": "adamw", "lr": -1e-3}}, r"optimizer.*lr.*greater than 0"),
        ({"optimizer": {"kind": "muon", "other_lr": 0}}, r"optimizer.*other_lr.*greater than 0"),
        ({"schedule": {"warmup": 9}}, "schedule.warmup: 9 steps leave nothing of a budget of 4 steps"),
        ({"schedule": {"warmup": 5}, "budget": {"minutes": 1}}, "5 steps need a budget in steps"),
        ({"device": "gpu"}, "device"),
        ({"device": "cuda:"}, "device"),
        ({"precision": "fp16"}, "precision"),
        ({"health": {"nonfinite": "ignore"}}, "health.nonfinite"),
        ({"health": {"spike": {"policy": "rewind"}}, "checkpoint": {"every": 5}}, "set checkpoint.keep=5"),
        ({"parallel": {"mode": "deterministic", "data": 3}}, "power of two, not 3"),
    ],
)
def test_a_config_that_cannot_be(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        config(**values)
    assert len(str(caught.value).splitlines()) <= 2, "the file's name, and one line for the mistake"


def test_a_warmup_of_batches_longer_than_training() -> None:
    data = {"kind": "causal", "corpus": "c", "tokenizer": "t", "warmup": [{"steps": 8, "batch": 2}]}
    values = {"data": data, "model": {"kind": "decoder"}, "budget": {"steps": 8}}
    with pytest.raises(ConfigError, match=r"data.warmup: its 8 steps leave nothing of a budget of 8 steps"):
        parse(TrainStage, values, "test")


@pytest.mark.parametrize(
    ("parallel", "line"),
    [({"tensor": 3}, "tensor 3 .* is 3 processes and this run has 1"), ({"data": 2}, "is 2 processes")],
)
def test_parallel_sizes_that_are_not_the_run(folder: Any, parallel: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        folder().fit(config(parallel=parallel), hooks=[Never()])


def test_no_such_device(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, line in (("cuda", "no CUDA device was found"), ("mps", "this machine or this torch has none")):
        with pytest.raises(UserError, match=rf"^device: {name}: {line}.*; set device=auto or device=cpu$"):
            folder().fit(config(device=name), device=None, hooks=[Never()])
    assert find_device("auto").type == find_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"cuda:2: this machine has 2 CUDA devices, .*; set device=cuda:1$"):
        find_device("cuda:2")
    assert find_device("cuda:1") == torch.device("cuda:1")
    assert find_device("auto").type == "cuda"


def test_a_device_is_no_part_of_what_a_run_is() -> None:
    assert config(device="cpu").identity() == config().identity()
    assert "device" not in config().to_dict()


def test_bf16_that_the_cpu_lacks_is_noted_with_what_it_costs(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    run = folder()
    run.fit(config(precision="bf16"))
    assert run.rows[0]["step"] == 0
    assert run.rows[0]["note"] == (
        "precision: bf16: this CPU has no bf16 instructions and emulates them, about ten times slower than fp32; "
        "set precision=auto or precision=fp32"
    )
    assert precision.slow_because("auto", torch.device("cpu")) == ""
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    assert precision.slow_because("bf16", torch.device("cpu")) == ""


def test_a_batch_larger_than_the_data_is_noted(folder: Any, toy_source: Any) -> None:
    class All(toy_source):
        steps_per_epoch = 1

        def step(self, step: int) -> list[Batch]:
            return list(super().step(0))

    run = folder()
    run.fit(config(), source=All())
    assert run.rows[0] == {
        "step": 0,
        "note": "data: one batch holds all rows: every step is a whole epoch; "
        "lower data.batch_tokens for more steps",
    }
    again = folder("two")
    again.fit(config())
    assert not any("note" in row for row in again.rows)


def test_a_checkpoint_of_a_newer_version(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder()
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        run.fit(config(checkpoint={"every": 2}))
    before = sorted(run.path.rglob("*"))
    with pytest.raises(RunError, match=r"step-000004: written by a newer version of Nalanda .*; upgrade, or"):
        run.fit(config(checkpoint={"every": 2}), hooks=[Never()])
    assert sorted(run.path.rglob("*")) == before


# -- a clock that jumps --------------------------------------------------------------------------------------------


def test_a_budget_in_minutes_does_not_see_the_clock_jump(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock goes a day forward and back at every look; training takes its 0.3 seconds."""
    true, looks = time.time, iter(range(10**9))

    def jumping() -> float:
        return true() + (86_400 if next(looks) % 2 else -86_400)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumping() * 1e9))
    run = folder()
    began = time.monotonic()
    result = run.fit(config(budget={"minutes": 0.005}, checkpoint={"every": 1000, "minutes": 5}))
    assert 0.3 <= result["training_seconds"] <= time.monotonic() - began
    assert result["steps"] >= 2
    progress = [row["progress"] for row in run.rows if "progress" in row]
    assert progress == sorted(progress)
    assert not list(run.path.glob("checkpoints/step-*"))[1:], "no checkpoint was overdue"


def test_nothing_that_trains_reads_the_wall_clock() -> None:
    """It is for file names and dates; durations are of clocks that never go back."""
    wall: Callable[[str], Any] = re.compile(
        r"^(time\.(time|time_ns|localtime)|datetime\.(now|today|utcnow))$"
    ).match
    for part in ("train", "data", "objectives", "nn"):
        for path in (ROOT / "nalanda" / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute):
                    assert not wall(ast.unparse(node)), f"{path}:{node.lineno} reads the wall clock"
