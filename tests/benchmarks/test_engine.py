"""The race of benchmarks/engine.py: turns, what stands still between them, and how its numbers are made."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
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


@pytest.fixture(scope="module")
def race() -> ModuleType:
    """benchmarks/engine_peers/race.py."""
    place = importlib.util.spec_from_file_location("engine_race", PEERS / "race.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules[place.name] = module
    place.loader.exec_module(module)
    return module


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
