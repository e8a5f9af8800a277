"""TensorBoard mirrors rows and drops what a resume writes again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nalanda.config import parse
from nalanda.train.config import LoopConfig
from nalanda.train.hooks import TensorBoard


def test_tensorboard_gets_every_number(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            opened.append((folder, purge_step))

        def add_scalar(self, key: str, value: float, step: int) -> None:
            written.append((key, value, step))

        def close(self) -> None:
            opened.append("closed")

    opened: list[Any] = []
    written: list[tuple[str, float, int]] = []
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run = folder()
    config = parse(LoopConfig, {"budget": {"steps": 4}, "log_every": 2, "checkpoint": {"every": 2}}, "test")
    run.fit(config, hooks=[TensorBoard(tmp_path / "board")])
    assert opened == [(str(tmp_path / "board"), 1), "closed"]
    rows = {row["step"]: row for row in run.rows}
    assert {(step, value) for key, value, step in written if key == "loss"} == {
        (step, row["loss"]) for step, row in rows.items()
    }
    assert {key for key, _, _ in written} >= {"lr", "gradient_norm", "accuracy"}
    run.fit(config, hooks=[TensorBoard(tmp_path / "board")])
    assert opened[2:] == [(str(tmp_path / "board"), 5), "closed"]
