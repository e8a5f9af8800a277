"""A model and a source as small as the contracts allow: an embedding, a hidden layer, dropout, a tied head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nalanda.base.seeds import derive
from nalanda.data.batch import Batch
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.config import LoopConfig
from nalanda.train.loop import fit

VOCABULARY, HIDDEN = 13, 8


@dataclass
class Output:
    hidden_BTD: Tensor


class Head(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.softcap = weight, None

    def affine(self, hidden: Tensor) -> tuple[Tensor, Tensor, None]:
        return hidden, self.weight, None

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weight.T


class Classes(nn.Linear):
    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden[:, 0])


class Toy(nn.Module):
    def __init__(self, seed: int = 0, dropout: float = 0.1) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.up = nn.Linear(HIDDEN, 2 * HIDDEN)
        self.down = nn.Linear(2 * HIDDEN, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict(
            {"tokens": Head(self.embedding.weight), "next_sentence": Classes(HIDDEN, 2)}
        )

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch["ids"])
        return Output(self.norm(x + self.dropout(self.down(torch.relu(self.up(x))))))

    def logits(self, hidden: Tensor, head: str = "tokens", segments_BT: Tensor | None = None) -> Tensor:
        return self.heads[head](hidden)


def make_batch(rows: int, width: int, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (rows, width), generator=draw)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=draw)
    segments = (torch.arange(width) < lengths).to(torch.int32)
    weight = segments.float() * (torch.rand(rows, width, generator=draw) < 0.7)
    weight[:, 0] = 1.0
    return Batch(
        ids=ids,
        segments=segments,
        positions=torch.arange(width, dtype=torch.int32).repeat(rows, 1),
        targets=(ids * 5 + 1) % VOCABULARY,
        target_weight=weight,
        labels=torch.randint(2, (rows,), generator=draw),
        sample_ids=torch.arange(rows) + 100 * seed,
    )


class ToySource:
    """Two micro-batches a step; the right answer is a fixed function of the input token."""

    steps_per_epoch = 10

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.fingerprint = f"toy-{seed}"

    def step(self, step: int) -> list[Batch]:
        return [
            make_batch(3 + micro, 4 + step % 3, derive(self.seed, step, micro) % 10_000) for micro in range(2)
        ]

    def epoch(self) -> Iterator[Batch]:
        yield make_batch(4, 5, 77)
        yield make_batch(2, 3, 78)

    def describe(self) -> dict[str, Any]:
        return {"kind": "toy"}


class Folder:
    """Trains the toy in one folder, keeping rows as a run does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.model = Toy()

    def rewind(self, step: int) -> None:
        self.rows = [row for row in self.rows if row["step"] <= step]

    def fit(self, config: LoopConfig, **options: Any) -> dict[str, Any]:
        self.model = options.pop("model", None) or Toy()
        source = options.pop("source", None) or ToySource()
        objective = options.pop("objective", None) or TokensConfig()
        options.setdefault("device", "cpu")
        return fit(
            self.model,
            objective,
            source,
            config,
            self.path,
            log=lambda row: self.rows.append(row),
            rewind=lambda step: self.rewind(step),
            **options,
        )

    def losses(self) -> dict[int, float]:
        return {row["step"]: row["loss"] for row in self.rows if "loss" in row}

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Folder]:
    return lambda name="run": Folder(tmp_path / name)


@pytest.fixture
def toy() -> type[Toy]:
    return Toy


@pytest.fixture
def toy_source() -> type[ToySource]:
    return ToySource


@pytest.fixture
def toy_batch() -> Callable[[int, int, int], Batch]:
    return make_batch


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Inside, operations run in one thread: toys are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
