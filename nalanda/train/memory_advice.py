"""What a run needs beside what there is: a note before the first step, and settings that would fit where it ran out.

    for line in forecast(trainer): trainer.note(line)
    with told(trainer): ...         # memory that runs out anywhere inside ends the run with one line
    advice(trainer, batches)        # "... would fit: data.max_length=512 (about 1.2 GiB), ..."

The figures are those of train/plan_memory.py, for the largest micro-batch. On Linux the kernel promises more memory
than there is and ends a process that takes too much without a word, so that the note is all that a user hears of.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from nalanda.base import machine
from nalanda.base.errors import UserError
from nalanda.data.batch import Batch
from nalanda.nn.model import Model
from nalanda.train.memory import in_parts, is_shortage, one_line
from nalanda.train.optimizer import AdamWConfig, MuonConfig
from nalanda.train.plan_memory import MODES, Rows, Sizes, Split, step_memory
from nalanda.train.precision import has_bf16

if TYPE_CHECKING:
    from nalanda.train.loop import Trainer

_LOGITS = 2**22  # numbers of logits held at once, about what the token head's loss holds
_SURE = 1.25  # an estimate this far above what is free is no matter of its error
_KNOBS = "lower data.max_length, set parallel.checkpointing=full or precision=bf16, or train a smaller model"


@dataclass(frozen=True)
class Setup:
    """What decides the memory of a step: `rows` of the largest micro-batch."""

    rows: Rows
    precision: str
    checkpointing: str
    optimizer: AdamWConfig | MuonConfig
    average: bool
    lanes: int
    micro_batches: int


def setup_of(trainer: Trainer, batches: Sequence[Batch]) -> Setup:
    """What `trainer` does with these micro-batches."""
    parts = in_parts(list(batches), trainer.health.parts)

    def length(batch: Batch, key: str) -> int:
        return batch[key].shape[1] if key in batch else 0  # type: ignore[literal-required]

    most = max(parts, key=lambda b: b["ids"].shape[0] * (length(b, "ids") + length(b, "source_ids")))
    return Setup(
        rows=Rows(most["ids"].shape[0], length(most, "ids"), length(most, "source_ids")),
        precision=trainer.precision,
        checkpointing=trainer.config.parallel.checkpointing,
        optimizer=trainer.config.optimizer,
        average=trainer.average is not None,
        lanes=min(trainer.lanes.count, most["ids"].shape[0]),
        micro_batches=len(parts),
    )


def needed(trainer: Trainer, setup: Setup) -> float | None:
    """Bytes of a step at its peak, weights and all; None where the network does not say what it is made of."""
    if not isinstance(trainer.model, Model) or trainer.team.meets:
        return None
    chunk = max(1, _LOGITS // trainer.model.spec.vocabulary)
    memory = step_memory(
        trainer.model.spec,
        Sizes.of(trainer.model),
        setup.rows,
        MODES[setup.precision],
        setup.optimizer,
        device=trainer.device.type,
        chunk=chunk,
        block=chunk,
        micro_batches=setup.micro_batches,
        average=setup.average,
        lanes=setup.lanes,
        split=Split(checkpointing=setup.checkpointing),
    )
    return memory.peak


def held(trainer: Trainer) -> int:
    """Bytes of weights, gradients, optimizer state and average that are in memory now."""
    tensors = [*trainer.model.parameters(), *trainer.optimizer.state().values()]
    tensors += [w.grad for w in trainer.model.parameters() if w.grad is not None]
    tensors += list(trainer.average.state().values()) if trainer.average is not None else []
    return sum(value.numel() * value.itemsize for value in tensors)


def free(device: torch.device) -> int | None:
    """Bytes that this process may still take on `device`, its own limits counted; None where nobody says."""
    if device.type == "cuda":
        left: int = torch.cuda.mem_get_info(device)[0]
        return left + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    known = [machine.free_memory(), *_limits()]
    return min((value for value in known if value is not None), default=None)


def _limits() -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave."""
    try:
        import resource
    except ImportError:
        return
    used = machine.mapped_memory()
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY and name in used:
            yield max(limit - used[name], 0)


@contextlib.contextmanager
def told(trainer: Trainer) -> Iterator[None]:
    """Inside, memory that runs out becomes a UserError with settings that would fit."""
    why = ""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        why = one_line(error)
    if why:
        step = trainer.budget.step
        raise UserError(
            f"step {step + 1}: out of memory ({why}); {advice(trainer, trainer.source.step(step))}"
        )


def forecast(trainer: Trainer) -> list[str]:
    """A line where the next step's micro-batches surely need more memory than there is."""
    if not isinstance(trainer.model, Model):
        return []
    setup, left = setup_of(trainer, trainer.source.step(trainer.budget.step)), free(trainer.device)
    peak = needed(trainer, setup)
    if peak is None or left is None or peak - held(trainer) <= _SURE * left:
        return []
    return [
        f"a step needs about {_size(peak - held(trainer))} beside the {_size(held(trainer))} that are taken, and "
        f"{_size(left)} are free: it will run out of memory; {_fitting(trainer, setup, left + held(trainer))}"
    ]


def advice(trainer: Trainer, batches: Sequence[Batch]) -> str:
    """What to set instead, for the end of a line: three settings that would fit, each with what it needs."""
    setup, left = setup_of(trainer, batches), free(trainer.device)
    peak = needed(trainer, setup)
    if peak is None or left is None:
        return _KNOBS
    there = left + held(trainer)
    return (
        f"a step needs about {_size(peak)} for micro-batches of {setup.rows.count:,.0f} x "
        f"{setup.rows.length + setup.rows.source:,.0f} places, and there are {_size(there)}; "
        f"{_fitting(trainer, setup, min(there, peak))}"
    )


def _fitting(trainer: Trainer, setup: Setup, there: float) -> str:
    """The first three settings that need less than `there`; one that changes a single thing comes first."""
    options = list(_options(trainer, setup))
    found: list[tuple[str, float]] = []
    tried: list[tuple[str, float]] = []
    for count in (1, 2, 3):
        for chosen in itertools.combinations(options, count):
            if len({what for what, _, _ in chosen}) < count:
                continue
            peak = needed(trainer, _changed(setup, [change for _, _, change in chosen])) or 0.0
            tried.append((" ".join(text for _, text, _ in chosen), peak))
            if peak * 1.05 < there and len(found) < 3:
                found.append(tried[-1])
    best = found or sorted(tried, key=lambda each: each[1])[:3]
    shown = ", ".join(f"{text} (about {_size(peak)})" for text, peak in best)
    return f"{'would fit' if found else 'nothing tried fits; least is needed with'}: {shown}"


Option = tuple[str, str, dict[str, Any]]


def _options(trainer: Trainer, setup: Setup) -> Iterator[Option]:
    """(what, the setting as in a recipe, the fields that it changes), the least costly to training first."""
    count, length, source = setup.rows.count, setup.rows.length, setup.rows.source
    while count >= 2:
        count //= 2
        yield "micro", f"data.micro_batch_tokens={int(count * (length + source))}", {"count": count}
    if setup.precision != "bf16" and has_bf16(trainer.device):
        yield "precision", "precision=bf16", {"precision": "bf16"}
    for mode in ("selective", "full") if setup.checkpointing == "none" else ():
        yield "checkpointing", f"parallel.checkpointing={mode}", {"checkpointing": mode}
    if setup.lanes > 1:
        yield "threads", "threads=1", {"lanes": 1}
    if setup.average:
        yield "ema", "ema=null", {"average": False}
    while max(length, source) >= 64:
        length, source = length // 2, source // 2
        yield "length", f"data.max_length={int(max(length, source))}", {"length": length, "source": source}
    if setup.optimizer.kind == "adamw":
        yield "optimizer", "optimizer.kind=muon", {"optimizer": MuonConfig()}


def _changed(setup: Setup, changes: Iterable[dict[str, Any]]) -> Setup:
    both = {key: value for change in changes for key, value in change.items()}
    of_rows = {key: both.pop(key) for key in ("count", "length", "source") if key in both}
    return replace(setup, rows=replace(setup.rows, **of_rows), **both)


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
