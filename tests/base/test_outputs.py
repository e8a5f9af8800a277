"""What a finished stage made is as it was, or named before it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nalanda.base import io
from nalanda.base.errors import RunError
from nalanda.base.outputs import verify_outputs, verify_part
from nalanda.base.run import Run

CONFIG: dict[str, Any] = {"verb": "train", "lr": 1e-3}


def make(folder: Path, config: dict[str, Any] = CONFIG) -> Path:
    with Run.open(folder, config, {"corpus": "1"}) as run:
        run.log({"step": 1, "loss": 0.5})
        (folder / "quarantine").mkdir()
        (folder / "quarantine" / "rows.jsonl").write_text("{}\n")
        (folder / "rows.parquet").write_bytes(b"PAR1")
        with io.atomic_folder(folder / "model", skip=("README.md",)) as draft:
            (draft / "weights").write_bytes(bytes(100))
            (draft / "README.md").write_text("card")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "x").write_text("has a manifest of its own")
        run.finish({"loss": 0.5})
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


HARMS: dict[str, Callable[[Path], None]] = {
    "flip": flip,
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "delete": Path.unlink,
}
FILES = [
    "result.json", "inputs.json", "config.yaml", "environment.json", "metrics.jsonl", "manifest.json", "rows.parquet",
    "quarantine/rows.jsonl", "model/weights", "model/manifest.json",
]  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_named(tmp_path: Path, name: str, harm: str) -> None:
    folder = make(tmp_path / "stage")
    assert verify_outputs(folder)["loss"] == 0.5
    HARMS[harm](folder / name)
    with pytest.raises(RunError, match=name.replace(".", r"\.")) as caught:
        verify_outputs(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_finished_run_is_refused_or_mended(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "stage")
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    flip(folder / name)
    if name not in ("inputs.json", "config.yaml"):
        with pytest.raises(RunError, match=name.replace(".", r"\.") + ".* run the same command again"):
            Run.open(folder, CONFIG, {"corpus": "1"})
        return
    with Run.open(folder, CONFIG, {"corpus": "1"}) as run:
        assert run.done
        assert name in "".join(run.notes)
    assert {path: path.read_bytes() for path in whole} == whole | {folder / "run.lock": b""}


def test_files_of_another_stage_are_noticed(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other", {"verb": "train", "lr": 2e-3})
    for name in ("result.json", "inputs.json", "config.yaml", "manifest.json"):
        content = (one / name).read_bytes()
        (one / name).write_bytes((other / name).read_bytes())
        if content != (other / name).read_bytes():
            with pytest.raises(RunError, match=name.replace(".", r"\.")):
                verify_outputs(one)
        (one / name).write_bytes(content)
    verify_outputs(one)


def test_a_part_is_held_to_its_manifest_only(tmp_path: Path) -> None:
    folder = make(tmp_path / "stage")
    flip(folder / "rows.parquet")
    (folder / "model" / "README.md").write_text("edited, as it may be")
    verify_part(folder, "model")
    flip(folder / "model" / "manifest.json")
    with pytest.raises(RunError, match=r"model/manifest\.json"):
        verify_part(folder, "model")


def test_what_is_not_an_output_may_go(tmp_path: Path) -> None:
    folder = make(tmp_path / "stage")
    (folder / "checkpoints" / "x").unlink()
    (folder / "model" / "README.md").unlink()
    (folder / "run.lock").write_text("someone")
    (folder / "report.html").write_text("made later")
    assert verify_outputs(folder)["loss"] == 0.5


def test_a_pipeline_stands_for_its_output(tmp_path: Path) -> None:
    make(tmp_path / "p" / "model")
    io.write_sealed(tmp_path / "p" / "pipeline.json", {"output": "model"})
    io.write_sealed(tmp_path / "p" / "result.json", {"fingerprint": "1"})
    verify_outputs(tmp_path / "p")
    flip(tmp_path / "p" / "pipeline.json")
    with pytest.raises(RunError, match=r"pipeline\.json"):
        verify_outputs(tmp_path / "p")
