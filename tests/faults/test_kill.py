"""kill -9 at random moments, run again: the same losses to the last bit, the same final weights."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HARNESS = Path(__file__).with_name("harness.py")


class Trainer:
    """The forking trainer of harness.py."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors.open("w")
        self.process = subprocess.Popen(
            [sys.executable, str(HARNESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def live(
        self, folder: Path, kill_after: float | None = None, number: int = signal.SIGKILL
    ) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"folder": str(folder), "kill_after": kill_after, "signal": number}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()
        self.errors.close()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    server = Trainer(tmp_path_factory.mktemp("harness") / "stderr.txt")
    yield server
    server.close()


@pytest.fixture(scope="module")
def reference(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a run that nobody disturbed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    life = trainer.live(folder)
    assert life["status"] == 0, Path(trainer.errors.name).read_text()
    return folder, life["seconds"]


def losses(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


def weights(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())["weights"]


def kill_until(
    trainer: Trainer, reference: tuple[Path, float], place: Path, kills: int, seed: int
) -> dict[str, int]:
    """Runs the training again and again, killing it at random moments, until it was killed `kills` times."""
    whole, seconds = reference
    draw = random.Random(seed)
    seen = {"killed": 0, "while writing": 0, "runs": 0}
    while seen["killed"] < kills:
        folder = place / f"run-{seen['runs']}"
        seen["runs"] += 1
        while not (folder / "result.json").exists():
            life = trainer.live(folder, draw.uniform(0.0, seconds / 4) if seen["killed"] < kills else None)
            assert life["status"] in (0, -signal.SIGKILL), Path(trainer.errors.name).read_text()
            seen["killed"] += life["status"] != 0
            seen["while writing"] += any((folder / "checkpoints").glob(".partial-*"))
        assert losses(folder) == losses(whole)
        assert weights(folder) == weights(whole)
        assert not any((folder / "checkpoints").glob(".partial-*"))
    return seen


def test_killed_20_times(trainer: Trainer, reference: tuple[Path, float], tmp_path: Path) -> None:
    kill_until(trainer, reference, tmp_path, 20, seed=1)


@pytest.mark.slow
def test_killed_100_times(trainer: Trainer, reference: tuple[Path, float], tmp_path: Path) -> None:
    seen = kill_until(trainer, reference, tmp_path, 100, seed=2)
    assert seen["while writing"] > 0  # some of the kills fell into the writing of a checkpoint


def test_terminated_runs_save_and_go_on(
    trainer: Trainer, reference: tuple[Path, float], tmp_path: Path
) -> None:
    whole, seconds = reference
    folder = tmp_path / "run"
    life = trainer.live(folder, seconds / 2, signal.SIGTERM)
    assert life["status"] == 143
    assert "which is saved; run the same command again" in (folder / "error.txt").read_text()
    assert trainer.live(folder)["status"] == 0
    assert losses(folder) == losses(whole)
    assert weights(folder) == weights(whole)


def test_the_harness_would_notice(reference: tuple[Path, float], tmp_path: Path) -> None:
    """The comparison is not blind: one changed last bit of one loss is seen."""
    whole, _ = reference
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rows[5]["loss"] = float.fromhex(rows[5]["loss"].hex()) * (1 + 2**-52)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert losses(tmp_path) != losses(whole)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root"
)
def test_a_full_disk_ends_with_a_line_and_the_run_goes_on(
    trainer: Trainer, reference: tuple[Path, float], tmp_path: Path
) -> None:
    whole, _ = reference
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], check=False
    ).returncode:
        pytest.skip("this machine does not allow mounts")
    try:
        life = trainer.live(disk / "run")
        assert life["status"] == 1
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert not any((disk / "run" / "checkpoints").glob(".partial-*"))
        assert trainer.live(disk / "run")["status"] == 0
        assert losses(disk / "run") == losses(whole)
        assert weights(disk / "run") == weights(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
