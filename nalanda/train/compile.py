"""Whether and how a model's forward pass is compiled.

    decision = decide("auto", device, budget)     # Decision(compiled, note)
    with compiled(model, decision): ...

Compiled code is dynamic in every shape from its first step, and the first batch it sees is always the run's first
(the loop's warm-up), also after a resume: the same code is generated each time, so a resumed run stays bit-equal.
What was compiled stays on disk, so that it costs a few seconds the next time. `auto` compiles long runs on GPUs. On
CPUs it does not: matrix products are three quarters of a step there, and what compiling saves of the rest is within
2 % of nothing (benchmarks/results/2026-11-25_modes.md), while lanes, which cannot run compiled code, save more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nalanda.train.schedule import BudgetConfig

Mode = Literal["auto", "on", "off"]
_WORTH_STEPS = 2_000  # fewer, and the minute or so that compiling takes is not won back
_WORTH_MINUTES = 10.0
_NO_COMPILER = "no C++ compiler was found: running without torch.compile (install g++ to have it)"


@dataclass(frozen=True)
class Decision:
    """Whether to compile, and a line for the user where that is not what was asked for."""

    compiled: bool
    note: str = ""


def compiler() -> str | None:
    """The C++ compiler that generated code needs, or None."""
    return next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)


def decide(mode: Mode, device: torch.device, budget: BudgetConfig) -> Decision:
    """What `mode` means on `device` for a run of this length; without a C++ compiler, eager with a note."""
    long = (budget.steps or 0) >= _WORTH_STEPS or (budget.minutes or 0) >= _WORTH_MINUTES
    wanted = mode == "on" or (mode == "auto" and device.type == "cuda" and long)
    if wanted and compiler() is None:
        return Decision(False, _NO_COMPILER)
    return Decision(wanted)


@contextlib.contextmanager
def compiled(model: Any, decision: Decision) -> Iterator[None]:
    """Inside, calling `model` runs compiled code where that was decided.

    Sizes that are equal by chance in the first batch are still two sizes: no later batch makes it compile again.
    """
    if not decision.compiled:
        yield
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache()))
    import torch.fx.experimental._config as shapes

    with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        model.compile(dynamic=True)
        try:
            yield
        finally:
            model._compiled_call_impl = None


def _cache() -> Path:
    """Where compiled code is kept: torch's own place is emptied when the machine starts."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "nalanda" / "compiled"
