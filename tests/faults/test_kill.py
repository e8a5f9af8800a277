"""kill -9 at random moments, again and again, and the same command: the same bits as if nothing had been."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from faults.pipelines import EVERY, KINDS, command, made, write_recipe
from faults.server import Server, killed, newest_step, rows, state


def last_logged(folder: Path) -> int:
    """The last step of which a whole row stands in metrics.jsonl."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines[:-1] if line), default=0)


def stage_of(folder: Path) -> str:
    """Where a pipeline was when it was killed."""
    if (folder / "model" / "result.json").exists():
        return "end"
    if (folder / "model" / "inputs.json").exists():
        return "export" if newest_step(folder / "model") == 12 else "training"
    return "tokenizer" if (folder / "corpus" / "result.json").exists() else "corpus"


def kill_until(server: Server, kind: str, place: Path, kills: int, seed: int) -> Counter[str]:
    """Runs one kind's pipeline again and again until it was killed `kills` times; counts kills by stage."""
    whole = write_recipe(place / "whole", kind)
    seconds = server.finish(whole, command=command(whole))["seconds"]
    expected = made(whole)
    draw, seen = random.Random(seed), Counter[str]()
    for number in range(10 * kills):
        path = write_recipe(place / str(number), kind)
        folder = path.parent / "runs" / "run"
        again = 0
        while not (folder / "result.json").exists():
            left = seen["killed"] < kills and again < 6
            life = server.live(
                path, command=command(path), kill_after=draw.uniform(0, seconds) if left else None
            )
            if not killed(life):
                assert life["status"] == 0, life["said"] + server.errors()
                continue
            again += 1
            seen["killed"] += 1
            seen[stage_of(folder)] += 1
            seen["second"] += again > 1
            seen["most lost"] = max(
                seen["most lost"], last_logged(folder / "model") - newest_step(folder / "model")
            )
        assert made(path) == expected
        seen["untidy"] += any(folder.rglob(".partial-*"))
        if seen["killed"] >= kills:
            break
    # A checkpoint that is under way when the kill comes was begun one interval after the last whole one.
    assert seen["most lost"] <= 2 * EVERY
    return seen


@pytest.mark.parametrize("kind", ["experts", "encoder_decoder"])
def test_killed_10_times(server: Server, kind: str, tmp_path: Path) -> None:
    kill_until(server, kind, tmp_path, 10, seed=1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_killed_30_times(server: Server, kind: str, tmp_path: Path) -> None:
    seen = kill_until(server, kind, tmp_path, 30, seed=2)
    assert seen["second"] > 5
    assert seen["training"] > 5
    assert not seen["untidy"]  # met once in a dozen of the shorter runs, not understood yet


@pytest.mark.parametrize("asynchronous", [False, True])
def test_at_most_one_interval_is_lost(server: Server, tmp_path: Path, asynchronous: bool) -> None:
    """Written in its way, a checkpoint is whole before the next step; beside it, the steps of a write may be lost."""
    loop = {
        "checkpoint": {"every": 4, "asynchronous": asynchronous},
        "log_every": 1,
        "budget": {"steps": 400},
    }
    draw = random.Random(3)
    for number in range(3):
        folder = tmp_path / str(number)
        life = server.live(folder, loop=loop, kill_after=draw.uniform(0.7, 1.2))
        if killed(life):
            lost = last_logged(folder) - newest_step(folder)
            assert lost <= (8 if asynchronous else 4)


def test_terminated_runs_save_and_go_on(server: Server, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    loop = {"budget": {"steps": 60}, "checkpoint": {"every": 7}}
    seconds = server.finish(whole, loop=loop)["seconds"]
    began = time.monotonic()
    life = server.live(folder, loop=loop, kill_after=seconds / 2, signal=signal.SIGTERM)
    assert time.monotonic() - began - seconds / 2 < 25
    assert life["status"] == 143
    assert "which is saved; run the same command again" in life["said"]
    assert life["said"].count("\n") == 1
    server.finish(folder, loop=loop)
    assert state(folder) == state(whole)


@pytest.mark.exhaustive
def test_terminated_while_code_is_compiled(server: Server, tmp_path: Path) -> None:
    """A compiler may take longer than clusters wait, and there is nothing to save: the run ends at once."""
    path = write_recipe(tmp_path / "run", "decoder")
    server.finish(path, command=command(path))
    compiled = [*command(path), "model.compile=on"]
    life = server.live(path, command=compiled, kill_after=6.0, signal=signal.SIGTERM)
    assert life["status"] == 143, life["said"] + server.errors()
    assert life["said"].splitlines()[-1].endswith("; run the same command again to go on"), life["said"]
    assert life["seconds"] < 6 + 25
    assert newest_step(path.parent / "runs" / "run" / "model") == 0, "it had not begun"
    server.finish(path, command=command(path))


def test_the_comparison_would_notice(server: Server, small: Path, tmp_path: Path) -> None:
    """One changed last bit of one loss is seen."""
    found = [json.loads(line) for line in (small / "metrics.jsonl").read_text().splitlines()]
    found[3]["loss"] *= 1 + 2**-52
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    assert rows(tmp_path) != rows(small)
