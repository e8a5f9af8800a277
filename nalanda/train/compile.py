"""Whether and how a model's forward pass is compiled.

    decision = decide("auto", device, budget)     # Decision(compiled, note)
    with compiled(model, decision): ...

Compiled code is dynamic in every shape from its first step, and the first batch it sees is always the run's first
(`warm_up`), also after a resume: the same code is generated each time, so a resumed run stays bit-equal.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nalanda.base.errors import RunError
from nalanda.train.schedule import BudgetConfig

Mode = Literal["auto", "on", "off"]
_WORTH_STEPS = 5_000  # compiling takes about as long as the few per cent it saves in so many small CPU steps
_WORTH_MINUTES = 30.0


@dataclass(frozen=True)
class Decision:
    """Whether to compile, and a line for the user where that is not what one might expect."""

    compiled: bool
    note: str = ""


def compiler() -> str | None:
    """The C++ compiler that generated CPU code needs, or None."""
    return next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)


def decide(mode: Mode, device: torch.device, budget: BudgetConfig) -> Decision:
    """Raises RunError when compiling is asked for (`on`) and cannot be done."""
    if mode == "off":
        return Decision(False)
    missing = device.type == "cpu" and compiler() is None
    if missing and mode == "on":
        raise RunError("compile: on needs a C++ compiler (install g++), or use compile: off")
    if mode == "on":
        return Decision(True)
    long = (budget.steps or 0) >= _WORTH_STEPS or (budget.minutes or 0) >= _WORTH_MINUTES
    if not long:
        return Decision(False)
    if missing:
        return Decision(
            False, "no C++ compiler was found: running without torch.compile (install g++ for more speed)"
        )
    return Decision(True)


@contextlib.contextmanager
def compiled(model: Any, decision: Decision) -> Iterator[None]:
    """Inside, calling `model` runs compiled code where that was decided."""
    if not decision.compiled:
        yield
        return
    import torch.fx.experimental._config as shapes

    with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]  # two sizes equal by chance in the first batch stay two sizes
        model.compile(dynamic=True)
        try:
            yield
        finally:
            model._compiled_call_impl = None
