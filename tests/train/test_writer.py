"""Checkpoints written beside the training keep the promises of those written in its way."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nalanda.base import machine
from nalanda.base.errors import RunError, UserError
from nalanda.config import parse
from nalanda.train.checkpoint import CheckpointConfig, Checkpoints, Snapshot
from nalanda.train.config import LoopConfig
from nalanda.train.hooks import Hook, Moment
from nalanda.train.writer import Writer


def snapshot(step: int, value: float) -> Snapshot:
    return Snapshot(
        step, {"w": torch.full((3, 4), value)}, {"w/m": torch.full((3, 4), -value)}, state={"a": [1]}
    )


class Slow(Checkpoints):
    """Writes only when it is let."""

    def __init__(self, folder: Path, config: CheckpointConfig | None = None) -> None:
        super().__init__(folder, config or CheckpointConfig(keep=9))
        self.go, self.active, self.most = threading.Event(), 0, 0
        self.error: BaseException | None = None

    def save(self, snapshot: Snapshot) -> Path:
        self.active += 1
        self.most = max(self.most, self.active)
        assert self.go.wait(20)
        self.active -= 1
        if self.error is not None:
            raise self.error
        return super().save(snapshot)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Slow]:
    made = Slow(tmp_path / "checkpoints")
    yield made
    made.go.set()


def test_what_is_written_is_of_the_moment_of_the_save(store: Slow) -> None:
    state = snapshot(1, 1.0)
    with Writer(store) as writer:
        writer.save(state)
        state.model["w"].fill_(7)
        state.state["a"].append(2)
        assert store.steps() == []
        store.go.set()
    found, _ = store.newest()
    assert found is not None
    assert torch.equal(found.model["w"], torch.ones(3, 4))
    assert found.state == {"a": [1]}


def test_at_most_one_is_under_way_and_buffers_are_used_again(store: Slow) -> None:
    with Writer(store) as writer:
        writer.save(snapshot(1, 1.0))
        first = writer._buffers["model/w"].data_ptr()
        threading.Timer(0.1, store.go.set).start()
        writer.save(snapshot(2, 2.0))
        assert store.steps()[0] == 1
        assert writer._buffers["model/w"].data_ptr() == first
        writer.save(Snapshot(3, {"other": torch.zeros(2)}))
        assert list(writer._buffers) == ["model/other"]
    assert store.steps() == [1, 2, 3]
    assert store.most == 1


def test_a_save_that_is_waited_for_is_there(store: Slow) -> None:
    store.go.set()
    with Writer(store) as writer:
        writer.save(snapshot(1, 1.0))
        writer.save(snapshot(2, 1.0), wait=True)
        assert store.steps() == [1, 2]


def test_what_a_write_meets_is_raised_at_the_next_step_once(store: Slow) -> None:
    store.error = UserError("the disk is full")
    store.go.set()
    with Writer(store) as writer:
        writer.save(snapshot(1, 1.0))
        assert writer._thread is not None
        writer._thread.join()
        with pytest.raises(UserError, match="the disk is full"):
            writer.check()
        writer.check()
        store.error = None
        writer.save(snapshot(2, 1.0))
    assert store.steps() == [2]


@pytest.mark.parametrize("leave", ["well", "badly"])
def test_leaving_waits_for_the_write(store: Slow, leave: str) -> None:
    threading.Timer(0.1, store.go.set).start()
    try:
        with Writer(store) as writer:
            writer.save(snapshot(1, 1.0))
            if leave == "badly":
                store.error = UserError("comes second")
                raise RunError("comes first")
    except RunError as error:
        assert str(error) == "comes first"  # noqa: PT017
    assert store.steps() == ([1] if leave == "well" else [])
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


def test_an_error_of_the_last_write_is_not_lost(store: Slow) -> None:
    store.error = UserError("the disk is full")
    store.go.set()
    with pytest.raises(UserError, match="full"), Writer(store) as writer:
        writer.save(snapshot(1, 1.0))


def test_without_memory_for_a_copy_it_is_written_at_once(
    store: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 100)
    store.go.set()
    with Writer(store) as writer:
        writer.save(snapshot(1, 1.0))
        assert store.steps() == [1]


def test_minutes_are_of_a_clock_that_nobody_sets(
    tmp_path: Path, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock jumps a day back and forth with every step; intervals are measured by another."""
    jumps = iter(range(10**9))
    wall = time.time

    def jumping() -> float:
        return wall() + 86400 * (-1) ** next(jumps)

    monkeypatch.setattr(time, "time", jumping)
    config = CheckpointConfig(minutes=0.001)
    with Writer(Slow(tmp_path, config)) as writer:
        assert not writer.overdue
        until = time.monotonic() + 0.06
        while time.monotonic() < until:
            time.sleep(0.01)
        assert writer.overdue
    whole, often = folder("whole"), folder("often")
    assert whole.fit(loop({"every": 99}))["training_seconds"] < 60
    often.fit(loop({"every": 99, "minutes": 1e-9, "keep": 99}))
    assert len(list((often.path / "checkpoints").iterdir())) == 8
    assert often.losses() == whole.losses()
    assert all(torch.equal(v, often.weights()[k]) for k, v in whole.weights().items())


def loop(checkpoint: dict[str, Any]) -> LoopConfig:
    values = {"budget": {"steps": 8}, "checkpoint": checkpoint, "log_every": 1}
    return parse(LoopConfig, values, "test")


class Die(Hook):
    name = "die"

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, moment: Moment) -> None:
        if moment.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("asynchronous", [True, False])
def test_both_ways_resume_to_the_same_bits(folder: Any, asynchronous: bool) -> None:
    whole, run = folder("whole"), folder("run")
    config = loop({"every": 3, "asynchronous": asynchronous})
    whole.fit(loop({"every": 3}))
    for step in (5, 7):
        with pytest.raises(KeyboardInterrupt):
            run.fit(config, hooks=[Die(step)])
        assert (run.path / "checkpoints" / f"step-{step // 3 * 3:06d}").is_dir()
    run.fit(config)
    assert run.losses() == whole.losses()
    assert all(torch.equal(v, run.weights()[k]) for k, v in whole.weights().items())


def test_a_full_disk_ends_the_run_within_a_step(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = os.fsync, []

    def full(number: int) -> None:
        seen.append(threading.current_thread().name)
        if seen[-1] == "checkpoint" and seen.count("checkpoint") > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    class Wait(Hook):
        name = "wait"

        def after_step(self, moment: Moment) -> None:
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()

    whole, run = folder("whole"), folder("run")
    whole.fit(loop({"every": 2}))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"the disk is full \(\d+ KiB needed") as caught:
        run.fit(loop({"every": 2}), hooks=[Wait()])
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    left = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert left == sorted(name for name in left if name.startswith("step-"))
    assert (
        max(run.losses()) == int(left[-1][-6:]) + 3
    )  # two steps to the save that failed, one more to hear of it
    run.fit(loop({"every": 2}))
    assert run.losses() == whole.losses()


def test_the_copy_is_a_callers_business_only_until_save_returns(store: Slow) -> None:
    """A tensor that is freed, or a view of another, is copied like any."""
    make: Callable[[], Snapshot] = lambda: Snapshot(1, {"w": torch.arange(12.0).view(3, 4).T})  # noqa: E731
    with Writer(store) as writer:
        writer.save(make())
        store.go.set()
    found, _ = store.newest()
    assert found is not None
    assert torch.equal(found.model["w"], torch.arange(12.0).view(3, 4).T)


def test_without_room_for_a_thread_it_is_written_at_once(
    store: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    store.go.set()
    with Writer(store) as writer:
        writer.save(snapshot(1, 1.0))
        assert store.steps() == [1]
