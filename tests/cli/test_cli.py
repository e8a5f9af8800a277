"""Commands: what a user types, what comes back, and with which exit code."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, TINY, nalanda

from nalanda import cli
from nalanda.config import load_yaml, override

QUICKSTART = str(ROOT / "recipes" / "quickstart.yaml")


def error(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("nalanda: ")]


def test_every_verb_is_there_and_teaches() -> None:
    wanted = [
        "run",
        "train",
        "corpus",
        "tokenizer",
        "evaluate",
        "generate",
        "inspect",
        "translate",
        "chat",
        "data",
        "status",
        "schema",
        "report",
    ]
    commands = cli.commands()
    assert set(wanted) <= set(commands)
    for name, command in commands.items():
        text = command.help or ""
        assert "nalanda" in text or name == "data", f"{name} has no example"


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert nalanda("--help") == 0
    assert "Exit codes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run", "no.yaml"], 2, "no.yaml: no such file"),
        (["run", QUICKSTART, "pretrain.optimizer.lrr=1"], 2, "optimizer.lrr: unknown key; did you mean 'lr'"),
        (["run", QUICKSTART, "pretrain.clip=many"], 2, "pretrain: clip: "),
        (["run", QUICKSTART, "pretrain.model.heads=7"], 2, "must be a multiple of heads (7)"),
        (["train", QUICKSTART], 2, "this is a pipeline"),
        (["status", "nowhere"], 4, "nowhere: not a run folder"),
        (["report", "nowhere"], 4, "nowhere"),
        (["translate", "nowhere", "x", "--to", "hin_Deva"], 4, "nowhere: no"),
        (["inspect", "nowhere", "--text", "x"], 4, "nowhere: no"),
        (["inspect", "nowhere", "--text", ""], 3, "--text is empty"),
        (["inspect", "nowhere", "--text", "x", "--layers", "one"], 3, "--layers: 'one' is not a layer"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(
    words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nalanda(*words) == code
    lines = error(capsys)
    assert len(lines) == 1, lines
    assert says in lines[0]


def test_status_shows_each_stage(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nalanda("status", str(tiny_run / "quickstart")) == 0
    said = capsys.readouterr().out
    assert said.count("done") == 7
    assert "finetune" in said


def test_translate_into_two_languages(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["translate", str(tiny_run / "quickstart"), "Sri Lanka", "Goa", "--to", "hin,Tamil"]
    assert nalanda(*words, "--set", "max_length=5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["hin_Deva", "tam_Taml", "hin_Deva", "tam_Taml"]


def test_translate_says_which_languages_there_are(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code, says in (("zzz", "zzz"), ("urd_Arab", "urd_Arab"), ("", "--to")):
        assert nalanda("translate", str(tiny_run / "quickstart"), "Goa", "--to", code) == 3
        assert says in error(capsys)[0]


def test_inspect_writes_a_page(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    words = ["inspect", str(tiny_run / "quickstart"), "--text", "Goa", "--out", str(out), "--generate", "5"]
    assert nalanda(*words) == 3
    assert "--to: name the language" in error(capsys)[0]
    assert nalanda(*words, "--to", "hin_Deva") == 0
    assert f"page in {out}" in capsys.readouterr().out
    assert "decoder to encoder" in out.read_text(encoding="utf-8")


def test_a_translation_model_does_not_generate(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nalanda("generate", str(tiny_run / "quickstart"), "Goa") == 3
    assert "not a decoder model" in error(capsys)[0]


def test_chat_with_a_translation_model(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["Goa", None])
    monkeypatch.setattr(cli.models, "_ask", lambda: next(lines))
    assert nalanda("chat", str(tiny_run / "quickstart"), "--to", "hin_Deva", "--set", "max_length=4") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_preview_colours_the_trained_tokens(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "preview", QUICKSTART, "--runs", str(tiny_run), "--rows", "2", *TINY]
    assert nalanda(*words) == 2
    assert "name one with --stage" in error(capsys)[0]
    assert nalanda(*words, "--stage", "finetune") == 0
    said = capsys.readouterr().out
    assert "predicts" in said
    assert (
        nalanda("data", "preview", QUICKSTART, "--stage", "finetune", "--runs", str(tiny_run / "none")) == 4
    )


def test_report_of_a_run_at_any_time(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nalanda("report", str(tiny_run / "quickstart")) == 0
    assert (tiny_run / "quickstart" / "report.html").exists()
    assert (tiny_run / "quickstart" / "report.md").exists()


def unknown(schema: dict[str, Any], node: dict[str, Any], value: Any, at: str = "") -> list[str]:
    """The key paths of `value` that `node` of the schema does not know, or whose fixed value is another."""
    if "$ref" in node:
        return unknown(schema, schema["$defs"][node["$ref"].removeprefix("#/$defs/")], value, at)
    branches = node.get("anyOf") or node.get("oneOf")
    if branches:  # the branch that fits best is the one meant
        return min((unknown(schema, branch, value, at) for branch in branches), key=len)
    if isinstance(value, list):
        return [path for i, v in enumerate(value) for path in unknown(schema, node["items"], v, f"{at}.{i}")]
    if not isinstance(value, dict):
        return [at] if value != node.get("const", value) or value not in node.get("enum", [value]) else []
    found = []
    for key, inner in value.items():
        below = node.get("properties", {}).get(key) or node.get("additionalProperties")
        path = f"{at}.{key}".lstrip(".")
        if below is not True:  # a mapping of anything, as a family's config.json is
            found += unknown(schema, below, inner, path) if below else [path]
    return found


def test_schema_accepts_the_shipped_recipes(tmp_path: Path) -> None:
    assert nalanda("schema", "--out", str(tmp_path / "s.json")) == 0
    schema = json.loads((tmp_path / "s.json").read_text())
    recipes = {path.name: load_yaml(path) for path in (ROOT / "recipes").glob("*.yaml")}
    for name, values in recipes.items():
        assert unknown(schema, schema, values) == [], name
        assert unknown(schema, schema, values | {"invented": 1}) == ["invented"], name
    for place in (
        "corpus.sources.2",
        "pretrain",
        "pretrain.data.noise",
        "finetune.optimizer",
        "scores.decoding",
    ):
        key = f"stages.{place}.invented"
        assert unknown(schema, schema, override(recipes["quickstart.yaml"], [f"{key}=1"])) == [key]


def test_a_single_stage_into_a_foreign_folder_is_refused(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"verb: tokenizer\ncorpus: {tiny_run / 'quickstart' / 'corpus'}\nvocabulary: 600\n")
    assert nalanda("tokenizer", str(recipe), "--runs", str(tmp_path)) == 0
    assert nalanda("tokenizer", str(recipe), "vocabulary=610", "--runs", str(tmp_path)) == 4
    assert "vocabulary: 600 -> 610" in error(capsys)[0]
    assert nalanda("tokenizer", str(recipe), "vocabulary=300000", "name=big", "--runs", str(tmp_path)) == 3
    assert "vocabulary" in error(capsys)[0]


def test_the_tokenizer_of_another_model_is_refused(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run / "quickstart"
    tokenizer, train = tmp_path / "tok.yaml", tmp_path / "train.yaml"
    tokenizer.write_text(
        f"verb: tokenizer\ncorpus: {run / 'corpus'}\nvocabulary: 590\nlanguages: [hin_Deva, tam_Taml]\n"
    )
    assert nalanda("tokenizer", str(tokenizer), "--runs", str(tmp_path)) == 0
    train.write_text(
        f"verb: train\nmodel: {run / 'pretrain'}\nbudget: {{steps: 1}}\n"
        f"data: {{kind: pairs, corpus: {run / 'corpus'}, tokenizer: {tmp_path / 'tok'}}}\n"
    )
    assert nalanda("train", str(train), "--runs", str(tmp_path)) == 3
    assert "use the tokenizer that the model was trained with" in error(capsys)[0]


def test_rows_longer_than_the_positions_are_refused(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, recipe = tiny_run / "quickstart", tmp_path / "long.yaml"
    recipe.write_text(
        f"verb: train\nbudget: {{steps: 1}}\n"
        f"data: {{kind: pairs, corpus: {run / 'corpus'}, tokenizer: {run / 'tokenizer'}, max_length: 128}}\n"
        "model: {kind: encoder_decoder, layers: 1, hidden: 32, position: learned, max_length: 64}\n"
    )
    assert nalanda("train", str(recipe), "--runs", str(tmp_path)) == 3
    assert "128 is more than the 64 positions" in error(capsys)[0]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_goes_on(tiny_run: Path, tmp_path: Path, sign: signal.Signals) -> None:
    run, recipe = tiny_run / "quickstart", tmp_path / "stop.yaml"
    recipe.write_text(
        'verb: train\nbudget: {steps: 400}\ncompile: "off"\nthreads: 1\nlog_every: 1\nevaluation: null\n'
        f"data: {{kind: pairs, corpus: {run / 'corpus'}, tokenizer: {run / 'tokenizer'}, "
        "batch_tokens: 1024, max_length: 64}\n"
        "model: {kind: encoder_decoder, layers: 1, hidden: 32, inner: 64}\n"
    )
    command = [sys.executable, "-m", "nalanda.cli", "train", str(recipe), "--runs", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "stop" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    os.kill(process.pid, sign)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if sign == signal.SIGINT else 143), said
    assert "run the same command again to go on" in said
    done = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert (tmp_path / "stop" / "checkpoints" / f"step-{done:06d}").is_dir()
    assert nalanda("train", str(recipe), "--runs", str(tmp_path)) == 0
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 401))


def test_a_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nalanda("schema", "--out", str(tmp_path)) == 1
    lines = error(capsys)
    assert len(lines) == 1
    assert "directory" in lines[0].lower()


def test_ctrl_c_during_any_verb_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(folder: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("nalanda.stages.report.write", stop)
    assert nalanda("report", "anywhere") == 130
    assert error(capsys) == ["nalanda: interrupted; run the same command again to go on"]


def test_input_that_is_not_utf8_names_its_line(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Goa\n\xff\n"), encoding="utf-8"))
    assert nalanda("translate", str(tiny_run / "quickstart"), "--to", "hin_Deva") == 3
    assert "line 2: not UTF-8" in error(capsys)[0]


@pytest.mark.parametrize("words", [("--step", "-1"), ("--rows", "0")])
def test_preview_refuses_what_does_not_exist(words: tuple[str, str]) -> None:
    assert nalanda("data", "preview", QUICKSTART, "--stage", "finetune", *words) == 2


@pytest.mark.parametrize("name", ["copy", "nearest neighbour", "word by word"])
def test_a_model_may_not_bear_a_baselines_name(name: str, tmp_path: Path) -> None:
    from nalanda.config import ConfigError, parse
    from nalanda.stages.evaluate import EvaluateStage

    with pytest.raises(ConfigError, match="name of a baseline"):
        parse(EvaluateStage, {"corpus": "x", "models": {name: "y"}}, "r.yaml")


def test_every_recipe_that_help_and_documents_name_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "nalanda" / "cli").glob("*.py")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"recipes/[\w-]+\.yaml", text):
            assert (ROOT / name).exists(), f"{page.name} names {name}, which is not there"
        for verb in re.findall(r"^\s*nalanda ([a-z]+)\b", text, re.MULTILINE):
            assert verb in cli.commands(), f"{page.name}: no command is called {verb}"
