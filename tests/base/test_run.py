"""Run folders: one owner at a time, nothing foreign overwritten, done means done."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from nalanda.base.errors import RunError
from nalanda.base.run import Run, difference, fingerprint, fingerprint_of

CONFIG: dict[str, Any] = {"verb": "train", "optimizer": {"lr": 1e-3}, "corpus": "runs/a/corpus"}
INPUTS = {"corpus": "0123"}
FORK = multiprocessing.get_context("fork")


def test_a_finished_run_is_done_and_keeps_its_result(tmp_path: Path) -> None:
    with Run.open(tmp_path / "r", CONFIG, INPUTS) as run:
        assert not run.done
        run.log({"step": 1, "loss": float("nan")})
        run.finish({"loss": 2.0})
    with Run.open(tmp_path / "r", CONFIG, INPUTS) as again:
        assert again.done
        assert again.result()["loss"] == 2.0
        assert again.result()["peak_memory_bytes"] > 0
    assert (tmp_path / "r" / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'
    assert fingerprint_of(tmp_path / "r") == fingerprint(CONFIG, INPUTS, 1)


def test_a_folder_of_another_config_is_refused_and_the_key_named(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG, INPUTS):
        pass
    other = {**CONFIG, "optimizer": {"lr": 2e-3}}
    with pytest.raises(RunError, match=r"optimizer\.lr: 0\.001 -> 0\.002"):
        Run.open(tmp_path, other, INPUTS)
    with pytest.raises(RunError, match=r"input\.corpus"):
        Run.open(tmp_path, CONFIG, {"corpus": "4567"})
    with Run.open(tmp_path, CONFIG, INPUTS):  # a refusal gives the lock back
        pass


def test_replacing_keeps_the_old_content_and_takes_it_back(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    with Run.open(folder, CONFIG, INPUTS) as run:
        run.finish({"loss": 1.0})
    other = {**CONFIG, "optimizer": {"lr": 2e-3}}
    with Run.open(folder, other, INPUTS, replace=True) as run:
        assert not run.done
        run.finish({"loss": 2.0})
    with Run.open(folder, CONFIG, INPUTS, replace=True) as run:
        assert run.done
        assert run.result()["loss"] == 1.0


def test_a_folder_that_is_no_run_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not a run folder"):
        Run.open(tmp_path, CONFIG, INPUTS)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_place_of_an_input_does_not_change_the_fingerprint() -> None:
    moved = {**CONFIG, "corpus": "/elsewhere/corpus"}
    assert fingerprint(CONFIG, INPUTS, 1) == fingerprint(moved, INPUTS, 1)
    assert fingerprint(CONFIG, INPUTS, 1) != fingerprint(CONFIG, {"corpus": "9"}, 1)
    assert fingerprint(CONFIG, INPUTS, 1) != fingerprint(CONFIG, INPUTS, 2)


def test_metrics_are_cut_back_to_a_step(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG, INPUTS) as run:
        for step in (1, 2, 3):
            run.log({"step": step})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 2, "lo')  # a kill in the middle of a line
        run.rewind_metrics(2)
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def _hold(folder: Path, ready: Any) -> None:
    with Run.open(folder, CONFIG, INPUTS):
        ready.set()
        time.sleep(60)


def test_the_second_process_is_refused_at_once_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    ready = FORK.Event()
    holder = FORK.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(10)
    start = time.monotonic()
    with pytest.raises(RunError, match=f"held by process {holder.pid}"):
        Run.open(tmp_path, CONFIG, INPUTS)
    assert time.monotonic() - start < 1
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with Run.open(tmp_path, CONFIG, INPUTS):
        pass


def _race(folder: Path, start: Any, won: Any, over: Any) -> None:
    start.wait()
    try:
        run = Run.open(folder, CONFIG, INPUTS)
    except RunError:
        return
    with won.get_lock():
        won.value += 1
    over.wait()
    run.close()


def test_twenty_races_have_one_winner_each(tmp_path: Path) -> None:
    for race in range(20):
        start, over = FORK.Event(), FORK.Event()
        won = FORK.Value("i", 0)
        racers = [FORK.Process(target=_race, args=(tmp_path / str(race), start, won, over)) for _ in range(2)]
        for racer in racers:
            racer.start()
        start.set()
        deadline = time.monotonic() + 20
        while sum(r.is_alive() for r in racers) > 1 and time.monotonic() < deadline:
            time.sleep(0.005)
        over.set()
        for racer in racers:
            racer.join()
        assert won.value == 1


def test_difference_names_nested_keys() -> None:
    assert difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 2}, "c": 2}) == ["a.b: 1 -> 2"]
