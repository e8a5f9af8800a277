"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing in tests.

    with progress("tokenizing", total=n, unit="rows") as bar:
        bar.update(1000, speed="12 k rows/s")

Library functions take `progress: ProgressFactory = silent`; the command line hands them `reporter()`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol, TextIO


class Progress(Protocol):
    """One bar: `update(n)` adds n units of work; keyword values are shown beside it."""

    def update(self, n: int = 0, **shown: str | float) -> None: ...


class ProgressFactory(Protocol):
    """Opens a bar; `total` in `unit`s, or None where it is unknown."""

    def __call__(
        self, label: str, total: int | None = None, unit: str = "rows"
    ) -> contextlib.AbstractContextManager[Progress]: ...


def unsaid(note: str) -> None:
    """What library functions with a `note` argument do with what there is to say, where nobody asked."""


class _Silent:
    def update(self, n: int = 0, **shown: str | float) -> None:
        return None


@contextlib.contextmanager
def silent(label: str, total: int | None = None, unit: str = "rows") -> Iterator[Progress]:
    """Shows nothing."""
    yield _Silent()


def _show(shown: dict[str, str | float]) -> str:
    return "  ".join(
        f"{key} {value if isinstance(value, str) else _number(value)}" for key, value in shown.items()
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Lines:
    """Plain lines, at most one every `every` seconds, for logs and pipes."""

    def __init__(self, label: str, total: int | None, unit: str, stream: TextIO, every: float) -> None:
        self.label, self.total, self.unit, self.stream, self.every = label, total, unit, stream, every
        self.done = 0
        self.start = self.last = time.monotonic()

    def update(self, n: int = 0, **shown: str | float) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            self.line(shown)

    def line(self, shown: dict[str, str | float], end: bool = False) -> None:
        elapsed = time.monotonic() - self.start
        of = f"/{self.total:,}" if self.total else ""
        eta = ""
        if self.total and 0 < self.done < self.total and not end:
            eta = f"  ETA {_clock(elapsed * (self.total - self.done) / self.done)}"
        text = f"{self.label}: {self.done:,}{of} {self.unit}  {_clock(elapsed)}{eta}  {_show(shown)}"
        self.stream.write(text.rstrip() + "\n")
        self.stream.flush()


def plain(stream: TextIO, every: float = 15.0) -> ProgressFactory:
    """Progress as plain lines on `stream`, one every `every` seconds and one at the end."""

    @contextlib.contextmanager
    def open_lines(label: str, total: int | None = None, unit: str = "rows") -> Iterator[Progress]:
        lines = _Lines(label, total, unit, stream, every)
        yield lines
        lines.line({}, end=True)

    return open_lines


class _Bar:
    def __init__(self, bar: object, task: object) -> None:
        self.bar, self.task = bar, task

    def update(self, n: int = 0, **shown: str | float) -> None:
        fields = {"shown": _show(shown)} if shown else {}
        self.bar.update(self.task, advance=n, **fields)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _terminal(label: str, total: int | None = None, unit: str = "rows") -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
    ]
    with RichProgress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        yield _Bar(bar, bar.add_task(label, total=total, shown=""))


def reporter() -> ProgressFactory:
    """The right progress for this process's standard error: a bar on a terminal, plain lines otherwise."""
    return _terminal if sys.stderr.isatty() else plain(sys.stderr)
