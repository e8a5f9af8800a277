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


def test_a_seal_covers_name_and_content(tmp_path: Path) -> None:
    values = {"a": (1, 2), "b": {"ü": float("inf")}}
    io.write_sealed(tmp_path / "x.json", values)
    assert io.read_sealed(tmp_path / "x.json") == {"a": [1, 2], "b": {"ü": float("inf")}}
    content = (tmp_path / "x.json").read_bytes()
    for place in range(len(content)):
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        (tmp_path / "x.json").write_bytes(flipped)
        if content[place : place + 1].isspace() and flipped[place : place + 1] in b"\t\r\n\x0b ":
            continue
        with pytest.raises(RunError, match=r"x\.json"):
            io.read_sealed(tmp_path / "x.json")
    (tmp_path / "y.json").write_bytes(content)
    with pytest.raises(RunError, match="seal"):
        io.read_sealed(tmp_path / "y.json")


def test_a_replaced_folder_is_never_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two folders cannot change places in one step: what a kill leaves between is mended."""
    monkeypatch.setattr(io, "_exchange", lambda one, other: False)
    for text in ("one", "two"):
        with io.atomic_folder(tmp_path / "f") as draft:
            (draft / "x").write_text(text)
    assert (tmp_path / "f" / "x").read_text() == "two"
    (tmp_path / ".partial-old-1").mkdir()
    (tmp_path / "f").rename(tmp_path / ".partial-old-1" / "f")
    io.remove_partials(tmp_path)
    assert (tmp_path / "f" / "x").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_two_folders_change_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if io._exchange(tmp_path / "a", tmp_path / "b"):
        assert (tmp_path / "a" / "b").exists()
        assert (tmp_path / "b" / "a").exists()


def test_a_removed_folder_is_gone_or_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x").touch()

    def killed(path: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(ZeroDivisionError):
        io.remove_folder(tmp_path / "f")
    monkeypatch.undo()
    assert not (tmp_path / "f").exists()
    io.remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_hashed_while_written_is_what_a_reader_hashes(tmp_path: Path) -> None:
    known: io.Digests = {}
    with io.atomic_folder(tmp_path / "f", known=known) as draft:
        with io.hashed_writer(draft / "x", known) as file:
            file.write(b"abc")
            file.write(memoryview(bytes(20_000_000)))
        (draft / "y").write_text("read again")
    io.verify_manifest(tmp_path / "f")
    assert io.read_json(tmp_path / "f" / "manifest.json")["files"]["x"] == known["x"]


def test_a_manifest_within_is_covered_and_checked(tmp_path: Path) -> None:
    with io.atomic_folder(tmp_path / "f" / "inner") as draft:
        (draft / "x").write_text("1")
    io.write_manifest(tmp_path / "f")
    assert list(io.read_json(tmp_path / "f" / "manifest.json")["files"]) == ["inner/manifest.json"]
    io.verify_manifest(tmp_path / "f")
    (tmp_path / "f" / "inner" / "x").write_text("2")
    with pytest.raises(RunError, match="inner/x"):
        io.verify_manifest(tmp_path / "f")
