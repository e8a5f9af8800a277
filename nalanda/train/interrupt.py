"""Ctrl-C and SIGTERM while training: noted at once, obeyed when the step is whole.

    with Interruption() as interruption:
        with interruption.at_once(): compile()       # nothing to save here: ends now
        while not interruption.signal: ...
        raise stopped(interruption.signal, "after step 7, which is saved")

A second Ctrl-C is not held back. Outside the main thread, where Python delivers no signals, nothing is caught.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from nalanda.base.errors import Interrupted, Terminated


class _AtOnce(BaseException):
    """Ends a block of `at_once`. No `Exception`: the code inside must not take it for an error of its own."""


class Interruption:
    """Whether the user or the system asked to stop: `signal` is the number of the signal, 0 without."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}
        self._at_once = False

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        if self._at_once:
            raise _AtOnce

    @contextlib.contextmanager
    def at_once(self, where: str) -> Iterator[None]:
        """For long work that leaves nothing to save: inside, a signal raises Interrupted (`where` says of what)."""
        self._at_once = True
        try:
            if self.signal:
                raise _AtOnce
            yield
        except _AtOnce:
            raise stopped(self.signal, where) from None
        finally:
            self._at_once = False

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()


def stopped(number: int, where: str) -> Interrupted:
    """The error that ends a run after signal `number`, in one line."""
    kind = Terminated if number == signal.SIGTERM else Interrupted
    return kind(f"stopped {where}; run the same command again to go on")
