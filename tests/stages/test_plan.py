"""`nalanda plan`: from a recipe alone, from real data, on this machine; and what is told of mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, nalanda

from nalanda.base.io import write_text
from nalanda.config import dump_yaml
from nalanda.stages.calibrate import period, shallow
from nalanda.stages.plan import Options, plan
from nalanda.stages.plan_table import clock, short, tables
from nalanda.stages.plan_work import works
from nalanda.stages.recipe import Recipe, load

CAUSAL: dict[str, Any] = {
    "verb": "train",
    "data": {
        "kind": "causal",
        "corpus": "nowhere",
        "tokenizer": "none",
        "max_length": 64,
        "batch_tokens": 512,
    },
    "model": {"kind": "decoder", "layers": 2, "hidden": 32, "heads": 2},
    "budget": {"steps": 100},
}


def recipe(folder: Path, values: dict[str, Any], *changes: str) -> Recipe:
    path = folder / "mine.yaml"
    write_text(path, dump_yaml(values))
    return load(path, list(changes), folder / "runs")


def test_gpt2_on_eight_h100_is_as_by_hand(tmp_path: Path) -> None:
    change = ("model={family: gpt2, preset: gpt2}", "data.max_length=1024", "data.batch_tokens=524288")
    stage = plan(recipe(tmp_path, CAUSAL, *change), Options("h100x8"))["stages"][0]
    assert stage["parameters"] == 124_439_808
    assert stage["embedding_parameters"] == 50257 * 768
    # 6 FLOPs for each weight of a product and 6 * layers * places * width for attention, which sees half.
    products = 124_439_808 - 1024 * 768
    assert stage["flops_per_token"] == pytest.approx(6 * products + 6 * 12 * 1024 * 768, rel=0.01)
    assert stage["tokens"] == 100 * 524_288
    seconds = stage["flops"] / (8 * 989e12 * 0.40)
    assert stage["hours"] * 3600 == pytest.approx(seconds, rel=0.05)
    assert stage["kwh"] == pytest.approx(stage["hours"] * 8 * 0.7 * 1.5)
    assert stage["cost"] == pytest.approx(stage["hours"] * 8 * 2.5)
    assert stage["memory"]["fits"]
    assert any("40%" in line for line in stage["assumed"])


def test_options_are_heard(tmp_path: Path) -> None:
    mine = recipe(tmp_path, CAUSAL, "model.hidden=2048", "model.layers=24", "data.batch_tokens=65536")
    usual = plan(mine, Options("h100"))
    other = plan(mine, Options("h100", mfu=0.8, price=1.0, watts=100.0))
    assert other["total"]["hours"] < 0.6 * usual["total"]["hours"]
    assert other["total"]["cost"] == pytest.approx(other["total"]["hours"])
    assert other["total"]["kwh"] == pytest.approx(other["total"]["hours"] * 0.1)


def test_a_pipeline_is_planned_stage_by_stage_and_summed() -> None:
    found = plan(load(ROOT / "recipes" / "quickstart.yaml", [], Path("nowhere")), Options("l4"))
    assert [stage["name"] for stage in found["stages"]] == ["pretrain", "finetune", "scratch"]
    for stage in found["stages"]:
        assert stage["parameters"] == found["stages"][0]["parameters"]  # finetune's are those of pretrain
        assert "a vocabulary of 1,200, as its tokenizer's recipe says" in stage["assumed"]
    hours = [stage["hours"] for stage in found["stages"]]
    assert hours == pytest.approx([0.75 / 60, 5.25 / 60, 6 / 60], rel=0.01)
    assert found["total"]["hours"] == pytest.approx(sum(hours))
    titles = [title for title, _ in tables(found)]
    assert titles[-1] == "all 3 training stages on l4"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_trains_can_be_planned(path: Path) -> None:
    loaded = load(path, [], Path("nowhere"))
    if any(planned.verb == "train" for planned in loaded.stages.values()):
        json.dumps(plan(loaded, Options("h100x2")))


def test_a_large_model_is_planned_without_its_weights(tmp_path: Path) -> None:
    change = (
        "model={family: llama, preset: llama-2-7b}",
        "data.max_length=2048",
        "data.batch_tokens=1048576",
    )
    stage = plan(recipe(tmp_path, CAUSAL, *change), Options("h100x8"))["stages"][0]
    assert 6.7e9 < stage["parameters"] < 6.8e9
    best = stage["layouts"][0]
    assert best["parallel"].get("shard") or best["parallel"].get("tensor")
    scaling = stage["scaling"]
    assert scaling["loss"] > scaling["optimum_of_compute"]["loss"]


def test_what_does_not_fit_is_said_with_what_would(tmp_path: Path) -> None:
    change = (
        "model={family: llama, preset: llama-2-7b}",
        "data.max_length=2048",
        "data.batch_tokens=1048576",
    )
    found = plan(recipe(tmp_path, CAUSAL, *change), Options("rtx3090"))
    assert not found["stages"][0]["memory"]["fits"]
    assert found["stages"][0]["enough"] > 1
    text = str(tables(found))
    assert "DOES NOT FIT" in text
    assert "enough:" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hardware", "h10"), "did you mean h100"),
        (("--hardware", "h100", "--mfu", "1.5"), "--mfu: 1.5 is not more than 0 and at most 1"),
        (("--hardware", "h100", "--price", "-2"), "--price: -2 is not"),
        (("--hardware", "h100", "--watts", "nan"), "--watts: nan is not"),
        (("--hardware", "here", "--seconds", "0"), "--seconds: 0 is not"),
        (("--hardware", "here", "--mfu", "0.5"), "--mfu: is measured here"),
        (("--hardware", "h100x64"), "too few for 64 devices"),
        (("--hardware", "h100", "budget={replay: somewhere}"), "plan that run"),
        (("--hardware", "h100", "model=no/model"), "not on this machine"),
        (("--hardware", "h100", "model.heads=5"), "hidden"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    recipe(tmp_path, CAUSAL)
    assert nalanda("plan", str(tmp_path / "mine.yaml"), *words) in (1, 2, 3)
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told


def test_a_recipe_that_trains_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert nalanda("plan", str(ROOT / "recipes" / "corpus.yaml"), "--hardware", "h100") == 2
    assert "no stage trains" in capsys.readouterr().err


def test_the_command_prints_lines_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(tmp_path, CAUSAL)
    words = ["plan", str(tmp_path / "mine.yaml"), "--hardware", "a100-80x2", "model.layers=3"]
    assert nalanda(*words) == 0
    text = capsys.readouterr().out
    assert "mine: decoder, 3 layers, 32 wide, bf16 on a100-80x2" in text
    assert nalanda(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["steps"] == 100


def test_numbers_are_short() -> None:
    assert [short(n) for n in (5.0, 999.9, 1234, 124_439_808, 2.5e12)] == [
        "5",
        "1 k",
        "1.23 k",
        "124 M",
        "2.5 T",
    ]
    assert [clock(h) for h in (0.001, 0.5, 10, 100)] == ["3.6 s", "30.0 minutes", "10.0 hours", "4.2 days"]


def test_shallow_copies_keep_the_pattern_of_layers(tmp_path: Path) -> None:
    values = {**CAUSAL, "model": {**CAUSAL["model"], "layers": 8, "moe": {"experts": 4, "every": 2}}}
    (work,) = works(recipe(tmp_path, values))
    assert period(work.model.spec) == 2
    assert len(shallow(work.model.spec, 4).decoder) == 4


@pytest.mark.slow
@pytest.mark.parametrize("model", ["{kind: decoder, layers: 2, hidden: 64, heads: 2}", "large"])
def test_this_machine_is_measured(tmp_path: Path, model: str) -> None:
    large = "{kind: decoder, layers: 24, hidden: 512, heads: 8}"
    changes = [f"model={large if model == 'large' else model}", "data.batch_tokens=4096"]
    stage = plan(recipe(tmp_path, CAUSAL, *changes), Options("here", seconds=10.0, price=0.5, watts=50.0))[
        "stages"
    ][0]
    measured = stage["calibration"]
    assert ("copies" in measured["how"]) is (model == "large")
    assert 0 < stage["step_seconds"] < 600
    assert stage["memory"]["peak"] > stage["memory"]["parts"]["the program itself"] > 5e7
    assert stage["cost"] == pytest.approx(0.5 * stage["hours"])
