"""The loader: order, errors, and that it always ends cleanly. (Equal batches: test_source.py.)"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from nalanda.base.errors import DataError
from nalanda.data.loader import Loader


class Steps:
    """A source whose batch is its step; `act` runs before each."""

    def __init__(self, act: Callable[[int], None] = lambda step: None) -> None:
        self.act, self.made = act, []  # type: ignore[var-annotated]

    def step(self, step: int) -> list[Any]:
        self.act(step)
        self.made.append(step)
        return [step]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_steps_come_in_order_although_they_are_made_in_any(workers: int) -> None:
    gate = threading.Event()

    def act(step: int) -> None:
        if step == 10 and workers > 1:
            assert gate.wait(10)  # the first step waits for the second
        if step == 11:
            gate.set()

    with Loader(Steps(act), start_step=10, workers=workers, stop_step=40) as loader:  # type: ignore[arg-type]
        assert list(loader) == [(step, [step]) for step in range(10, 40)]
    assert loader_threads() == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_comes_at_its_step_and_closes(workers: int) -> None:
    def act(step: int) -> None:
        if step == 3:
            raise DataError("row 7 is damaged")

    loader = Loader(Steps(act), workers=workers)  # type: ignore[arg-type]
    assert [next(loader)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="row 7 is damaged"):
        next(loader)
    assert list(loader) == []
    assert loader_threads() == []


def test_no_more_than_depth_steps_are_made_ahead() -> None:
    source = Steps()
    with Loader(source, workers=2, depth=3) as loader:  # type: ignore[arg-type]
        for _ in range(5):
            next(loader)
            assert max(source.made) < next(loader)[0] + 3


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_leaves_no_thread(workers: int) -> None:
    def train(loader: Loader) -> None:
        with loader:
            next(loader)
            raise KeyboardInterrupt

    loader = Loader(Steps(), workers=workers)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        train(loader)
    assert loader_threads() == []
    assert list(loader) == []


def test_it_can_be_closed_twice_and_starts_nothing_of_itself() -> None:
    source = Steps()
    loader = Loader(source, workers=1)  # type: ignore[arg-type]
    loader.close()
    loader.close()
    assert source.made == []
    with pytest.raises(ValueError):
        Loader(source, workers=-1)  # type: ignore[arg-type]
