"""A contestant's end of the race: it trains only in its turns, and says what it did in them.

    turns = Turns()                    # settings come as JSON in the first argument, the pipe's ends by number
    import torch, ...                  # whatever the peer needs
    turns.imported()                   # memory is counted from here; waits for the first turn
    turns.built(parameters=..., settings=...)
    turns.each_optimizer_step()        # or call turns.step_done() at the end of every step
    with turns.race():                 # until the coordinator says that it is over
        train()
    turns.report(tokens=[...], losses=[...])

A turn is a number of whole optimizer steps. Between turns the process waits in a read (and is stopped by a signal),
so that one contestant computes at a time. This file needs the standard library alone: it runs in the peers' own
environments.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Over(BaseException):
    """The race is over: leaves the peer's training loop from inside, whatever it catches."""


class Turns:
    """Waits for turns, counts steps, measures memory."""

    def __init__(self) -> None:
        die_with_the_coordinator()
        self.plan: dict[str, Any] = json.loads(sys.argv[1])
        reading, writing = (int(number) for number in os.environ["ENGINE_TURNS"].split(","))
        self._commands = os.fdopen(reading, "r", encoding="utf-8")
        self._answers = os.fdopen(writing, "w", encoding="utf-8")
        self._left = 0
        self._base = 0
        self._facts: dict[str, Any] = {}
        self._peaks: list[int] = []
        self.steps = 0

    @property
    def job(self) -> dict[str, Any]:
        """Sizes of the job: see JOBS in benchmarks/engine.py."""
        found: dict[str, Any] = self.plan["job"]
        return found

    def imported(self) -> None:
        """Memory counts from now on; returns when the first turn is given."""
        self._base = status("VmRSS")
        reset_peak()
        self._answer({"imported": True})
        self._wait()

    def built(self, **facts: Any) -> None:
        """What the coordinator compares and reports: `parameters`, `settings`, `versions` ..."""
        self._facts |= facts

    def each_optimizer_step(self) -> None:
        """Takes the end of every torch optimizer's step as the end of a training step."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(lambda *_: self.step_done())

    def step_done(self) -> None:
        """Call at the same place of every step; waits for the next turn when this one is used up."""
        self.steps += 1
        self._left -= 1
        if self._left == 0:
            self._answer({"steps": self.steps})
            self._wait()

    @contextlib.contextmanager
    def race(self) -> Iterator[None]:
        """Around the peer's training."""
        with contextlib.suppress(Over):
            yield
            raise RuntimeError("training ended before the race did")

    def report(self, *, tokens: list[int], losses: list[float]) -> None:
        """Hands in what was found. `tokens`: of each step, padding left out; `losses`: the logged ones, in order."""
        self._peaks.append(status("VmHWM"))
        whole, steady = max(self._peaks), self._peaks[-1]
        self._answer(
            {
                "tokens": tokens,
                "losses": losses,
                "base": self._base,
                "peak": whole - self._base,
                "steady_peak": steady - self._base,
                "python": platform.python_version(),
                **self._facts,
            }
        )

    def _answer(self, message: dict[str, Any]) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def _wait(self) -> None:
        line = self._commands.readline()
        if not line:
            sys.exit("the coordinator is gone")
        command = json.loads(line)
        if command.get("over"):
            raise Over
        if command.get("mark"):  # warm-up is done: what follows has a peak of its own
            self._peaks.append(status("VmHWM"))
            reset_peak()
        self._left = command["steps"]


def die_with_the_coordinator() -> None:
    """Linux kills this process when its parent has gone: a stopped one would otherwise stay for ever."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def keep_memory() -> None:
    """glibc keeps what a step frees for the next one; by itself it gives large blocks back to the kernel."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor
    libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def reset_peak() -> None:
    """VmHWM becomes what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
