"""The training stage: what does not fit is one line before the first step; moved work goes on; nothing leaks out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nalanda.base import seeds
from nalanda.base.errors import DataError
from nalanda.base.run import Run
from nalanda.config import ConfigError, parse
from nalanda.corpus.document import Document
from nalanda.corpus.store import SplitWriter
from nalanda.models.exchange import load_model
from nalanda.stages import dry, export, pipeline, preview, recipe, train
from nalanda.stages.stage import Context
from nalanda.tokenizer.train import TokenizerConfig
from nalanda.tokenizer.train import train as train_tokenizer

TEXTS = [f"The word{i % 7} is here. It is number {i}. So be it." for i in range(40)]


def write_split(path: Path, rows: int) -> None:
    with path.open("wb") as file, SplitWriter(file) as writer:
        for i, text in enumerate(TEXTS[:rows]):
            writer.write(Document(text, f"a:{i}", "eng_Latn", text.upper(), "hin_Deva", "a"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with corpus/ and tokenizer/."""
    (tmp_path / "here" / "corpus").mkdir(parents=True)
    for split, rows in (("train", 40), ("dev", 6)):
        write_split(tmp_path / "here" / "corpus" / f"{split}.parquet", rows)
    config = parse(
        TokenizerConfig,
        {"vocabulary": 315, "languages": ["eng_Latn", "hin_Deva"], "min_frequency": 1},
        "test",
    )
    train_tokenizer([*TEXTS, *(text.upper() for text in TEXTS)], config).save(tmp_path / "here" / "tokenizer")
    return tmp_path / "here"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def data(place: Path, kind: str, **more: Any) -> dict[str, Any]:
    places = {"corpus": str(place / "corpus"), "tokenizer": str(place / "tokenizer")}
    return {"kind": kind, **places, "max_length": 64, "batch_tokens": 512, **more}


KIND = {"masked": "encoder", "next_sentence": "encoder", "causal": "decoder", "pairs": "encoder_decoder"}


def stage(place: Path, kind: str = "causal", **more: Any) -> train.TrainStage:
    values = {
        "data": data(place, kind),
        "model": {"kind": KIND.get(kind), "layers": 1, "hidden": 16, "heads": 2},
        "budget": {"steps": 2},
        "compile": "off",
        "checkpoint": {"every": 1},
        "evaluation": {"every": 1},
        **more,
    }
    return parse(train.TrainStage, values, "test")


def run(config: train.TrainStage, folder: Path) -> dict[str, Any]:
    inputs = dict.fromkeys(train.inputs(config), "same")
    with Run.open(folder, config.to_dict(), inputs) as opened:
        result = train.run(config, opened, Context())
        opened.finish(result)
    return result


def test_a_training_cut_off_goes_on_in_a_moved_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(stage(place), place / "run")
    monkeypatch.undo()
    moved = place.rename(place.parent / "there")
    result = run(stage(moved), moved / "run")
    assert result["steps"] == 2
    assert (moved / "run" / "model" / "config.json").exists()


def test_threads_are_given_back_also_after_an_error(place: Path) -> None:
    torch.set_num_threads(2)
    assert run(stage(place, threads=1), place / "run")["threads"] == 1
    assert torch.get_num_threads() == 2
    shutil.rmtree(place / "tokenizer")
    with pytest.raises(Exception, match="tokenizer"):
        run(stage(place, threads=1), place / "other")
    assert torch.get_num_threads() == 2


def test_the_preview_shows_what_is_trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Seen(Exception):
        pass

    def build(
        config: Any, split: str, tokenizer: Any, folder: Path, seed: int, *rest: Any, **more: Any
    ) -> Any:
        asked.append(seed)
        raise Seen

    path = place / "one.yaml"
    path.write_text("verb: train\n")
    config = stage(place, seed=5)
    planned = recipe.Planned("one", "train", train.STAGE, config, place / "run", ())
    whole = recipe.Recipe("one", path, place / "run", {"one": planned}, None)
    for module in (preview, train):
        monkeypatch.setattr(module, "build_source", build)
    with pytest.raises(Seen):
        preview.preview(whole, None, 0, 1, Context())
    with pytest.raises(Seen):
        run(config, place / "run")
    assert asked == [seeds.derive(5, "data")] * 2


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("causal", {}, "data: kind 'causal' does not train a model of kind 'encoder'"),
        ("masked", {"objective": {"kind": "mlm_next_sentence"}}, "go together"),
    ],
)
def test_a_model_in_a_folder_is_checked(place: Path, kind: str, more: dict[str, Any], message: str) -> None:
    run(stage(place, "masked"), place / "first")
    config = stage(place, kind, model=str(place / "first"), **more)
    with pytest.raises(DataError, match=message) as caught:
        run(config, place / "second")
    assert "\n" not in str(caught.value)


def test_a_model_in_a_folder_goes_on(place: Path) -> None:
    run(stage(place, "next_sentence", objective={"kind": "mlm_next_sentence"}), place / "first")
    config = stage(place, "masked", model=str(place / "first"))
    assert run(config, place / "second")["steps"] == 2


def test_a_head_that_the_model_lacks_is_new_and_said(place: Path) -> None:
    run(stage(place, "masked"), place / "first")
    said: list[str] = []
    config = stage(
        place, "next_sentence", model=str(place / "first"), objective={"kind": "mlm_next_sentence"}
    )
    with Run.open(place / "second", config.to_dict(), dict.fromkeys(train.inputs(config), "same")) as opened:
        result = train.run(config, opened, Context(note=said.append))
    assert any("next_sentence" in note and "start" in note for note in result["notes"])
    assert any("next_sentence" in note for note in said)


def test_every_part_of_a_mixture_is_checked(place: Path) -> None:
    def mixed(*kinds: str, **more: Any) -> dict[str, Any]:
        parts = [data(place, kind, **more) for kind in kinds]
        return {"data": {"kind": "mixture", "parts": parts, "weights": [1] * len(parts)}}

    with pytest.raises(ConfigError, match=r"data\.parts\.1: kind 'causal' does not train .*'encoder'"):
        stage(place, "masked", **mixed("masked", "causal"))
    objective = {"kind": "mlm_next_sentence"}
    with pytest.raises(ConfigError, match=r"data\.parts\.1: kind 'masked' .* go together"):
        stage(place, "masked", objective=objective, **mixed("next_sentence", "masked"))
    learned = {
        "kind": "encoder",
        "layers": 1,
        "hidden": 16,
        "heads": 2,
        "position": "learned",
        "max_length": 32,
    }
    with pytest.raises(DataError, match=r"data\.parts\.0\.max_length: 64 is more than the 32 positions"):
        run(stage(place, "masked", model=learned, **mixed("masked", "masked")), place / "run")
    assert run(stage(place, "masked", **mixed("masked", "masked")), place / "good")["steps"] == 2


def test_objectives_that_no_recipe_can_use_are_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="objective"):
        stage(place, "masked", objective={"kind": "labels"})
    sentence = {"kind": "mlm_next_sentence", "next_sentence": {"head": "tokens"}}
    with pytest.raises(ConfigError, match="'tokens' is the head over the vocabulary"):
        stage(place, "next_sentence", objective=sentence)
    sentence["next_sentence"] = {"head": "follows"}
    run(stage(place, "next_sentence", objective=sentence), place / "run")
    assert set(load_model(place / "run" / "model").heads) == {"tokens", "follows"}


def test_a_dev_split_without_rows_says_what_to_do(place: Path) -> None:
    write_split(place / "corpus" / "dev.parquet", 0)
    with pytest.raises(DataError, match=r"the split 'dev' has no rows; set evaluation: null$"):
        run(stage(place), place / "run")
    assert run(stage(place, evaluation=None), place / "run2")["steps"] == 2


def test_the_card_of_an_exported_model_may_be_edited(place: Path) -> None:
    run(stage(place), place / "run")
    model = place / "run" / "model"
    (model / "README.md").write_text("# Mine")
    load_model(model)
    (model / "generation_config.json").write_text("{}")
    with pytest.raises(Exception, match="generation_config"):
        load_model(model)


@pytest.mark.parametrize("kind", ["causal", "pairs"])
def test_flops_are_those_of_the_rows(place: Path, kind: str) -> None:
    config = stage(place, kind)
    result = run(config, place / "run")
    model = load_model(place / "run" / "model")
    tokenizer = train.data_tokenizer(config)
    source, _ = train.sources(config, place / "again", tokenizer, Context())
    batch = source.step(0)[0]
    rows = batch["ids"].shape[0]
    lengths = [
        round(int((batch[key] != 0).sum()) / rows) if key in batch else 0
        for key in ("segments", "source_segments")
    ]
    assert len(source.step(0)) == 1
    assert result["flops_per_token"] == model.flops_per_token(*lengths)
    assert (lengths[1] > 0) is (kind == "pairs")
    assert result["flops_per_token"] > 6 * 16 * model.spec.vocabulary * (0.3 if kind == "pairs" else 1)


def test_a_dry_run_of_a_mixture_counts_its_parts(place: Path) -> None:
    path = place / "mixed.yaml"
    parts = [data(place, "causal"), data(place, "causal", batch_tokens=2048)]
    mixture = {"kind": "mixture", "parts": parts, "weights": [3, 1], "picks": 2}
    config = stage(place, data=mixture, budget={"steps": 600})
    planned = recipe.Planned("mixed", "train", train.STAGE, config, place / "runs" / "mixed", ())
    whole = recipe.Recipe("mixed", path, place / "runs" / "mixed", {"mixed": planned}, None)
    assert dry.step_tokens(config.data) == 2 * (3 * 512 + 2048) // 4
    lines = dry.run(whole, Context())
    assert "a step of 1,792 tokens" in lines[1]
    assert "about" in lines[2]
    assert not (place / "runs").exists()


def test_the_cold_first_step_is_not_measured(place: Path, tmp_path: Path) -> None:
    config = train.shrink(stage(place))
    run(config, place / "run")
    assert pipeline.last_metrics(place / "run" / "metrics.jsonl")["step"] == 3
    metrics = tmp_path / "metrics.jsonl"
    clock = [(1, 9.0), (2, 9.5), (3, 10.0)]
    metrics.write_text("".join(f'{{"step": {s}, "seconds": {t}}}\n{{"step": {s}}}\n' for s, t in clock))
    assert dry.step_seconds(metrics) == 0.5
    assert dry.step_seconds(tmp_path / "none.jsonl") is None
