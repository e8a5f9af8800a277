"""The gradient of one optimizer step from its micro-batches: counts first, then one division per term.

    result = accumulate(model, objective, batches, seed=0, step=7, precision="fp32", device=device)

Gradients of any split of the same rows into micro-batches are equal up to rounding (1e-6 relative in fp32).
Dropout draws from a generator seeded by (seed, step, micro-batch), so a resumed run needs no stored state for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nalanda.base.errors import DataError, RunError
from nalanda.base.seeds import derive
from nalanda.data.batch import Batch, move
from nalanda.objectives.loss import Objective, add_counts
from nalanda.train.lanes import Lanes, split
from nalanda.train.precision import autocast


@dataclass
class Step:
    """What one step's forward and backward passes gave. All values add over steps.

    metrics: name -> (sum, count). tallies: name -> whole numbers. tokens: places that are not padding, in every
    stream. trained: places with a target. rows: rows of the micro-batches.
    """

    loss: float
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    tallies: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    trained: int = 0
    rows: int = 0


def accumulate(
    model: Any,
    objective: Objective,
    batches: Sequence[Batch],
    *,
    seed: int,
    step: int,
    precision: str,
    device: torch.device,
    lanes: Lanes | None = None,
) -> Step:
    """Adds the gradient of the step's loss to the weights' `.grad` and returns what to log.

    Raises DataError when the step's batches train nothing, RunError when the loss is not finite (naming the
    samples of the micro-batch where that happened).
    """
    totals = add_counts(objective.weights(batch) for batch in batches)
    if not any(totals.values()):
        raise DataError(
            f"step {step + 1}: no token of its {len(batches)} batches is trained; check the data's masks"
        )
    result = Step(loss=0.0)
    losses: list[Tensor] = []
    owners: list[Batch] = []
    metrics: dict[str, list[Tensor]] = {}
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    alone = lanes is None or lanes.count == 1

    def work(part: Batch) -> tuple[Tensor, Sequence[Tensor | None], dict[str, Tensor], dict[str, Tensor]]:
        with autocast(precision, device):
            loss = objective(model, move(part, device), totals)
        found = [term / totals[name] for name, term in loss.terms.items() if totals[name]]
        total = torch.stack(found).sum()
        sums = {name: torch.stack([v.detach().double() for v in pair]) for name, pair in loss.metrics.items()}
        gradients: Sequence[Tensor | None] = []
        if total.requires_grad and alone:
            total.backward()
        elif total.requires_grad:  # lanes share the weights, so none may write to their `.grad`
            gradients = torch.autograd.grad(total, weights, allow_unused=True)
        return total.detach(), gradients, sums, loss.tallies

    for micro, batch in enumerate(batches):
        torch.manual_seed(derive(seed, "step", step, micro))
        parts = [batch] if lanes is None else split(batch, lanes.count)
        for total, gradients, sums, tallies in map(work, parts) if lanes is None else lanes.run(work, parts):
            losses.append(total)
            _add(weights, gradients)
            for name, value in sums.items():
                metrics.setdefault(name, []).append(value)
            for name, tally in tallies.items():
                result.tallies[name] = result.tallies.get(name, 0) + tally
        owners += [batch] * len(parts)
        _count(result, batch)
    values = torch.stack(losses).double().tolist()
    _check_losses(values, owners, step)
    result.loss = math.fsum(values)
    for name, pairs in metrics.items():
        top, bottom = torch.stack(pairs).sum(0).tolist()
        result.metrics[name] = (top, bottom)
    return result


def _add(weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Adds a lane's gradients to the weights' `.grad`; an empty sequence adds nothing."""
    for weight, gradient in zip(weights, gradients):
        if gradient is not None:
            weight.grad = gradient if weight.grad is None else weight.grad + gradient


def _check_losses(values: Sequence[float], owners: Sequence[Batch], step: int) -> None:
    for value, batch in zip(values, owners, strict=True):
        if not math.isfinite(value):
            raise RunError(f"step {step + 1}: the loss is {value}; {_samples([batch])}; {_ADVICE}")


_ADVICE = (
    "nothing of this step was kept; look at these samples, lower the learning rate, or use precision: fp32"
)


def check_gradient(norm: float, step: int, batches: Sequence[Batch]) -> None:
    """Raises RunError naming the step and its samples when the gradient is not finite."""
    if not math.isfinite(norm):
        raise RunError(f"step {step + 1}: the gradient is {norm}; {_samples(batches)}; {_ADVICE}")


def _count(result: Step, batch: Batch) -> None:
    result.rows += batch["ids"].shape[0]
    result.tokens += int((batch["segments"] != 0).sum())
    if "source_segments" in batch:
        result.tokens += int((batch["source_segments"] != 0).sum())
    if "target_weight" in batch:
        result.trained += int((batch["target_weight"] != 0).sum())


def _samples(batches: Sequence[Batch]) -> str:
    ids = [
        int(i) for batch in batches if "sample_ids" in batch for i in batch["sample_ids"].tolist() if i >= 0
    ]
    if not ids:
        return "its batches carry no sample ids"
    shown = ", ".join(str(i) for i in ids[:8])
    return f"samples {shown}" + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
