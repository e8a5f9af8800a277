"""What an objective is, and what it returns: sums with counts, never means.

    objective = TokensConfig(label_smoothing=0.1)             # a frozen config is the objective
    totals = objective.weights(batch)                         # {"tokens": 812.0}, read from the batch alone
    loss = objective(model, batch, totals)                    # Loss(terms={"tokens": sum}, metrics={...})
    sum(loss.terms[name] / totals[name] for name in totals).backward()

The loop adds the counts of all micro-batches (and ranks) of a step before the first forward pass, so each term
is divided by its own global count: accumulation and packing give the gradient of one big batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from nalanda.data.batch import Batch


@dataclass(frozen=True)
class Loss:
    """One micro-batch's loss.

    terms: name -> scalar, the SUM over this micro-batch, already multiplied by the term's coefficient.
    metrics: name -> (sum, count), two detached scalars; they add over micro-batches, their ratio is shown.
    tallies: name -> whole numbers that add over micro-batches; hooks see those of the whole step.
    """

    terms: dict[str, Tensor]
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    tallies: dict[str, Tensor] = field(default_factory=dict)


class HeadedModel(Protocol):
    """What an objective needs of a model: hidden states of a batch, and its heads by name.

    A call gives an output with `hidden_BTD`. `heads` maps names to modules; the one over the vocabulary splits its
    last product by `affine(hidden) -> features, weight, bias` and says by `softcap` how its logits are bounded.
    """

    @property
    def heads(self) -> Any: ...

    def __call__(self, batch: Batch) -> Any: ...

    def logits(self, hidden: Tensor, head: str = ..., segments_BT: Tensor | None = ...) -> Tensor: ...


class Objective(Protocol):
    """Something to minimize. Anything that keeps this contract trains with every model, source and loop feature."""

    def weights(self, batch: Batch) -> dict[str, float]:
        """Each term's count in this micro-batch, from the batch alone."""
        ...

    def __call__(self, model: HeadedModel, batch: Batch, totals: dict[str, float]) -> Loss:
        """The terms' sums over this micro-batch; `totals` are the counts of the whole step."""
        ...


def add_counts(counts: Iterable[dict[str, float]]) -> dict[str, float]:
    """The sum of several micro-batches' counts, term by term."""
    totals: dict[str, float] = {}
    for count in counts:
        for name, value in count.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals
