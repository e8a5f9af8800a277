"""What every contestant of benchmarks/quality.py needs: a clock of its own time, a curve, held-out text. No
nalanda here, so that peers run it in an environment of their own.

    clock = Clock(limit=1200)
    curve = Curve(path, every=60)
    while not clock.over:
        ...one step...
        if curve.due(clock.seconds):
            with clock.paused():
                curve.add(clock.seconds, score())
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Clock:
    """Seconds since it was made, pauses (evaluation) left out; building and compiling the model count."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._began = time.perf_counter()
        self._paused = 0.0

    @property
    def seconds(self) -> float:
        """Own time so far."""
        return time.perf_counter() - self._began - self._paused

    @property
    def progress(self) -> float:
        """Share of the limit that is spent, at most 1."""
        return min(self.seconds / self.limit, 1.0)

    @property
    def over(self) -> bool:
        """Whether the limit is reached."""
        return self.seconds >= self.limit

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the clock stands still."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began


class Curve:
    """Points of (own seconds, score), kept in a file as they come."""

    def __init__(self, path: Path, every: float, **facts: Any) -> None:
        self.path, self.every, self.facts = path, every, facts
        self.points: list[tuple[float, float]] = []

    def due(self, seconds: float) -> bool:
        """Whether it is time for a point."""
        last = self.points[-1][0] if self.points else 0.0
        return seconds - last >= self.every

    def add(self, seconds: float, score: float, **facts: Any) -> None:
        """Writes a point down."""
        self.points.append((seconds, score))
        self.facts |= facts
        self._write(self.path.with_suffix(".part"))
        sys.stderr.write(f"{self.path.stem}: {seconds:.0f} s  {score:.4f}\n")

    def finish(self, **facts: Any) -> None:
        """The file under its own name says that the run is done."""
        self.facts |= facts
        self._write(self.path)
        self.path.with_suffix(".part").unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        draft = path.with_name(f".{path.name}")
        draft.write_text(json.dumps({**self.facts, "curve": self.points}, indent=1), encoding="utf-8")
        os.replace(draft, path)


class HeldOut:
    """Held-out rows: `ids`, `targets`, `weight`, `segments`, `positions`, all rows x width; `bytes` of their text."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as values:
            self.arrays = {
                key: torch.from_numpy(values[key].astype(np.int64)) for key in values if key != "bytes"
            }
            self.bytes = int(values["bytes"])

    def parts(self, rows: int) -> Iterator[dict[str, Tensor]]:
        """So many rows at a time; the last part is filled up with rows that have no weight."""
        count = len(self.arrays["ids"])
        for at in range(0, count, rows):
            part = {key: value[at : at + rows] for key, value in self.arrays.items()}
            missing = rows - len(part["ids"])
            if missing:
                part = {key: torch.cat([v, v[:1].expand(missing, -1)]) for key, v in part.items()}
                part["weight"][rows - missing :] = 0
            yield part

    @torch.no_grad()
    def nats(self, nll: Callable[[dict[str, Tensor]], Tensor], rows: int = 16) -> tuple[float, float]:
        """Sum of -log p of all targets, and their number; `nll` gives a part's rows x width of them."""
        total, count = 0.0, 0.0
        for part in self.parts(rows):
            total += float((nll(part).double() * part["weight"]).sum())
            count += float(part["weight"].sum())
        return total, count

    def bits_per_byte(self, nll: Callable[[dict[str, Tensor]], Tensor]) -> float:
        """What the score of a causal model is: the same for every tokenizer, context and packing."""
        return self.nats(nll)[0] / math.log(2) / self.bytes


def autocast(bf16: bool) -> contextlib.AbstractContextManager[Any]:
    """bf16 products on this machine's device, where asked for."""
    return torch.autocast(device().type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def warm(progress: float, share: float) -> float:
    """Linear warm-up over a share of the run."""
    return min(progress / share, 1.0) if share else 1.0


def cosine(progress: float, share: float, final: float) -> float:
    """Warm-up, then half a cosine down to `final`: nanoGPT's schedule, by time."""
    if progress < share:
        return warm(progress, share)
    done = (progress - share) / (1 - share)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def linear(progress: float, share: float) -> float:
    """Warm-up, then straight down to 0: BERT's schedule, by time."""
    return warm(progress, share) if progress < share else (1 - progress) / (1 - share)


def inverse_sqrt(progress: float, share: float) -> float:
    """Warm-up, then as 1/sqrt: Marian's and the 2017 Transformer's schedule, by time."""
    return warm(progress, share) if progress < share else math.sqrt(share / progress)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Every group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
