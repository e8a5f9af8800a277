"""Atomic files and folders: whole or absent; damage is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nalanda.base import io
from nalanda.base.errors import RunError, UserError


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    io.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), io.atomic_writer(path) as file:
        file.write("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    io.write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.txt: the disk is full .* nothing half-written"):
        io.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_the_manifest_finds_damage(tmp_path: Path, harm: str) -> None:
    with io.atomic_folder(tmp_path / "f") as draft:
        (draft / "x.bin").write_bytes(b"hello")
        (draft / "y.bin").write_bytes(b"world")
    io.verify_manifest(tmp_path / "f")
    target = tmp_path / "f" / "y.bin"
    {
        "flip": lambda: target.write_bytes(b"wormd"),
        "truncate": lambda: target.write_bytes(b"wo"),
        "delete": target.unlink,
    }[harm]()
    with pytest.raises(RunError, match=r"y\.bin"):
        io.verify_manifest(tmp_path / "f")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), io.atomic_folder(tmp_path / "f") as draft:
        (draft / "x").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        with io.atomic_folder(tmp_path / "f") as draft:
            (draft / "x").write_text(text)
    assert (tmp_path / "f" / "x").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_fingerprint_ignores_the_order_of_keys() -> None:
    assert io.fingerprint({"a": 1, "b": [2]}) == io.fingerprint({"b": [2], "a": 1})
    assert io.fingerprint({"a": 1}) != io.fingerprint({"a": 2})


def test_files_of_a_folder_can_be_read_by_others(tmp_path: Path) -> None:
    with io.atomic_folder(tmp_path / "f") as draft:
        (draft / "x").write_text("private")
        (draft / "x").chmod(0o600)
    (tmp_path / "plain").write_text("as the umask says")
    assert (tmp_path / "f" / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
