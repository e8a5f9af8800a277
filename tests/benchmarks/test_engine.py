"""The race of benchmarks/engine.py: turns, what stands still between them, and how its numbers are made."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from argparse import Namespace
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "engine_peers"

RUNNER = """
import sys, threading, time
sys.path.insert(0, {peers!r})
from turns import Turns
turns = Turns()
turns.imported()
beats = open({beats!r}, "wb", buffering=0)
def beat():
    while True:
        beats.write(b"x")
        time.sleep(0.001)
threading.Thread(target=beat, daemon=True).start()
turns.built(parameters=7)
with turns.race():
    while True:
        time.sleep(turns.plan["nap"])
        turns.step_done()
turns.report(tokens=[10] * turns.steps, losses=[2.0, 1.0])
"""


def load(name: str) -> ModuleType:
    """A file of benchmarks/engine_peers."""
    place = importlib.util.spec_from_file_location(f"engine_{name}", PEERS / f"{name}.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules[place.name] = module
    place.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def race() -> ModuleType:
    """benchmarks/engine_peers/race.py."""
    return load("race")


@pytest.fixture(scope="module")
def report(race: ModuleType) -> ModuleType:
    """benchmarks/engine_peers/report.py, which imports race by its bare name."""
    sys.modules["race"] = race
    try:
        return load("report")
    finally:
        del sys.modules["race"]


def test_a_contestant_works_in_its_turns_and_stands_still_between_them(
    race: ModuleType, tmp_path: Path
) -> None:
    beats = tmp_path / "beats"
    script = RUNNER.format(peers=str(PEERS), beats=str(beats))
    plan = {"folder": str(tmp_path / "run"), "nap": 0.02}
    with race.Contestant("toy", [sys.executable, "-c", script], plan, dict(os.environ)) as toy:
        assert toy.imported() > 0
        assert not beats.exists()
        assert 0.06 <= toy.turn(3) < 2
        time.sleep(0.05)  # the signal is on its way
        before = beats.stat().st_size
        time.sleep(0.2)
        assert beats.stat().st_size == before > 10
        assert toy.turn(2, mark=True) >= 0.04
        assert toy.cpu_seconds() > 0
        facts = toy.end()
    assert facts["tokens"] == [10] * 5
    assert facts["parameters"] == 7
    assert facts["losses"] == [2.0, 1.0]
    assert facts["peak"] >= facts["steady_peak"]


def test_a_contestant_that_fails_is_named_with_what_it_printed(race: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such optimizer')"]
    plan = {"folder": str(tmp_path / "run")}
    with (
        race.Contestant("toy", command, plan, dict(os.environ)) as toy,
        pytest.raises(race.ContestantError, match=r"(?s)toy has ended.*no such optimizer"),
    ):
        toy.imported()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_everybody_comes_at_every_place_equally_often(race: ModuleType, count: int) -> None:
    rounds = [race.order(count, turn) for turn in range(2 * count)]
    assert all(sorted(places) == list(range(count)) for places in rounds)
    for one in range(count):
        for place in range(count):
            assert sum(places[place] == one for places in rounds) == 2
        for other in set(range(count)) - {one}:
            assert sum(places.index(one) < places.index(other) for places in rounds) == count


def test_rates_leave_the_warm_up_out_and_ratios_are_by_round(race: ModuleType) -> None:
    def record(tokens: list[int], seconds: list[float]) -> object:
        return race.Record("x", 2, warm_up=1, turns=seconds, facts={"tokens": tokens})

    one = record([1000, 10, 20, 30, 40, 99], [3.0, 7.0])
    other = record([1000, 5, 5, 5, 5], [1.0, 2.0])
    assert one.turn_tokens() == [30, 70]  # type: ignore[attr-defined]
    assert one.rate() == pytest.approx(10)  # type: ignore[attr-defined]
    assert race.ratios(one, other) == pytest.approx([1.0, 2.0])


def test_the_page_compares_with_ours_and_names_who_failed(race: ModuleType, report: ModuleType) -> None:
    def record(name: str, seconds: float, **facts: object) -> object:
        memory = {"peak": 100 << 20, "steady_peak": 90 << 20, "parameters": 1_000_000, "losses": [9.0, 8.0]}
        return race.Record(
            name, 1, turns=[seconds] * 2, cpu_seconds=1.0, facts={"tokens": [100, 100], **memory, **facts}
        )

    records = [
        record("nalanda", 1.0, flops_per_token=3.0),
        record("other", 2.5),
        record("matmul-peak", 0.25, settings={"size": 8}),
    ]
    options = Namespace(jobs="causal", contestants="nalanda,other", rounds=2, threads=2, every=50)
    result = report.Result("causal", records, {"broken": "broken has ended:\nno such option"}, 0.25)
    text = report.page([result], options, date(2026, 1, 2))
    other = next(line for line in text.splitlines() if line.startswith("| other"))
    assert "**2.50 ×** (2.50 to 2.50) | 2.50 ×" in other
    ours = next(line for line in text.splitlines() if line.startswith("| nalanda"))
    assert "| 75 % |" in ours  # 100 tokens/s of 3 FLOPs, of 400 FLOP/s
    assert "25 % of the machine's time" in text
    assert "broken did not run: `no such option`" in text
