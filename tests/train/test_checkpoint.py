"""Checkpoints come back as they went, damage is found and named, a full disk costs nothing that was saved."""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nalanda.base import io
from nalanda.base.errors import RunError, UserError
from nalanda.train import checkpoint
from nalanda.train.checkpoint import (
    CheckpointConfig,
    Checkpoints,
    Snapshot,
    read_snapshot,
    restore_weights,
    weights_of,
    write_snapshot,
)


def snapshot(step: int, model: nn.Module) -> Snapshot:
    weights, ties = weights_of(model)
    moments = {f"{name}/exp_avg": torch.full_like(value, step) for name, value in weights.items()}
    state = {"budget": {"seconds": 0.1 + 0.2}, "hooks": {}}
    return Snapshot(step, weights, moments, {"positions": torch.rand(3, dtype=torch.float64)}, state, ties)


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", CheckpointConfig(every=1, keep=2))


def test_round_trip_is_exact_and_tied_weights_are_stored_once(store: Checkpoints, toy: Any) -> None:
    model = toy(seed=1)
    saved = snapshot(3, model)
    store.save(saved)
    found, damaged = store.newest()
    assert found is not None
    assert damaged == []
    assert found.step == 3
    assert found.state == saved.state
    assert found.ties == {"heads.tokens.weight": "embedding.weight"}
    assert "heads.tokens.weight" not in found.model
    for name in ("model", "optimizer", "extra"):
        one, two = getattr(found, name), getattr(saved, name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) and one[key].dtype == two[key].dtype for key in one)
    other = toy(seed=2)
    restore_weights(other, found.model, found.ties, "x")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    assert other.heads["tokens"].weight is other.embedding.weight


def test_the_newest_are_kept(store: Checkpoints, toy: Any) -> None:
    for step in (1, 2, 3, 4):
        store.save(snapshot(step, toy()))
    assert store.steps() == [3, 4]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_any_damage_is_named_and_the_one_before_used(
    store: Checkpoints, toy: Any, file: str, damage: str
) -> None:
    store.save(snapshot(1, toy()))
    path = store.save(snapshot(2, toy())) / file
    content = bytearray(path.read_bytes())
    draw = random.Random(f"{file} {damage}")
    if damage == "flip":
        content[draw.randrange(len(content))] ^= 0xFF
    elif damage == "truncate":
        content = content[: draw.randrange(1, len(content))]
    elif damage == "empty":
        content = bytearray()
    path.unlink() if damage == "delete" else path.write_bytes(content)
    found, damaged = store.newest()
    assert found is not None
    assert found.step == 1
    assert len(damaged) == 1
    assert file in damaged[0] or (file == "manifest.json" and "step-000002" in damaged[0])
    store.remove_after(found.step)
    assert store.steps() == [1]


def test_every_byte_of_a_manifest_matters_or_is_harmless(store: Checkpoints, toy: Any) -> None:
    """A flipped byte of the manifest never crashes: it is noticed, or says the same."""
    store.save(snapshot(1, toy()))
    path = store.save(snapshot(2, toy())) / "manifest.json"
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :])
        found, damaged = store.newest()
        assert found is not None
        assert (found.step == 1) == bool(damaged)


def test_when_all_are_damaged_it_is_an_error(store: Checkpoints, toy: Any) -> None:
    for step in (1, 2):
        (store.save(snapshot(step, toy())) / "state.json").unlink()
    with pytest.raises(RunError, match=r"no checkpoint is whole .*step-000002/state\.json: missing"):
        store.newest()


def test_a_checkpoint_of_a_newer_version_is_one_line_and_stays(
    store: Checkpoints, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(snapshot(1, toy()))
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    path = store.save(snapshot(2, toy()))
    with pytest.raises(RunError, match="another version of Nalanda"):
        read_snapshot(store.path(1))
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"step-000002: written by a newer version .* upgrade") as caught:
        store.newest()
    assert "\n" not in str(caught.value)
    assert path.exists()


def test_folders_that_changed_places_are_noticed(store: Checkpoints, toy: Any) -> None:
    for step in (1, 2):
        store.save(snapshot(step, toy()))
    store.path(1).rename(store.folder / "kept")
    store.path(2).rename(store.path(1))
    (store.folder / "kept").rename(store.path(2))
    with pytest.raises(RunError, match=r"step-000002: state\.json says step 1"):
        store.newest()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("up.bias"), "has no weight 'up.bias'"),
        (
            lambda w: w.update({"up.bias": torch.zeros(3)}),
            r"weight 'up.bias' is \(3,\), the model's is \(16,\)",
        ),
        (lambda w: w.update({"gone": torch.zeros(3)}), "holds a weight 'gone'"),
    ],
)
def test_weights_that_do_not_fit_are_named(toy: Any, edit: Callable[[Any], Any], message: str) -> None:
    weights, ties = weights_of(toy())
    edit(weights)
    with pytest.raises(RunError, match=f"here: {message}"):
        restore_weights(toy(), weights, ties, "here")


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_a_full_disk_keeps_what_was_saved(
    store: Checkpoints, toy: Any, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(snapshot(1, toy()))
    whole, real_json = io.HashedFile.write, io.write_json
    names = iter(["model.safetensors", "optimizer.safetensors", "state.json"])
    real_writer = io.hashed_writer

    @contextlib.contextmanager
    def writer(path: Path, known: io.Digests) -> Iterator[io.HashedFile]:
        assert path.name == next(names)
        with real_writer(path, known) as opened:
            if path.name == file:
                whole(opened, b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            yield opened

    def no_json(path: Path, values: Any) -> None:
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_json(path, values)

    monkeypatch.setattr(io, "hashed_writer", writer)
    monkeypatch.setattr(io, "write_json", no_json)
    with pytest.raises(UserError, match=r"the disk is full \(\d+ KiB needed, [\d,]+ [KM]iB free\)"):
        store.save(snapshot(2, toy()))
    monkeypatch.undo()
    assert [p.name for p in store.folder.iterdir()] == ["step-000001"]
    found, damaged = store.newest()
    assert found is not None
    assert (found.step, damaged) == (1, [])


def test_a_half_written_folder_of_a_killed_process_is_no_checkpoint(store: Checkpoints, toy: Any) -> None:
    store.save(snapshot(1, toy()))
    draft = store.folder / ".partial-step-000002abc"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"half")
    found, damaged = store.newest()
    assert found is not None
    assert (found.step, damaged) == (1, [])
    store.save(snapshot(2, toy()))
    assert not draft.exists()


def test_saving_a_step_again_replaces_it(store: Checkpoints, toy: Any) -> None:
    store.save(snapshot(1, toy(seed=1)))
    write_snapshot(store.path(1), snapshot(1, toy(seed=2)))
    found, _ = store.newest()
    assert found is not None
    assert torch.equal(found.model["up.weight"], toy(seed=2).up.weight)
