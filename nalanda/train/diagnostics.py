"""How training goes inside the network: optional figures every so many steps, as rows of metrics.jsonl.

    diagnostics: {every: 500}

    gradient_norm/PART           norm of the gradient, before clipping
    update_size/PART             norm of the update over the norm of the weights
    weights_changed              share of all weights that the update changed
    weights_changed_bf16         share whose value in bf16 changed: what bf16 weights would have kept of it
    activation_scale/STACK.N     root mean square of the stream after layer N
    dead_units/STACK.N           share of a feed-forward's units that stay below a thousandth of their layer's scale
    attention_entropy/STACK.N    in nats, the mean over heads and places; `attention_entropy_least/...`: of one head

Gradients and weights are only looked at, and activations are those of a separate pass over a few rows, without
dropout and gradients: the training's numbers are the same to the bit with diagnostics and without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from nalanda.config import Config
from nalanda.data.batch import Batch, move, tensors
from nalanda.nn.feedforward import GLU, MLP
from nalanda.nn.model import Model
from nalanda.train.health_search import as_written
from nalanda.train.hooks import Hook, Moment, evaluating
from nalanda.train.precision import autocast

_DEAD = 1e-3
_BLOCK = re.compile(r"^(?:transformer\.)?(\w+)\.blocks\.(\d+)(?:\.(\w+))?")


class DiagnosticsConfig(Config):
    """every: optimizer steps between looks. rows: of the step's first micro-batch, for activations; 0 for none."""

    every: int = Field(default=500, gt=0)
    rows: int = Field(default=4, ge=0)


class Diagnostics(Hook):
    """Measures gradients, updates and activations every `every` steps."""

    name = "diagnostics"

    def __init__(self, config: DiagnosticsConfig) -> None:
        self.config = config
        self.row: dict[str, float] = {}
        self._before: dict[str, Tensor] = {}

    def watches(self, step: int) -> bool:
        """Every `every` steps."""
        return step % self.config.every == 0

    @torch.no_grad()
    def before_update(self, moment: Moment, batches: Sequence[Batch]) -> None:
        """Gradients by part; activations of a few rows."""
        weights = _weights(moment.model)
        squares: dict[str, float] = {}
        for name, weight in weights.items():
            if weight.grad is not None:
                norm = float(torch.linalg.vector_norm(weight.grad, dtype=torch.float64))
                squares[part_of(name)] = squares.get(part_of(name), 0.0) + norm**2
        self.row = {f"gradient_norm/{part}": total**0.5 for part, total in squares.items()}
        if self.config.rows and isinstance(moment.model, Model):
            self.row |= activations(moment, _first_rows(batches[0], self.config.rows))
        self._before = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def after_update(self, moment: Moment) -> None:
        """What the update did; nothing of a step that was skipped or taken back."""
        moved: dict[str, float] = {}
        size: dict[str, float] = {}
        changed = changed_bf16 = count = 0
        for name, weight in _weights(moment.model).items():
            before, part = self._before[name], part_of(name)
            moved[part] = moved.get(part, 0.0) + float((weight - before).double().square().sum())
            size[part] = size.get(part, 0.0) + float(before.double().square().sum())
            changed += int((weight != before).sum())
            changed_bf16 += int((weight.bfloat16() != before.bfloat16()).sum())
            count += weight.numel()
        self._before = {}
        self.row |= {
            f"update_size/{part}": (moved[part] / size[part]) ** 0.5 if size[part] else 0.0 for part in moved
        }
        self.row |= {
            "weights_changed": changed / max(count, 1),
            "weights_changed_bf16": changed_bf16 / max(count, 1),
        }

    def after_step(self, moment: Moment) -> None:
        """Logs what was measured."""
        if self.row:
            moment.log({"step": moment.step, **self.row})
            self.row = {}

    def state(self) -> dict[str, Any]:
        """What is not logged yet, where a signal came before that."""
        return {"row": dict(self.row)}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor], step: int) -> None:
        """Goes on from a checkpoint."""
        self.row = dict(state["row"])


def part_of(name: str) -> str:
    """The part of the network that a weight belongs to: `decoder.3.attention`, or the module that owns it."""
    found = _BLOCK.match(name)
    if found:
        stack, number, inner = found.groups()
        return f"{stack}.{number}.{inner}"
    return name.removeprefix("transformer.").rpartition(".")[0] or name


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _first_rows(batch: Batch, count: int) -> Batch:
    return Batch(**{key: value[:count] for key, value in tensors(batch)})  # type: ignore[typeddict-item]


def activations(moment: Moment, batch: Batch) -> dict[str, float]:
    """Scale of the stream, dead units and entropy of attention in one pass over `batch`."""
    batch = move(batch, moment.device)
    row: dict[str, float] = {}
    handles = []
    for name, module in moment.model.named_modules():
        if isinstance(module, MLP | GLU) and (place := _BLOCK.match(name)):
            key = f"dead_units/{place[1]}.{place[2]}"
            handles.append(module.output.register_forward_pre_hook(_dead(key, row, batch)))
    try:
        with as_written(moment.model), evaluating(moment.model), autocast(moment.precision, moment.device):
            captured = moment.model(batch, capture=("residuals", "attention")).captured
    finally:
        for handle in handles:
            handle.remove()
    for name, layers in captured.items():
        stack, _, kind = name.rpartition(".")
        for number, value in enumerate(layers[1:] if kind == "residuals" else layers):
            if kind == "residuals":
                row[f"activation_scale/{stack}.{number}"] = _scale(_real(value, batch))
            else:
                heads_BTH = torch.special.entr(value.double()).sum(-1).transpose(1, 2)
                heads_H = _real(heads_BTH, batch).mean(0)
                row[f"attention_entropy/{stack}.{number}"] = float(heads_H.mean())
                row[f"attention_entropy_least/{stack}.{number}"] = float(heads_H.min())
    return row


def _dead(key: str, row: dict[str, float], batch: Batch) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, inputs: Any) -> None:
        units_NF = _real(inputs[0], batch).float()
        limit = _DEAD * units_NF.square().mean().sqrt()
        row[key] = float((units_NF.abs().amax(0) <= limit).double().mean())

    return hook


def _real(value: Tensor, batch: Batch) -> Tensor:
    """The places of B x T x ... that are not padding, one after the other."""
    for key in ("segments", "source_segments"):
        segments = batch.get(key)
        if isinstance(segments, Tensor) and segments.shape == value.shape[:2]:
            return value[segments != 0]
    return value.flatten(0, 1)


def _scale(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt())
