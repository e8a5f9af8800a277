"""Every file of a run folder, damaged in every way: named in one line, or made again; never silently used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults.operations import record
from faults.pipelines import command, made, write_recipe
from faults.server import Server, killed, rows

from nalanda.base.errors import RunError, UserError
from nalanda.base.outputs import verify_outputs
from nalanda.stages import pipeline, recipe
from nalanda.stages.stage import Context
from nalanda.stages.use import open_model

FREE = {"run.lock", "README.md"}
"""What may say anything: who holds the folder, and the card, which is there to be edited."""


def sibling(path: Path) -> Path:
    """Another file of the same kind: beside it, in the next stage, or in the next checkpoint."""
    beside = [
        p for p in path.parent.iterdir() if p.suffix == path.suffix and p.is_file() and p.name not in FREE
    ]
    above = [*path.parents[1].glob(f"*/{path.name}"), *path.parents[2].glob(f"*/*/{path.name}")]
    others = [p for p in [*sorted(above), *sorted(beside)] if p.read_bytes() != path.read_bytes()]
    return others[0] if others else path


def swap(path: Path) -> None:
    other = sibling(path)
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[len(content) * 2 // 3] ^= 0x04
    path.write_bytes(content)


HARMS: dict[str, Callable[[Path], None]] = {
    "flip": flip,
    "truncate": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "delete": Path.unlink,
    "swap": swap,
}


def copied(source: Path, place: Path, name: str) -> Path:
    """A copy of a recipe and its runs; returns the recipe."""
    shutil.copytree(source.parent, place / name)
    text = source.read_text().replace(str(source.parent), str(place / name))
    (place / name / "run.yaml").write_text(text)
    return place / name / "run.yaml"


def again(path: Path) -> tuple[str, list[str]]:
    """The same command again, in this process: its error, and what it said."""
    said: list[str] = []
    try:
        pipeline.run(recipe.load(path, [], path.parent / "runs"), Context(note=said.append))
    except UserError as error:
        return str(error), said
    return "", said


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a finished pipeline."""
    path = write_recipe(tmp_path_factory.mktemp("finished") / "whole", "decoder")
    server.finish(path, command=command(path))
    return path


@pytest.mark.parametrize(
    "harm", ["flip", "delete", "swap", pytest.param("truncate", marks=pytest.mark.exhaustive)]
)
def test_a_finished_run(finished: Path, tmp_path: Path, harm: str) -> None:
    torch.set_num_threads(1)
    expected = contents(finished.parent / "runs")
    assert again(finished)[0] == ""
    checked = 0
    for name in sorted(expected):
        stage, file = name.split("/")[1], Path(name).name
        if file in FREE or "/checkpoints/" in name:
            continue
        path = copied(finished, tmp_path, f"{checked}")
        folder = path.parent / "runs" / "run"
        damaged = path.parent / "runs" / name
        names = {file, sibling(damaged).name} if harm == "swap" else {file}
        if harm == "swap" and sibling(damaged) == damaged:
            shutil.rmtree(path.parent)
            continue
        HARMS[harm](damaged)
        if stage in ("pipeline.json", "result.json"):
            use = open_model if file == "pipeline.json" else verify_outputs
            with pytest.raises(RunError, match="|".join(names)):
                use(folder)
        else:
            error, said = again(path)
            lines = [error] if error else [line for line in said if any(n in line for n in names)]
            if (file, harm) == ("result.json", "delete"):  # not done, then: it is made again
                assert error == ""
                assert any(
                    line.startswith(f"{stage}: {stage if stage != 'model' else 'cut'}") for line in said
                ), said
                assert made(path) == made(finished)
                shutil.rmtree(path.parent)
                continue
            assert lines, (name, error, said)
            assert not any("\n" in line for line in lines)
            assert any(n in lines[0] for n in names), (name, lines)
            if not error:
                again_there = damaged.read_text().replace(str(path.parent), str(finished.parent))
                assert again_there.encode() == expected[name] or file == "inputs.json", (
                    "made again, as it was"
                )
        if "/model/model/" in name and (harm != "delete" or file != "config.json"):
            with pytest.raises(UserError, match="|".join(names)):
                open_model(folder)
        shutil.rmtree(path.parent)
        checked += 1
    assert checked > 20


@pytest.fixture(scope="module")
def cut_off(shimmed: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipes of a pipeline that was killed when it began to export its model, and of a whole one."""
    place = tmp_path_factory.mktemp("cut-off")
    whole, path = write_recipe(place / "whole", "decoder"), write_recipe(place / "cut", "decoder")
    operations = record(shimmed, whole.parent / "runs" / "run", place, command=command(whole))
    export = next(o.number for o in operations if "/model/.partial-model" in o.path)
    (path.parent / "runs").mkdir()
    arm = {"mode": "k", "at": export, "root": str(path.parent / "runs")}
    assert killed(shimmed.live(path, command=command(path), arm=arm))
    return path, whole


def damage_and_go_on(server: Server, source: Path, whole: Path, place: Path, name: str, harm: str) -> None:
    path = copied(source, place, "again")
    damaged = path.parent / "runs" / name
    names = {damaged.name, sibling(damaged).name} if harm == "swap" else {damaged.name}
    if harm == "swap" and sibling(damaged) == damaged:
        shutil.rmtree(path.parent)
        return
    if damaged.name == "manifest.json":
        names |= {"safetensors", "state.json"}
    HARMS[harm](damaged)
    life = server.live(path, command=command(path))
    model = path.parent / "runs" / "run" / "model"
    said = (
        life["said"] + (model / "metrics.jsonl").read_text(errors="replace")
        if model.exists()
        else life["said"]
    )
    if life["status"]:
        assert life["status"] == 4, life["said"]
        assert any(n in life["said"].splitlines()[-1] for n in names), life["said"]
    else:
        found, expected = made(path), made(whole)
        newest = "step-000012" in name or "/checkpoints/" not in name
        if newest and "/store/" not in name:
            assert any(n in said for n in names), f"{name} {harm}: {said}"
        if damaged.name == "metrics.jsonl":
            kept = {json_row(row) for row in found.pop("rows")}
            assert kept - {json_row(row) for row in expected.pop("rows")}, "a note says so"
        else:
            found["rows"] = [row for row in found["rows"] if "note" not in row]
        assert found == expected, f"{name} {harm}"
    shutil.rmtree(path.parent)


def json_row(row: object) -> str:
    return repr(row)


def _files(path: Path) -> list[str]:
    runs = path.parent / "runs"
    names = sorted(str(p.relative_to(runs)) for p in (runs / "run" / "model").rglob("*") if p.is_file())
    return [name for name in names if Path(name).name not in FREE]


def test_a_training_that_was_cut_off(server: Server, cut_off: tuple[Path, Path], tmp_path: Path) -> None:
    path, whole = cut_off
    names = [n for n in _files(path) if "/store/" not in n and "step-000009" not in n]
    names += [n for n in _files(path) if "tokens.bin" in n]
    for number, name in enumerate(names):
        damage_and_go_on(server, path, whole, tmp_path, name, list(HARMS)[number % 4])


@pytest.mark.exhaustive
@pytest.mark.parametrize("harm", HARMS)
def test_any_file_of_a_training_that_was_cut_off(
    server: Server, cut_off: tuple[Path, Path], tmp_path: Path, harm: str
) -> None:
    path, whole = cut_off
    for name in _files(path):
        damage_and_go_on(server, path, whole, tmp_path, name, harm)


def test_lines_that_a_kill_tore_are_written_again(
    server: Server, cut_off: tuple[Path, Path], tmp_path: Path
) -> None:
    path = copied(cut_off[0], tmp_path, "again")
    metrics = path.parent / "runs" / "run" / "model" / "metrics.jsonl"
    with metrics.open("ab") as file:
        file.write(b'{"step": 12, "lo')
    server.finish(path, command=command(path))
    assert rows(metrics.parent) == rows(cut_off[1].parent / "runs" / "run" / "model")
