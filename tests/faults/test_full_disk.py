"""A disk that is full at any write: one line, what was saved still loads, and with room the run ends with the same
bits."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from faults.operations import Operation, commit, record
from faults.pipelines import command, made, write_recipe
from faults.server import SMALL, Server, newest_step, state

from nalanda.base import io

WRITES = "OWMF"
LINE = re.compile(
    r"^(nalanda: )?\S+: the disk is full \(.*\d (K|M)iB free\); nothing half-written was kept\. .*again.*$"
)


def stops_and_goes_on(server: Server, small: Path, folder: Path, mode: str, operation: Operation) -> str:
    """The line of a run whose disk is full from (f) or at (o) an operation; then there is room."""
    arm = {"mode": mode, "at": operation.number, "root": str(folder.parent)}
    life = server.live(folder, loop=SMALL, arm=arm)
    if life["status"] == 0:
        assert mode == "o", operation  # refused once, and not needed: who holds the lock
    else:
        assert life["status"] == 1, f"{operation}: {life['said']}{server.errors()}"
        lines = life["said"].splitlines()
        assert len(lines) == 1, lines
        assert LINE.match(lines[0]), f"{operation}: {lines[0]}"
    assert not any((folder / "checkpoints").glob(".partial-*"))
    for path in (folder / "checkpoints").glob("step-*"):
        io.verify_manifest(path)
    before = newest_step(folder)
    server.finish(folder, loop=SMALL)
    assert state(folder) == state(small)
    assert before % SMALL["checkpoint"]["every"] == 0
    return life["said"]


def test_full_at_any_write_of_a_commit(shimmed: Server, small: Path, tmp_path: Path) -> None:
    every = SMALL["checkpoint"]["every"]
    operations = commit(
        record(shimmed, tmp_path / "log" / "run", tmp_path, loop=SMALL), f"step-{2 * every:06d}"
    )
    wanted = [o for o in operations if o.kind in WRITES and ".partial-step-000004" in o.path]
    said = [
        stops_and_goes_on(shimmed, small, tmp_path / str(operation.number) / "run", "f", operation)
        for operation in wanted[::2]
    ]
    assert len(said) > 5
    assert all("KiB needed" in line for line in said if "step-" in line)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", ["f", "o"])
def test_full_at_any_write_of_a_run(shimmed: Server, small: Path, tmp_path: Path, mode: str) -> None:
    for operation in record(shimmed, tmp_path / "log" / "run", tmp_path, loop=SMALL):
        if operation.kind in WRITES:
            stops_and_goes_on(shimmed, small, tmp_path / str(operation.number) / "run", mode, operation)


@pytest.mark.exhaustive
def test_full_at_any_write_of_a_pipeline(shimmed: Server, tmp_path: Path) -> None:
    """Every third operation that needs room, over corpus, tokenizer, training and export."""
    whole = write_recipe(tmp_path / "whole", "encoder_decoder")
    folder = whole.parent / "runs"
    folder.mkdir()
    operations = record(shimmed, folder / "run", tmp_path, command=command(whole))
    expected = made(whole)
    for operation in [o for o in operations if o.kind in WRITES][::3]:
        path = write_recipe(tmp_path / str(operation.number), "encoder_decoder")
        arm = {"mode": "f", "at": operation.number, "root": str(path.parent / "runs")}
        (path.parent / "runs").mkdir()
        life = shimmed.live(path, command=command(path), arm=arm)
        assert life["status"] == 1, f"{operation}: {life['status']} {life['said']}{shimmed.errors()}"
        assert LINE.match(life["said"].splitlines()[-1]), f"{operation}: {life['said']}"
        shimmed.finish(path, command=command(path))
        assert made(path) == expected


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root"
)
def test_a_disk_that_is_really_full(server: Server, small: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine does not allow mounts")
    try:
        life = server.live(disk / "run", loop=SMALL)
        assert life["status"] == 1
        assert LINE.match(life["said"].splitlines()[0]), life["said"]
        assert not any((disk / "run" / "checkpoints").glob(".partial-*"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        server.finish(disk / "run", loop=SMALL)
        assert state(disk / "run") == state(small)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
