"""The coordinator's end: one process for each contestant, of which one at a time computes.

    with Contestant(name, command, plan, environment) as contestant:
        contestant.turn(3)          # seconds of three whole optimizer steps; the others are stopped meanwhile
        facts = contestant.end()

A contestant that does not have the turn is stopped by SIGSTOP, with every process that it started: no idle thread
spins, no loader works ahead and no checkpoint is written outside of the time that is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE = 900.0  # seconds: a compiler at work says nothing for minutes


class ContestantError(RuntimeError):
    """A contestant failed; the message has the end of what it printed."""


class Contestant:
    """A running contestant."""

    def __init__(
        self, name: str, command: list[str], plan: dict[str, Any], environment: dict[str, str]
    ) -> None:
        self.name = name
        self.folder = Path(plan["folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self.began = time.monotonic()
        with (self.folder / "output.txt").open("wb") as output:
            self._process = subprocess.Popen(
                [*command, json.dumps({**plan, "name": name})],
                env={**environment, "ENGINE_TURNS": f"{theirs_in},{theirs_out}"},
                pass_fds=(theirs_in, theirs_out),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._commands = os.fdopen(ours_out, "w", encoding="utf-8")
        self._answers = os.fdopen(ours_in, "rb", buffering=0)
        self._rest = b""

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._commands.close()
        self._answers.close()

    def imported(self) -> float:
        """Waits until its imports are done; seconds since its start."""
        self._read()
        seconds = time.monotonic() - self.began
        self._signal(signal.SIGSTOP)
        return seconds

    def turn(self, steps: int, mark: bool = False) -> float:
        """Lets it do so many steps; seconds from the turn given to the turn handed back."""
        began = time.perf_counter()
        self._signal(signal.SIGCONT)
        self._send({"steps": steps, "mark": mark})
        self._read()
        seconds = time.perf_counter() - began
        self._signal(signal.SIGSTOP)
        return seconds

    def cpu_seconds(self) -> float:
        """What all its threads have computed so far, spinning included; on a busy machine steadier than the clock."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> dict[str, Any]:
        """Ends its training and returns what it reports."""
        self._signal(signal.SIGCONT)
        self._send({"over": True})
        return self._read()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _send(self, command: dict[str, Any]) -> None:
        try:
            self._commands.write(json.dumps(command) + "\n")
            self._commands.flush()
        except BrokenPipeError:
            raise self._failed("has ended") from None

    def _read(self) -> dict[str, Any]:
        limit = time.monotonic() + PATIENCE
        while b"\n" not in self._rest:
            if not select.select([self._answers], [], [], max(0.0, limit - time.monotonic()))[0]:
                raise self._failed(f"said nothing for {PATIENCE:.0f} s")
            part = self._answers.read(1 << 16)
            if not part:
                raise self._failed("has ended")
            self._rest += part
        line, self._rest = self._rest.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self, what: str) -> ContestantError:
        printed = (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        return ContestantError(f"{self.name} {what}:\n" + "\n".join(printed.splitlines()[-25:]))


class Machine:
    """How much of the machine others used between its making and `others`."""

    def __init__(self) -> None:
        self._busy, self._all = self._now()

    @staticmethod
    def _now() -> tuple[int, int]:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        ticks = [int(field) for field in line.split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)

    def others(self, ours: float) -> float:
        """Their share of all processor time; `ours`: CPU seconds of the contestants."""
        busy, total = (now - then for now, then in zip(self._now(), (self._busy, self._all), strict=True))
        return max(0.0, busy - ours * os.sysconf("SC_CLK_TCK")) / max(total, 1)


@dataclass
class Record:
    """What one contestant did in one race. `turns`: seconds of each round's turn; `cpu_seconds`: of all of them."""

    name: str
    steps_per_turn: int
    import_seconds: float = 0.0
    first_seconds: float = 0.0
    cold_seconds: float | None = None
    warm_up: int = 0
    turns: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def turn_tokens(self) -> list[int]:
        """Tokens of each turn."""
        counts, at, each = self.facts["tokens"], self.warm_up, self.steps_per_turn
        return [sum(counts[at + i * each : at + (i + 1) * each]) for i in range(len(self.turns))]

    def rates(self) -> list[float]:
        """Tokens a second, turn by turn."""
        return [tokens / seconds for tokens, seconds in zip(self.turn_tokens(), self.turns, strict=True)]

    def rate(self) -> float:
        """All tokens over all seconds."""
        return sum(self.turn_tokens()) / sum(self.turns)


def order(count: int, turn: int) -> list[int]:
    """Who comes when in a round: everybody comes first, and before everybody else, equally often."""
    places = [(turn // 2 + i) % count for i in range(count)]
    return places[::-1] if turn % 2 else places


def ratios(one: Record, other: Record) -> list[float]:
    """By round, how many times as fast `one` was as `other`."""
    return [a / b for a, b in zip(one.rates(), other.rates(), strict=True)]
