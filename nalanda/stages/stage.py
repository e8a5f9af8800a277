"""What a stage is: a config class, the inputs it reads, and a function that fills a run folder.

STAGE = Stage(config=CorpusStage, inputs=..., run=..., shrink=..., format=1)

run(config, run, context) -> result      plain JSON values; the caller writes result.json from them
inputs(config) -> {key: place}           the config keys (dotted) that name folders or files, and where they are
shrink(config) -> config                 the same work made tiny, for --dry-run
free                                     config keys that may change between two attempts: how, not what
together                                 whether all processes of torchrun work on it; else the first does
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nalanda.base import io
from nalanda.base.errors import DataError, RunError
from nalanda.base.outputs import verify_outputs
from nalanda.base.progress import ProgressFactory, silent, unsaid
from nalanda.base.run import Run, fingerprint_of


@dataclass(frozen=True)
class Context:
    """How a stage speaks to its user: progress bars and single lines."""

    progress: ProgressFactory = silent
    note: Callable[[str], None] = unsaid


@dataclass(frozen=True)
class Stage:
    """One verb of the command line; the heading of this file says what each part does."""

    config: type[Any]
    run: Callable[[Any, Run, Context], dict[str, Any]]
    inputs: Callable[[Any], dict[str, Path]]
    shrink: Callable[[Any], Any] = field(default=lambda config: config)
    format: int = 1
    together: bool = False
    free: tuple[str, ...] = ()


def fingerprint_input(place: Path, key: str) -> str:
    """What identifies the input at `place`: a stage's fingerprint, else the contents of the file or folder.

    A stage's model/ counts as the stage. Raises DataError where there is nothing, RunError where the stage or
    pipeline there is not finished, or a file of it is damaged.
    """
    stage = place.parent if place.name == "model" and (place.parent / "inputs.json").exists() else place
    if any((stage / name).exists() for name in ("result.json", "inputs.json", "pipeline.json")):
        try:
            fingerprint = fingerprint_of(stage)
            verify_outputs(stage)
            return fingerprint
        except RunError as error:
            raise RunError(f"{key}: {error}") from None
    if place.is_file():
        return io.sha256_file(place)[:16]
    if place.is_dir():
        files = [p for p in sorted(place.rglob("*")) if p.is_file() and p.name != "run.lock"]
        if files:
            return io.fingerprint({p.relative_to(place).as_posix(): io.sha256_file(p) for p in files})
    raise DataError(f"{key}: {place}: no such file or finished folder; give a path that exists")
