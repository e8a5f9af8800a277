"""The power goes: whatever of the unsynced a disk kept, the run goes on to the same bits; no checkpoint is half."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.disk import Disk, Tree, materialize
from faults.operations import Operation, commit, record
from faults.server import SMALL, Server, newest_step, state

from nalanda.base import io

EVERY = SMALL["checkpoint"]["every"]


def trees(operations: list[Operation], within: list[Operation]) -> list[tuple[Operation, int, Tree]]:
    """Every disk that a power loss during `within` may leave, with the step that must not be lost any more."""
    disk, found, seen, safe = Disk(), [], set(), 0
    for operation in operations:
        disk.apply(operation)
        if operation.kind == "F" and operation.path == "run/checkpoints":
            folder = disk._at("run/checkpoints")
            names = [name for (above, name) in disk.safe if above is folder and name.startswith("step-")]
            safe = max((int(name[5:]) for name in names), default=0)
        if operation in within:
            for tree in disk.after_power_loss():
                key = tuple(sorted(tree.items(), key=lambda item: item[0]))
                if key not in seen:
                    seen.add(key)
                    found.append((operation, safe, tree))
    return found


def whole_checkpoints(folder: Path) -> None:
    """No checkpoint that has its name is damaged."""
    for path in (folder / "checkpoints").glob("step-*"):
        io.verify_manifest(path)


def goes_on(server: Server, small: Path, place: Path, tree: Tree, safe: int) -> None:
    place.mkdir()
    materialize(tree, place)
    whole_checkpoints(place / "run")
    assert newest_step(place / "run") >= safe
    server.finish(place / "run", loop=SMALL)
    assert state(place / "run") == state(small)
    assert "damaged" not in (place / "run" / "metrics.jsonl").read_text()


def test_power_lost_during_a_commit(shimmed: Server, small: Path, tmp_path: Path) -> None:
    operations = record(shimmed, tmp_path / "log" / "run", tmp_path, loop=SMALL)
    found = trees(operations, commit(operations, f"step-{2 * EVERY:06d}"))
    assert len(found) > 40
    for number, (_, safe, tree) in enumerate(found):
        materialize(tree, tmp_path / f"look-{number}")
        whole_checkpoints(tmp_path / f"look-{number}" / "run")
        assert newest_step(tmp_path / f"look-{number}" / "run") >= safe
    for number, (_, safe, tree) in enumerate(found[:: max(1, len(found) // 15)]):
        goes_on(shimmed, small, tmp_path / str(number), tree, safe)


@pytest.mark.exhaustive
def test_power_lost_at_any_operation_of_a_run(shimmed: Server, small: Path, tmp_path: Path) -> None:
    operations = record(shimmed, tmp_path / "log" / "run", tmp_path, loop=SMALL)
    found = trees(operations, operations)
    assert len(found) > 150
    for number, (_, safe, tree) in enumerate(found):
        goes_on(shimmed, small, tmp_path / str(number), tree, safe)


def test_the_simulation_would_notice(tmp_path: Path) -> None:
    """A file renamed without a sync may be empty, and one whose folder is not synced may be absent."""

    def operations(*steps: tuple[str, str, str, bytes]) -> list[Operation]:
        return [Operation(i, kind, path, other, 0, data) for i, (kind, path, other, data) in enumerate(steps)]

    def left(*steps: tuple[str, str, str, bytes]) -> set[bytes | None]:
        disk = Disk()
        for operation in operations(*steps):
            disk.apply(operation)
        return {tree.get("a", b"(absent)") for tree in disk.after_power_loss()}

    write = (("O", "d", "", b""), ("W", "d", "", b"1234"))
    assert left(*write, ("R", "d", "a", b"")) == {b"(absent)", b"", b"12", b"1234"}
    assert left(*write, ("F", "d", "", b""), ("R", "d", "a", b"")) == {b"(absent)", b"1234"}
    assert left(*write, ("F", "d", "", b""), ("R", "d", "a", b""), ("F", ".", "", b"")) == {b"1234"}
    assert left(*write, ("R", "d", "a", b""), ("F", ".", "", b"")) == {b"", b"12", b"1234"}
