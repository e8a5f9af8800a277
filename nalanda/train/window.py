"""What is summed between two rows of metrics.jsonl, and over the whole run. Kept in checkpoints, so that a row after
a resume is the same as without one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from nalanda.train.step import Step


@dataclass
class Window:
    """Sums since the last logged row (steps, loss, ...), and since the first step (`all_...`)."""

    steps: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    trained: int = 0
    metrics: dict[str, list[float]] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    final_loss: float = 0.0
    all_tokens: int = 0
    all_trained: int = 0
    all_rows: int = 0
    all_waited: float = 0.0
    """Seconds that training stood still for data."""
    skipped: int = 0

    def add(self, result: Step, seconds: float, *, norm: float, rate: float, progress: float) -> None:
        """Books one step."""
        self.steps += 1
        self.loss += result.loss
        self.seconds += seconds
        self.tokens += result.tokens
        self.trained += result.trained
        self.all_tokens += result.tokens
        self.all_trained += result.trained
        self.all_rows += result.rows
        for name, (top, bottom) in result.metrics.items():
            sums = self.metrics.setdefault(name, [0.0, 0.0])
            sums[0] += top
            sums[1] += bottom
        self.latest = {"lr": rate, "gradient_norm": norm, "progress": progress}

    def pass_over(self, seconds: float) -> None:
        """Books a step without an update: its time, and nothing of what it gave."""
        self.skipped += 1
        self.seconds += seconds

    def shown(self) -> dict[str, float]:
        """What a progress bar shows."""
        loss = {"loss": self.loss / self.steps} if self.steps else {}
        return {**loss, "tokens/s": self.tokens / max(self.seconds, 1e-9)}

    def flush(self) -> dict[str, Any]:
        """The row of metrics.jsonl for the steps since the last one: means over them, and the latest lr and norm.

        Steps that were skipped are counted and in no mean; where all were, there is no loss."""
        row: dict[str, Any] = {"loss": self.loss / self.steps} if self.steps else {}
        row |= {name: top / bottom for name, (top, bottom) in self.metrics.items() if bottom}
        if "nll" in row:
            row["perplexity"] = math.exp(min(row["nll"], 700.0))
        row |= self.latest
        row |= {
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
            "trained_tokens": self.all_trained,
            "tokens": self.all_tokens,
        }
        if self.skipped:
            row["skipped"] = self.skipped
        self.final_loss = row.get("loss", self.final_loss)
        self.steps = self.tokens = self.trained = self.skipped = 0
        self.loss = self.seconds = 0.0
        self.metrics = {}
        return row

    def totals(self) -> dict[str, Any]:
        """What the result says of the whole run; `loss` is the last row's."""
        return {
            "loss": self.final_loss,
            "tokens": self.all_tokens,
            "trained_tokens": self.all_trained,
            "rows": self.all_rows,
            "waited_for_data": round(self.all_waited, 3),
        }

    def state(self) -> dict[str, Any]:
        """Plain JSON that `Window(**state)` reads back exactly."""
        return asdict(self)
