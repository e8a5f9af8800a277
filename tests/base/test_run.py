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
from nalanda.base.lock import is_held
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


OTHER = {**CONFIG, "optimizer": {"lr": 2e-3}}
THIRD = {**CONFIG, "optimizer": {"lr": 3e-3}}


class Killed(BaseException):
    pass


def _killed_after(moves: int, monkeypatch: pytest.MonkeyPatch, folder: Path, config: dict[str, Any]) -> bool:
    """Opens `folder` for `config` and dies after so many renames of files; whether it got to die."""
    whole, left = os.replace, moves

    def replace(source: Any, target: Any) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        whole(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        try:
            Run.open(folder, config, INPUTS, replace=True).close()
        except Killed:
            return True
    return False


def _make(folder: Path, config: dict[str, Any], loss: float) -> None:
    with Run.open(folder, config, INPUTS, replace=True) as run:
        assert not run.done
        run.log({"loss": loss})
        for name in ("a", "z"):
            (folder / name).mkdir()
            (folder / name / "x").write_text(str(loss))
        run.finish({"loss": loss})


def _whole(folder: Path, config: dict[str, Any], loss: float) -> None:
    with Run.open(folder, config, INPUTS, replace=True) as run:
        assert run.done
        assert run.result()["loss"] == loss
        assert run.result()["fingerprint"] == run.fingerprint
        assert (folder / "metrics.jsonl").read_text() == f'{{"loss": {loss}}}\n'
        assert [(folder / name / "x").read_text() for name in ("a", "z")] == [str(loss)] * 2
        assert (folder / "config.yaml").exists()


@pytest.mark.parametrize("then", [CONFIG, OTHER, THIRD], ids=["old", "new", "third"])
@pytest.mark.parametrize("both_made", [False, True])
def test_a_kill_between_any_two_moves_loses_nothing_and_mixes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: dict[str, Any], both_made: bool
) -> None:
    for moves in range(40):
        folder = tmp_path / str(moves) / "train"
        if both_made:
            _make(folder, OTHER, 2.0)
        _make(folder, CONFIG, 1.0)
        killed = _killed_after(moves, monkeypatch, folder, OTHER)
        if killed and (folder / "result.json").exists():
            assert fingerprint_of(folder) == fingerprint(CONFIG, INPUTS, 1)
            assert (folder / "z").exists()
        if then is THIRD:
            _make(folder, THIRD, 3.0)
            _whole(folder, THIRD, 3.0)
        if then is OTHER and not both_made:
            _make(folder, OTHER, 2.0)
        if both_made:
            _whole(folder, OTHER, 2.0)
        _whole(folder, CONFIG, 1.0)
        if not killed:
            break
    assert 6 < moves < 39


def test_a_kill_while_a_folder_is_claimed_does_not_lock_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moves in range(3):
        folder = tmp_path / str(moves)
        assert _killed_after(moves, monkeypatch, folder, CONFIG) == (moves < 2)
        with Run.open(folder, CONFIG, INPUTS) as run:
            assert not run.done
        assert (folder / "config.yaml").exists()
        with pytest.raises(RunError, match=r"optimizer\.lr"):
            Run.open(folder, OTHER, INPUTS)


def test_a_result_of_nobody_knows_what_is_not_a_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"fingerprint": "0", "loss": 1}')
    with Run.open(tmp_path, CONFIG, INPUTS, replace=True) as run:
        assert not run.done


def test_a_place_that_cannot_be_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "train"):
        with pytest.raises(RunError, match="cannot be a run folder") as caught:
            Run.open(place, CONFIG, INPUTS)
        assert "\n" not in str(caught.value)
    (tmp_path / "odd" / "run.lock").mkdir(parents=True)  # stands for a folder that may not be written
    with pytest.raises(RunError, match="cannot be a run folder"):
        Run.open(tmp_path / "odd", CONFIG, INPUTS)


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


def test_metrics_survive_a_kill_inside_a_letter_and_odd_line_ends(tmp_path: Path) -> None:
    with Run.open(tmp_path, CONFIG, INPUTS) as run:
        run.log({"step": 1, "text": "a\u2028b\u0085c"})
        whole = (tmp_path / "metrics.jsonl").read_bytes()
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b"[1]\n7\n" + '{"step": 2, "text": "\u0915'.encode()[:-1])
        run.rewind_metrics(2)
        assert (tmp_path / "metrics.jsonl").read_bytes() == whole


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
    before = (tmp_path / "run.lock").read_text()
    assert is_held(tmp_path)
    assert (tmp_path / "run.lock").read_text() == before
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert not is_held(tmp_path)
    assert (tmp_path / "run.lock").read_text() == before  # asking wrote nothing
    with Run.open(tmp_path, CONFIG, INPUTS):
        assert is_held(tmp_path)
        asker = FORK.Process(target=_open_and_exit, args=(tmp_path,))
        asker.start()
        asker.join()
        assert asker.exitcode == 3  # asking did not drop the holder's own lock


def _open_and_exit(folder: Path) -> None:
    from nalanda.base import lock

    lock._held.clear()
    try:
        Run.open(folder, CONFIG, INPUTS)
    except RunError:
        os._exit(3)


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
