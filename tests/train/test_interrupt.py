"""Signals while training: the step is saved, what has nothing to save ends at once, long work between steps waits."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import pytest
import torch

from nalanda.base.errors import Interrupted, Terminated
from nalanda.config import parse
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.config import LoopConfig
from nalanda.train.hooks import Evaluation, EvaluationConfig, Hook, Moment
from nalanda.train.interrupt import Interruption, stopped
from nalanda.train.loop import Trainer


def loop(**more: Any) -> LoopConfig:
    values = {"budget": {"steps": 6}, "checkpoint": {"every": 4}, "log_every": 1, **more}
    return parse(LoopConfig, values, "test")


def test_each_signal_has_its_exit_code() -> None:
    assert stopped(signal.SIGTERM, "here").exit_code == 143
    assert stopped(signal.SIGINT, "here").exit_code == 130
    assert not isinstance(stopped(signal.SIGINT, "here"), Terminated)


def test_work_with_nothing_to_save_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        began = time.monotonic()
        with (
            pytest.raises(Terminated, match="stopped before it began"),
            interruption.at_once("before it began"),
        ):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(20)
            except Exception:  # as a compiler catches its own errors
                pytest.fail("the work took the signal for an error of its own")
        assert time.monotonic() - began < 5
        with pytest.raises(Terminated), interruption.at_once("again"):
            pytest.fail("was asked to stop before")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_while_code_is_compiled_ends_the_run(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run = folder("whole"), folder("run")
    whole.fit(loop())

    def compiling(self: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    monkeypatch.setattr(Trainer, "_warm_up", compiling)
    monkeypatch.setattr("nalanda.train.loop.compiled", lambda *a: contextlib.nullcontext())
    monkeypatch.setattr(
        "nalanda.train.loop.decide", lambda *a: type("D", (), {"compiled": True, "note": ""})()
    )
    with pytest.raises(Terminated, match="stopped before the first step"):
        run.fit(loop())
    monkeypatch.undo()
    run.fit(loop())
    assert run.losses() == whole.losses()


class Signal(Hook):
    """Sends a signal after a step, before the hooks that follow it."""

    name = "signal"

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, moment: Moment) -> None:
        if moment.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class Count(Hook):
    """Counts in its state how often it ran, like a hook that moves something on at each step."""

    name = "count"

    def __init__(self) -> None:
        self.ran = 0

    def after_step(self, moment: Moment) -> None:
        self.ran += 1
        moment.log({"step": moment.step, "count": self.ran, "tallied": sorted(moment.tallies)})

    def state(self) -> dict[str, Any]:
        return {"ran": self.ran}

    def load(self, state: dict[str, Any], tensors: dict[str, torch.Tensor], step: int) -> None:
        self.ran = state["ran"]


@pytest.mark.parametrize("step", [3, 4, 6])
@pytest.mark.parametrize("first", [True, False])
def test_hooks_after_a_signal_run_when_the_run_goes_on(
    folder: Any, toy_source: Any, step: int, first: bool
) -> None:
    def hooks(at: int) -> list[Hook]:
        dev = Evaluation(EvaluationConfig(every=2, patience=1, monitor="nll"), toy_source(5), TokensConfig())
        return [Signal(at), Count(), dev] if first else [Count(), Signal(at), dev]

    whole, run = folder("whole"), folder("run")
    result = whole.fit(loop(), hooks=hooks(99))
    if result["steps"] < step:
        pytest.skip("training ended before")
    with pytest.raises(Interrupted, match=f"stopped after step {step}, which is saved"):
        run.fit(loop(), hooks=hooks(step))
    assert not any(row["step"] == step and "dev_loss" in row for row in run.rows)
    again = run.fit(loop(), hooks=hooks(99))
    assert {k: again[k] for k in ("steps", "stopped", "best_dev")} == {
        k: result[k] for k in ("steps", "stopped", "best_dev")
    }

    def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_second")} for r in rows]

    assert plain(run.rows) == plain(whole.rows)
    assert all(torch.equal(v, run.weights()[k]) for k, v in whole.weights().items())


def test_an_evaluation_under_way_is_put_off(folder: Any, toy_source: Any) -> None:
    class Endless(toy_source):  # type: ignore[misc]
        def epoch(self) -> Any:
            for index, batch in enumerate(iter(lambda: self.step(0)[0], None)):
                if index == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                assert index < 50
                yield batch

    run = folder("run")
    dev = Evaluation(EvaluationConfig(every=2), Endless(5), TokensConfig())
    with pytest.raises(Terminated, match="after step 2"):
        run.fit(loop(), hooks=[dev])
    assert run.model.training
