"""Every shipped recipe is loaded and run for two steps; the quickstart leaves what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support import ROOT, TINY, nalanda

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SINGLE = ("corpus", "tokenizer", "train", "evaluate")
SMALL = [
    "corpus.sources.0.share=0.03",
    "tokenizer.vocabulary=700",
    "model.budget={steps: 2}",
    "model.evaluation.every=1",
    "model.evaluation.batches=1",
    "model.model.layers=1",
    "model.model.hidden=32",
    "model.threads=1",
]


BASES = {
    "finetune_decoder": {
        "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
    },
    "finetune_translation": {
        "encoder_layers": 1, "decoder_layers": 1, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    },
}  # fmt: skip
"""Recipes that make the model they go on from themselves, and what makes that tiny."""


def changes(recipe: str, folder: Path) -> list[str]:
    """What makes a recipe tiny; one that wants the user's file gets one."""
    if recipe == "translate_files":
        rows = [f"the word number {i} is small\tशब्द संख्या {i} छोटा है" for i in range(400)]
        path = folder / "pairs.tsv"
        path.write_text("en\thi\n" + "\n".join(rows) + "\n", encoding="utf-8")
        changed = [c for c in SMALL if "share" not in c and "vocabulary" not in c]
        return [
            *changed,
            f"corpus.sources.0.path={path}",
            "corpus.split.near=0",
            "tokenizer.vocabulary=330",
        ]
    if recipe in BASES:
        base = [change.replace("model.", "base.", 1) for change in SMALL if change.startswith("model.")]
        made = [f"base.model.config.{key}={value}" for key, value in BASES[recipe].items()]
        whole = [c for c in [*SMALL, *base] if ".model." not in c]
        return [*whole, *made, "corpus.sources.1.share=0.2"]
    return [*SMALL, "corpus.sources.1.share=0.2"]


def test_the_quickstart_leaves_what_it_promises(tiny_run: Path) -> None:
    run = tiny_run / "quickstart"
    for stage in ("corpus", "tokenizer", "pretrain", "finetune", "scratch", "scores", "report"):
        for name in ("config.yaml", "environment.json", "inputs.json", "result.json"):
            assert (run / stage / name).exists(), f"{stage} has no {name}"
    for stage in ("pretrain", "finetune", "scratch"):
        files = {path.name for path in (run / stage / "model").iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
        assert {"generation_config.json", "README.md", "manifest.json"} <= files
        rows = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss" in row] == [2]
        if stage != "pretrain":
            assert {"source", "reference", "hypothesis"} == set(rows[-1]["samples"][0])
            assert 0 <= rows[-1]["dev_chrf"] <= 100
    scores = json.loads((run / "scores" / "result.json").read_text())["scores"]
    assert {"pre-trained", "random"} < set(scores)
    assert len(scores) == 5  # and three baselines
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "pre-trained" in page
    assert "<svg" in page
    ledger = json.loads((run / "corpus" / "ledger.json").read_text())["total"]
    rest = sum(ledger["filtered"].values()) + ledger["duplicate"] + ledger["quarantined"]
    assert ledger["read"] == ledger["kept"] + rest


def test_the_same_command_twice_gives_bit_equal_weights(tiny_run: Path, tmp_path: Path) -> None:
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    assert nalanda("run", recipe, "--runs", str(tmp_path), *TINY) == 0
    for stage in ("pretrain", "finetune", "scratch"):
        first = load_file(tiny_run / "quickstart" / stage / "model" / "model.safetensors")
        second = load_file(tmp_path / "quickstart" / stage / "model" / "model.safetensors")
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert (value == second[name]).all(), f"{stage}: {name} differs"


def test_running_again_does_nothing(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in (tiny_run / "quickstart").rglob("model.safetensors")}
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    assert nalanda("run", recipe, "--runs", str(tiny_run), *TINY) == 0
    assert capsys.readouterr().err.count("done before, kept") == 7
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.parametrize(
    "path", [p for p in RECIPES if p.stem not in ("quickstart", *SINGLE)], ids=lambda p: p.stem
)
def test_every_recipe_runs_two_steps(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycountry", reason="needs the demo extra")
    words = [*changes(path.stem, tmp_path), "--runs", str(tmp_path)]
    assert nalanda("run", str(path), *words) == 0
    result = json.loads((tmp_path / path.stem / "model" / "result.json").read_text())
    assert result["steps"] == 2
    rows = [
        json.loads(line)
        for line in (tmp_path / path.stem / "model" / "metrics.jsonl").read_text().splitlines()
    ]
    samples = [row["samples"] for row in rows if "samples" in row]
    assert (len(samples) == 1 and str(samples[0][0]).startswith("The ")) == (path.stem in ("causal", "moe"))
    assert bool(samples) == (path.stem in ("causal", "moe", *BASES))


def test_a_dry_run_leaves_nothing_and_says_what_the_run_would_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycountry", reason="needs the demo extra")
    path = ROOT / "recipes" / "causal.yaml"
    assert nalanda("run", str(path), "--runs", str(tmp_path), "--dry-run", "model.threads=1") == 0
    said = capsys.readouterr().out
    for word in ("parameters", "GFLOPs", "MiB", "minutes"):
        assert word in said
    assert list(tmp_path.iterdir()) == []


def test_the_recipes_of_one_stage_follow_each_other(tiny_run: Path, tmp_path: Path) -> None:
    run = tiny_run / "quickstart"
    corpus, words = f"corpus={tmp_path / 'corpus'}", ["--runs", str(tmp_path)]
    data = [f"data.corpus={tmp_path / 'corpus'}", f"data.tokenizer={tmp_path / 'tokenizer'}"]
    small = ["budget={steps: 2}", "threads=1", "model.layers=1", "model.hidden=32", "evaluation.batches=1"]
    places = [f"corpus={run / 'corpus'}", f"models.pre-trained={run / 'finetune'}"]
    changed = {
        "corpus": ["sources.0.share=0.1"],
        "tokenizer": [corpus, "vocabulary=600"],
        "train": [*data, *small],
        "evaluate": [*places, f"models.random={run / 'scratch'}", "rows=4", "decoding.max_length=8"],
    }
    for verb in SINGLE:
        assert nalanda(verb, str(ROOT / "recipes" / f"{verb}.yaml"), *changed[verb], *words) == 0, verb
        assert (tmp_path / verb / "result.json").exists()
