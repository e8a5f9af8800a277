"""Pipelines: every mistake first, done stages kept, cut-off ones resumed, changes followed through."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from nalanda.base.errors import RunError
from nalanda.base.lock import Lock
from nalanda.base.run import Run
from nalanda.config import Config, ConfigError
from nalanda.stages import pipeline, recipe, verbs
from nalanda.stages.stage import Context, Stage, fingerprint_input


class Maker(Config):
    verb: Literal["corpus"] = "corpus"
    text: str = "hello"
    fail: bool = False


class Reader(Config):
    verb: Literal["tokenizer"] = "tokenizer"
    corpus: Path
    times: int = 1


CALLS: list[str] = []


def make(config: Maker, run: Run, context: Context) -> dict[str, Any]:
    CALLS.append("make")
    (run.path / "text").write_text(config.text)
    if config.fail:
        raise KeyboardInterrupt
    return {"letters": len(config.text)}


def read(config: Reader, run: Run, context: Context) -> dict[str, Any]:
    CALLS.append("read")
    return {"text": (config.corpus / "text").read_text() * config.times}


@pytest.fixture(autouse=True)
def two_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    maker = Stage(config=Maker, run=make, inputs=lambda config: {})
    reader = Stage(config=Reader, run=read, inputs=lambda config: {"corpus": config.corpus})
    monkeypatch.setitem(verbs.VERBS, "corpus", lambda: maker)
    monkeypatch.setitem(verbs.VERBS, "tokenizer", lambda: reader)


PIPELINE = """
name: both
output: second
stages:
  second: {verb: tokenizer, corpus: "${first}"}
  first: {verb: corpus, text: abc}
"""


def load(tmp_path: Path, text: str = PIPELINE, *assignments: str) -> recipe.Recipe:
    path = tmp_path / "both.yaml"
    path.write_text(text)
    return recipe.load(path, list(assignments), tmp_path / "runs")


def run(tmp_path: Path, *assignments: str) -> dict[str, dict[str, Any]]:
    CALLS.clear()
    return pipeline.run(load(tmp_path, PIPELINE, *assignments), Context())


def test_stages_run_in_the_order_of_their_references(tmp_path: Path) -> None:
    results = run(tmp_path)
    assert CALLS == ["make", "read"]
    assert results["second"]["text"] == "abc"
    assert (tmp_path / "runs" / "both" / "result.json").exists()


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert run(tmp_path) == first
    assert CALLS == []


def test_a_change_redoes_what_depends_on_it_and_only_that(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, "second.times=2")["second"]["text"] == "abcabc"
    assert CALLS == ["read"]
    assert run(tmp_path, "first.text=x")["second"]["text"] == "x"
    assert CALLS == ["make", "read"]
    assert run(tmp_path)["second"]["text"] == "abc"  # the first config again: its results come back
    assert CALLS == []


def test_what_was_cut_off_is_run_again_and_what_was_done_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "first.fail=true")
    assert [row["state"] for row in pipeline.status(tmp_path / "runs" / "both")] == ["cut off", "waiting"]
    run(tmp_path)
    assert [row["state"] for row in pipeline.status(tmp_path / "runs" / "both")] == ["done", "done"]


def test_a_moved_run_folder_is_still_done(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    CALLS.clear()
    path = tmp_path / "both.yaml"
    pipeline.run(recipe.load(path, [], tmp_path / "elsewhere"), Context())
    assert CALLS == []


def test_mistakes_of_all_stages_are_told_at_once(tmp_path: Path) -> None:
    text = PIPELINE.replace("text: abc", "txet: abc").replace(
        "verb: tokenizer,", "verb: tokenizer, times: x,"
    )
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert any("first: txet: unknown key; did you mean 'text'?" in line for line in lines)
    assert any("second: times: expected a valid integer" in line for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("${first}", "${frist}", "names no stage; stages: second, first"),
        ("verb: corpus", "verb: corpsu", "unknown verb 'corpsu'; did you mean 'corpus'"),
        ("output: second", "output: third", "no stage is called 'third'"),
        ("text: abc", "text: '${second}'", "refer to each other in a circle"),
        ("name: both", "name: ../both", "names a folder"),
        ("name: both", "nmae: both", "nmae: unknown key"),
        ("verb: corpus", "verb: [corpus]", "unknown verb"),
        ("output: second", "output: [second]", "no stage is called"),
    ],
)
def test_broken_pipelines_are_told_in_words(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PIPELINE
    with pytest.raises(ConfigError, match=message.replace("$", r"\$")):
        load(tmp_path, PIPELINE.replace(old, new))


def test_a_single_stage_recipe_with_another_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("verb: corpus\ntext: abc\n")
    pipeline.run(recipe.load(path, [], tmp_path), Context())
    with pytest.raises(Exception, match=r"made by another config .*text: 'abc' -> 'x'"):
        pipeline.run(recipe.load(path, ["text=x"], tmp_path), Context())
    with pytest.raises(ConfigError, match="this recipe is for 'nalanda corpus', not 'nalanda train'"):
        recipe.load(path, [], tmp_path, "train")


def test_an_upgrade_warns_and_keeps_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    notes: list[str] = []
    monkeypatch.setattr("nalanda.base.machine._version", lambda name: "99.0")
    CALLS.clear()
    pipeline.run(load(tmp_path), Context(note=notes.append))
    assert CALLS == []
    assert any("made with other versions" in note and "-> 99.0" in note for note in notes)


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("verb: tokenizer\ncorpus: nowhere\n")
    with pytest.raises(Exception, match="corpus: nowhere: no such file"):
        pipeline.run(recipe.load(path, [], tmp_path), Context())


def test_an_unfinished_stage_is_no_input_and_neither_is_its_model(tmp_path: Path) -> None:
    stage, alone = tmp_path / "stage", tmp_path / "alone" / "model"
    with Run.open(stage, {"verb": "train"}, {}) as opened:
        for folder in (stage / "model", alone):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
        for place in (stage, stage / "model"):
            with pytest.raises(RunError, match=r"model: .*not a finished stage"):
                fingerprint_input(place, "model")
        opened.finish({})
    assert fingerprint_input(stage, "m") == fingerprint_input(stage / "model", "m") == opened.fingerprint
    before = fingerprint_input(alone, "m")
    (alone / "config.json").write_text("{ }")
    assert fingerprint_input(alone, "m") != before


def test_status_takes_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "first.fail=true")
    folder = tmp_path / "runs" / "both"
    (folder / "first" / "run.lock").write_text("process 1")

    def refuse(*_: object) -> None:
        raise AssertionError("status took the lock")

    monkeypatch.setattr(Lock, "acquire", refuse)
    assert [row["state"] for row in pipeline.status(folder)] == ["cut off", "waiting"]
    assert (folder / "first" / "run.lock").read_text() == "process 1"


def test_the_last_metrics_are_the_last_whole_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes('{"step": 1, "text": "a\u2028{}"}\n7\n{"text": "\u0915'.encode()[:-1])
    assert pipeline.last_metrics(path) == {"step": 1, "text": "a\u2028{}"}
