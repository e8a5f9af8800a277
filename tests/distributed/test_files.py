"""Checkpoints that ranks write together: exact on the same ranks, readable on any number of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Ended, together
from small_runs import Trained, Work, largest_difference, tied_after, trained

from nalanda.base.errors import RunError
from nalanda.train.checkpoint import CheckpointConfig, Checkpoints, read_snapshot

LOOP: dict[str, Any] = {"ema": {"decay": 0.9}, "optimizer": {"kind": "muon"}}
WORK = Work({**LOOP, "parallel": {"shard": True}}, evaluate=True)


@pytest.fixture(scope="module")
def undisturbed() -> list[Trained]:
    return together(2, trained, WORK)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sharded ranks, stopped after step 4."""
    folder = tmp_path_factory.mktemp("stopped")
    ends = together(2, trained, replace(WORK, folder=str(folder), stop_at=(0, 4)))
    assert [end.code for end in ends if isinstance(end, Ended)] == [143, 143]
    return folder


def copied(folder: Path, to: Path) -> str:
    shutil.copytree(folder, to / "run")
    return str(to / "run")


def test_the_same_ranks_go_on_to_the_last_bit(
    undisturbed: list[Trained], stopped: Path, tmp_path: Path
) -> None:
    rest = together(2, trained, replace(WORK, folder=copied(stopped, tmp_path)))
    assert rest[0].losses == undisturbed[0].losses[4:]
    for name, value in undisturbed[0].weights.items():
        assert torch.equal(value, rest[0].weights[name])


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [(1, {}), (2, {}), pytest.param(4, {"shard": True}, marks=pytest.mark.exhaustive)],
)
def test_any_other_ranks_go_on(
    undisturbed: list[Trained], stopped: Path, tmp_path: Path, ranks: int, parallel: dict[str, Any]
) -> None:
    work = replace(WORK, folder=copied(stopped, tmp_path), loop={**LOOP, "parallel": parallel})
    rest = trained(work) if ranks == 1 else together(ranks, trained, work)[0]
    whole = replace(undisturbed[0], rows=[row for row in undisturbed[0].rows if row["step"] > 4])
    losses, weights = largest_difference(whole, rest)
    assert losses < 1e-6
    assert weights < 1e-6


def test_one_process_ranks_go_on_from_one(tmp_path: Path, undisturbed: list[Trained]) -> None:
    alone = replace(
        WORK, folder=str(tmp_path), loop={**LOOP, "budget": {"steps": 6}, "checkpoint": {"every": 4}}
    )
    trained(alone)
    shutil.rmtree(tmp_path / "checkpoints" / "step-000006")
    rest = together(2, trained, replace(WORK, folder=str(tmp_path)))[0]
    assert rest.rows[0]["step"] == 5
    whole = replace(undisturbed[0], rows=[row for row in undisturbed[0].rows if row["step"] > 4])
    losses, weights = largest_difference(whole, rest)
    assert losses < 1e-6
    assert weights < 1e-6


def test_the_model_is_whole_and_its_weights_tied_again() -> None:
    assert together(2, tied_after, WORK) == [{"heads.tokens.output.weight": "transformer.tokens.weight"}] * 2


def test_no_number_is_written_twice_and_damage_is_named(stopped: Path, tmp_path: Path) -> None:
    store = Checkpoints(Path(copied(stopped, tmp_path)) / "checkpoints", CheckpointConfig())
    (step,) = store.steps()
    folder = store.path(step)
    whole = sum(value.numel() for value in read_snapshot(folder).model.values())
    rows = json.loads((folder / "pieces.json").read_text())["tensors"]
    weights = [row for key, row in rows.items() if key.startswith("model/")]
    assert sum(torch.Size(row["shape"]).numel() for row in weights) == whole
    assert any(len({file for file, *_ in row["pieces"]}) == 2 for row in weights)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "manifest.json",
        "pieces.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
        "state.json",
    ]
    content = bytearray((folder / names[3]).read_bytes())
    content[-1] ^= 1
    (folder / names[3]).write_bytes(content)
    with pytest.raises(RunError, match=r"rank-00001\.safetensors: its SHA-256 differs"):
        store.newest()


MOE: dict[str, Any] = {"moe": {"experts": 4, "top_k": 2, "inner": 16}}
MOVES = [
    ({"data": 2, "tensor": 2, "shard": True}, 4, {"tensor": 2}, 2, {}),
    ({"tensor": 2}, 2, {}, 1, {}),
    ({"data": 2, "expert": 2, "shard": True}, 4, {"shard": True}, 2, MOE),
    ({"context": 2, "shard": True}, 2, {"data": 2, "tensor": 2}, 4, {}),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("before", "many", "after", "others", "model"), MOVES)
def test_from_one_layout_to_another(
    tmp_path: Path,
    before: dict[str, Any],
    many: int,
    after: dict[str, Any],
    others: int,
    model: dict[str, Any],
) -> None:
    """Half of a run in one layout, half in another, as a whole one; and in the first one again, to the last bit."""
    loop = {**LOOP, "parallel": before}
    work = Work({**loop, "checkpoint": {"every": 3}}, model=model, folder=str(tmp_path / "whole"))
    whole = together(many, trained, work)[0]
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step-000006")
    shutil.copytree(tmp_path / "whole", tmp_path / "moved")
    again = together(many, trained, work)[0]
    assert again.losses == whole.losses[3:]
    assert all(torch.equal(value, again.weights[name]) for name, value in whole.weights.items())
    moved = replace(work, folder=str(tmp_path / "moved"), loop={**work.loop, "parallel": after})
    rest = trained(moved) if others == 1 else together(others, trained, moved)[0]
    losses, weights = largest_difference(replace(whole, rows=[r for r in whole.rows if r["step"] > 3]), rest)
    assert losses < 1e-6
    assert weights < 1e-6
