"""Where in a network numbers stopped being finite: a step's micro-batches are run once more, watched.

    finding = search(model, objective, batches, seed=0, step=7, precision="bf16", device=device, team=team)
    finding.where, finding.samples          # "transformer.decoder.blocks.1.feedforward", [200, 201]

Named is the first module in the order of execution whose output is not finite while its inputs are. Where all outputs
are, it is the first in the order of the backward pass whose gradients are finite where they come in, and not where
they go out or at a weight of its own. What happened between a module's modules is named after it. Random numbers are
those of the step. Every rank makes the same number of passes, so that ranks that meet in them do.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nalanda.base.seeds import derive
from nalanda.data.batch import Batch, move
from nalanda.objectives.loss import Objective, add_counts
from nalanda.train.parallel import Team
from nalanda.train.parallel_layout import local_of
from nalanda.train.precision import autocast

_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Finding:
    """`micro`: the micro-batch, None where nothing was found again; `where`: the module, "" for outside of any."""

    micro: int | None
    what: str
    where: str
    samples: list[int]

    def text(self, count: int) -> str:
        """The finding as part of a line; `count`: micro-batches of the step."""
        if self.micro is None:
            return f"not again when run once more; {shown(self.samples)}"
        place = f" in micro-batch {self.micro + 1} of {count}" if count > 1 else ""
        return f"{self.what}{place}, first {self.where or 'outside of all modules'}; {shown(self.samples)}"


def shown(samples: Sequence[int]) -> str:
    """Sample ids, the first few of many."""
    if not samples:
        return "its batches carry no sample ids"
    few = ", ".join(str(i) for i in samples[:_SHOWN])
    return f"samples {few}" + (f" and {len(samples) - _SHOWN} more" if len(samples) > _SHOWN else "")


def samples_of(batch: Batch, rows: Tensor | None = None) -> list[int]:
    """The ids of the batch's samples, or of those rows."""
    if "sample_ids" not in batch:
        return []
    ids = batch["sample_ids"] if rows is None else batch["sample_ids"][rows]
    return [int(i) for i in ids.tolist() if i >= 0]


def search(
    model: Any,
    objective: Objective,
    batches: Sequence[Batch],
    *,
    seed: int,
    step: int,
    precision: str,
    device: torch.device,
    team: Team | None = None,
) -> Finding:
    """The first finding of all micro-batches and ranks. The weights' `.grad` are forgotten."""
    team = team or Team()
    totals = add_counts(objective.weights(batch) for batch in batches)
    found: list[dict[str, Any]] = []
    _forget_gradients(model)
    with as_written(model):
        for part in team.parts(batches):
            torch.manual_seed(derive(seed, "step", step, *part.stream))
            with team.computing(part), _Watch(model, part.batch) as watch:
                with autocast(precision, device):
                    loss = objective(model, move(team.own(part.batch), device), totals)
                terms = [term / totals[name] for name, term in loss.terms.items() if totals[name]]
                total = torch.stack(terms).sum()
                if total.requires_grad:
                    team.backward(total)
                if part.counted and (named := watch.finding(total)):
                    found.append({"micro": part.micro, **named})
            _forget_gradients(model)
    everyone = [each for rank in team.exchange({"found": found}) for each in rank["found"]]
    if not everyone:
        return Finding(None, "", "", [i for batch in batches for i in samples_of(batch)])
    # A loss first: where ranks share out weights, its gradient comes back with those of other micro-batches.
    return Finding(**min(everyone, key=lambda each: (each["what"] != "the loss", each["micro"])))


def _forget_gradients(model: Any) -> None:
    for weight in model.parameters():
        weight.grad = None


@contextlib.contextmanager
def as_written(model: Any) -> Iterator[None]:
    """Inside, compiled code is not used: hooks see every module."""
    compiled = getattr(model, "_compiled_call_impl", None)
    if compiled is not None:
        model._compiled_call_impl = None
    try:
        yield
    finally:
        if compiled is not None:
            model._compiled_call_impl = compiled


def _tensors(value: Any, deep: bool = False) -> Iterator[Tensor]:
    """The numbers in what a module took or gave; `deep`: inside dataclasses too (inputs' hold masks with -inf)."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner, deep)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner, deep)
    elif deep and dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), deep)


def finite(value: Tensor) -> bool:
    """Whether all numbers of `value` are."""
    return bool(torch.isfinite(local_of(value.detach())).all())


class _Watch:
    """Hooks on all modules for one forward and backward pass."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.first = ""
        self.rows: Tensor | None = None
        self.forward_wrong = False
        self._events = 0
        self._calls: list[_Call] = []
        self._open: list[_Call] = []
        self._handles: list[Any] = []

    def __enter__(self) -> _Watch:
        for name, module in self.model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after(name)))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            call = _Call(name, module)
            self._calls.append(call)
            self._open.append(call)
            inputs = list(_tensors((args, kwargs)))
            call.clean = all(map(finite, inputs))
            for value in inputs:
                if value.requires_grad:
                    value.register_hook(lambda gradient, call=call: self._seen(call, gradient, False))

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            call = self._open.pop()
            outputs = list(_tensors(output, deep=True))
            wrong = next((value for value in outputs if not finite(value)), None)
            if wrong is not None and call.clean and not self.forward_wrong:
                self.forward_wrong, self.first = True, self._named(name, module)
                self.rows = self._wrong_rows(wrong)
            for value in outputs:
                if value.requires_grad:
                    value.register_hook(lambda gradient, call=call: self._seen(call, gradient, True))

        return hook

    def _named(self, name: str, module: nn.Module) -> str:
        """The module; and its first weight that is not finite, where there is one."""
        for weight, value in module.named_parameters():
            if not finite(value):
                return f"{name}, whose weight {weight} is not finite" if name else f"weight {weight}"
        return name or "the model"

    def _wrong_rows(self, value: Tensor) -> Tensor | None:
        """The rows of the batch that are not finite in `value`, where its first axis is the batch's."""
        if value.ndim < 2 or value.shape[0] != self.batch["ids"].shape[0]:
            return None
        return (~torch.isfinite(value.detach()).flatten(1).all(1)).cpu()

    def _seen(self, call: _Call, gradient: Tensor, coming_in: bool) -> None:
        self._events += 1
        good = finite(gradient)
        if coming_in:
            call.entered = self._events
            call.entered_finite = call.entered_finite and good
        elif not good and call.left_wrong is None:
            call.left_wrong = self._events

    def finding(self, total: Tensor) -> dict[str, Any] | None:
        """What is not finite in this micro-batch, and where it begins; None where all is."""
        if self.forward_wrong or not finite(total):
            where = self.first or "in the objective, of finite hidden states"
            return {"what": "the loss", "where": where, "samples": samples_of(self.batch, self.rows)}
        bad = {id(w) for w in self.model.parameters() if w.grad is not None and not finite(w.grad)}
        if not bad:
            return None
        call = self._first_call(bad)
        where = call.name if call is not None else "in the objective"
        return {"what": "the gradient", "where": where, "samples": samples_of(self.batch)}

    def _first_call(self, bad: set[int]) -> _Call | None:
        """The innermost of the calls where the backward pass first went wrong; `bad`: ids of wrong weights."""
        suspects: list[tuple[int, _Call]] = []
        for call in self._calls:
            if not call.entered or not call.entered_finite:
                continue
            if call.left_wrong is not None:
                suspects.append((call.left_wrong, call))
            elif any(id(weight) in bad for weight in call.module.parameters()):
                suspects.append((call.entered, call))
        best = min(suspects, key=lambda each: each[0], default=None)
        while best is not None:
            prefix = f"{best[1].name}." if best[1].name else ""
            inner = [s for s in suspects if s[1].name.startswith(prefix) and s[1].name != best[1].name]
            if not inner:
                return best[1]
            best = min(inner, key=lambda each: each[0])
        return None


@dataclasses.dataclass
class _Call:
    """One call of a module: whether its inputs were finite; when gradients came in at its outputs (the last of them)
    and whether they were finite; when the first wrong one left by an input."""

    name: str
    module: nn.Module
    clean: bool = True
    entered: int = 0
    entered_finite: bool = True
    left_wrong: int | None = None
