"""A kill at every system call of a checkpoint's commit: the same command again gives the same bits, losing at most
one interval and the steps of a write. The commit is the second checkpoint's, which takes the first one's place."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from faults.operations import Operation, commit, record
from faults.server import SMALL, Server, killed, newest_step, state

EVERY = SMALL["checkpoint"]["every"]


def survives(server: Server, small: Path, folder: Path, mode: str, at: int) -> int | None:
    """Dies at operation `at`, goes on; the steps that were lost, None where the run was over before that."""
    life = server.live(folder, loop=SMALL, arm={"mode": mode, "at": at, "root": str(folder.parent)})
    if not killed(life):
        assert life["status"] == 0, life["said"] + server.errors()
        return None
    metrics = folder / "metrics.jsonl"
    reached = metrics.read_text(errors="replace").count('"loss"') if metrics.exists() else 0
    lost = reached - newest_step(folder)
    server.finish(folder, loop=SMALL)
    assert state(folder) == state(small)
    assert not any((folder / "checkpoints").glob(".partial-*"))
    return lost


def enumerate_kills(
    server: Server, small: Path, place: Path, operations: list[Operation], writes: str = "kt"
) -> list[str]:
    """Kills before each of `operations`, writes also in their middle (`writes`); a line for each."""
    lines = []
    for operation in operations:
        for mode in writes if operation.kind == "W" else "k":
            lost = survives(
                server, small, place / f"{mode}{operation.number}" / "run", mode, operation.number
            )
            # A checkpoint under way when the kill comes was begun at most one interval after the one before it.
            assert lost is None or lost <= 2 * EVERY
            lines.append(f"{mode} {operation}: {lost} steps lost")
    return lines


def distinct(operations: list[Operation]) -> list[Operation]:
    """Those before which the folder looks different than before the one before: a sync moves nothing, nor a mode."""
    return [each for before, each in itertools.pairwise(operations) if before.kind not in "FC"]


def test_a_kill_between_any_two_states_of_a_commit(shimmed: Server, small: Path, tmp_path: Path) -> None:
    operations = commit(
        record(shimmed, tmp_path / "log" / "run", tmp_path, loop=SMALL), f"step-{2 * EVERY:06d}"
    )
    kinds = {operation.kind for operation in operations}
    assert {"M", "O", "W", "F", "R", "U", "D"} <= kinds, "the commit is not what this test was written for"
    lines = enumerate_kills(shimmed, small, tmp_path, distinct(operations), writes="t")
    assert len(lines) >= 20


@pytest.mark.exhaustive
def test_a_kill_at_every_operation_of_a_run(shimmed: Server, small: Path, tmp_path: Path) -> None:
    """From the creation of the folder to result.json."""
    operations = record(shimmed, tmp_path / "log" / "run", tmp_path, loop=SMALL)
    lines = enumerate_kills(shimmed, small, tmp_path, operations)
    assert len(lines) > 100
