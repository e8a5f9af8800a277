"""Small models of every kind and a source without files, for tests that train on several processes."""

from __future__ import annotations

import math
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nalanda.base.distributed import current
from nalanda.base.errors import UserError
from nalanda.base.seeds import derive
from nalanda.config import parse
from nalanda.data.batch import Batch
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec
from nalanda.objectives.experts import ExpertsConfig
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.config import LoopConfig
from nalanda.train.hooks import Evaluation, EvaluationConfig, Hook
from nalanda.train.loop import fit

VOCABULARY = 48
DECODER: dict[str, Any] = {
    "kind": "decoder", "layers": 2, "hidden": 16, "heads": 4, "kv_heads": 2, "inner": 32, "norm": "rms",
    "feedforward": "glu", "activation": "silu", "position": "rotary", "max_length": 64, "dropout": 0.0,
}  # fmt: skip


class Texts:
    """Packed rows of random documents; `micros` micro-batches a step, the last one smaller."""

    steps_per_epoch = 50

    def __init__(
        self,
        micros: int = 4,
        rows: int = 4,
        width: int = 16,
        bad_step: int | None = None,
        infinite: tuple[int, ...] = (),
        pairs: bool = False,
    ) -> None:
        """`infinite`: steps whose last micro-batch has an infinite weight."""
        self.micros, self.rows, self.width, self.bad_step = micros, rows, width, bad_step
        self.infinite, self.pairs = infinite, pairs
        self.fingerprint = f"texts {micros} {rows} {width}"
        self.asked: list[int] = []

    def step(self, step: int) -> list[Batch]:
        if step == self.bad_step:
            raise UserError(f"step {step} cannot be made")
        batches = [
            self._batch(derive(7, step, i), self.rows - (i == self.micros - 1)) for i in range(self.micros)
        ]
        if step in self.infinite:
            batches[-1]["target_weight"][0, 0] = float("inf")
        return batches

    def _batch(self, seed: int, rows: int) -> Batch:
        draw = torch.Generator().manual_seed(seed)
        ids = torch.randint(VOCABULARY, (rows, self.width), generator=draw)
        cut = torch.randint(2, self.width - 1, (rows, 1), generator=draw)
        column = torch.arange(self.width)[None]
        segments = torch.where(column < cut, 1, 2).to(torch.int32)
        segments[-1, -2:] = 0
        positions = torch.where(column < cut, column, column - cut).to(torch.int32)
        weight = (segments != 0).float()
        ids_after = (ids * 5 + 1) % VOCABULARY
        batch = Batch(
            ids=ids, segments=segments, positions=positions, targets=ids_after, target_weight=weight,
            sample_ids=torch.arange(rows) + seed % 1000,
        )  # fmt: skip
        if self.pairs:
            batch.update(source_ids=ids.flip(1), source_segments=segments.flip(1), source_positions=positions)
        return batch

    def epoch(self) -> Iterator[Batch]:
        for i in range(3):
            yield self._batch(derive(8, i), 2)

    def describe(self) -> dict[str, Any]:
        return {"kind": "texts"}


@dataclass
class Trained:
    """What a rank saw of a run: the logged rows (of the first rank), the weights, the result."""

    rows: list[dict[str, Any]]
    weights: dict[str, Tensor]
    result: dict[str, Any]

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows if "loss" in row]


@dataclass
class Work:
    """What to train, in plain values that travel between processes."""

    loop: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    device: str = "cpu"
    evaluate: bool = False
    experts: bool = False
    stop_at: tuple[int, int] | None = None  # (rank, step): there the rank is asked to stop


def model_of(work: Work, kind: type[Model] = Model) -> Model:
    torch.manual_seed(3)
    return kind(
        build_spec(parse(ModelConfig, {**DECODER, **work.model}, "test"), VOCABULARY),
        {"tokens": TokensHeadSpec()},
    )


def trained(work: Work, kind: type[Model] = Model) -> Trained:
    """Trains as `work` says, in this process or as one rank of several."""
    loop = {"budget": {"steps": 6}, "log_every": 1, "precision": "fp32", "compile": "off", **work.loop}
    rows: list[dict[str, Any]] = []

    def rewind(step: int) -> None:
        rows[:] = [row for row in rows if row["step"] <= step]

    hooks: list[Hook] = []
    if work.evaluate:
        hooks.append(Evaluation(EvaluationConfig(every=2), Texts(**work.source), TokensConfig()))
    if work.stop_at:
        hooks.append(Stopping(*work.stop_at))
    objective: Any = ExpertsConfig[TokensConfig](objective=TokensConfig()) if work.experts else TokensConfig()
    model = model_of(work, kind)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(work.folder or place)
        result = fit(
            model, objective, Texts(**work.source), parse(LoopConfig, loop, "test"), folder,
            hooks=hooks, log=rows.append, rewind=rewind, device=work.device,
        )  # fmt: skip
    weights = {
        name: value.detach().clone().cpu() for name, value in model.state_dict().items() if not value.is_meta
    }
    return Trained(rows, weights, result)


class Stopping(Hook):
    """Asks one rank to stop, as SIGTERM does."""

    name = "stopping"

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def after_step(self, moment: Any) -> None:
        if moment.step == self.step and current().rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


def largest_difference(one: Trained, other: Trained) -> tuple[float, float]:
    """The largest relative difference of a loss, and that of the weights, by their norm."""
    losses = max(abs(a - b) / abs(a) for a, b in zip(one.losses, other.losses, strict=True))
    flat, against = (
        torch.cat([w.flatten().double() for w in each.weights.values()]) for each in (one, other)
    )
    return losses, float((flat - against).norm() / flat.norm())


def failing_on_the_second(work: Work) -> Trained:
    """The second rank cannot make its third step."""
    return trained(replace(work, source={"bad_step": 2 if current().rank == 1 else None}))


def not_finite(work: Work) -> Trained:
    """A model whose loss is not a number where the second rank computes."""

    class Broken(Model):
        def forward(self, batch: Any, **more: Any) -> Any:
            output = super().forward(batch, **more)
            return output._replace(hidden_BTD=output.hidden_BTD * (math.nan if current().rank == 1 else 1.0))

    return trained(work, Broken)


def short_of_memory(work: Work) -> Trained:
    """A model that has room for two rows at once where the last rank computes, and for more elsewhere."""

    class Small(Model):
        def forward(self, batch: Any, **more: Any) -> Any:
            if batch["ids"].shape[0] > (2 if current().rank == current().size - 1 else 99):
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
                )
            return super().forward(batch, **more)

    return trained(work, Small)


def tied_after(work: Work) -> dict[str, str]:
    """Which weights of a model are one after it was trained in parts."""
    made: list[Model] = []

    class Kept(Model):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    trained(work, Kept)
    return made[0].tied()
