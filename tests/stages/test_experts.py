"""Training mixtures of experts from a recipe: new ones, dense models upcycled, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nalanda.base.errors import DataError
from nalanda.base.run import Run
from nalanda.config import ConfigError, parse
from nalanda.corpus.document import Document
from nalanda.corpus.store import SplitWriter
from nalanda.models.exchange import load_model
from nalanda.nn.spec import FeedForwardSpec, MoESpec
from nalanda.stages import train
from nalanda.stages.stage import Context
from nalanda.tokenizer.train import TokenizerConfig
from nalanda.tokenizer.train import train as train_tokenizer

TEXTS = [f"The word{i % 7} is here. It is number {i}. So be it." for i in range(40)]
AROUND = {"kind": "experts", "objective": {"kind": "tokens"}, "load_balance": 0.01}
MOE = {"experts": 4, "top_k": 2, "balance_bias": True}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with corpus/ and tokenizer/."""
    (tmp_path / "corpus").mkdir()
    for split in ("train", "dev"):
        with (tmp_path / "corpus" / f"{split}.parquet").open("wb") as file, SplitWriter(file) as writer:
            for i, text in enumerate(TEXTS):
                writer.write(Document(text, f"{split}:{i}", "eng_Latn"))
    config = parse(
        TokenizerConfig, {"vocabulary": 310, "languages": ["eng_Latn"], "min_frequency": 1}, "test"
    )
    train_tokenizer(TEXTS, config).save(tmp_path / "tokenizer")
    return tmp_path


def stage(place: Path, model: Any = None, **more: Any) -> train.TrainStage:
    small = {"kind": "decoder", "layers": 2, "hidden": 16, "heads": 2}
    values = {
        "data": {
            "kind": "causal",
            "corpus": str(place / "corpus"),
            "tokenizer": str(place / "tokenizer"),
            "max_length": 64,
            "batch_tokens": 512,
        },
        "model": {**small, **(model or {})} if not isinstance(model, str) else model,
        "budget": {"steps": 2},
        "compile": "off",
        "log_every": 1,
        "evaluation": {"every": 2},
        "threads": 1,
        **more,
    }
    return parse(train.TrainStage, values, "test")


def run(config: train.TrainStage, folder: Path) -> dict[str, Any]:
    with Run.open(folder, config.to_dict(), dict.fromkeys(train.inputs(config), "same")) as opened:
        result = train.run(config, opened, Context())
        opened.finish(result)
    return result


def test_a_new_mixture_and_an_upcycled_one_train_and_load(place: Path) -> None:
    objective = {**AROUND, "bias_rate": 1e-4}
    config = stage(place, {"moe": {**MOE, "every": 2}}, objective=objective)
    assert type(config).model_validate(config.to_dict()) == config
    result = run(config, place / "new")
    assert result["active_parameters"] < result["parameters"]
    rows = [json.loads(line) for line in (place / "new" / "metrics.jsonl").read_text().splitlines()]
    assert all(1 <= row["expert_load_max"] <= 2 for row in rows if "nll" in row)
    assert [row["dev_expert_load_entropy"] <= 1 for row in rows if "dev_loss" in row] == [True]
    model = load_model(place / "new" / "model")
    assert [type(block.feedforward) for block in model.spec.decoder] == [FeedForwardSpec, MoESpec]
    name = "transformer.decoder.blocks.1.feedforward.router.balance_bias"
    assert 0 < model.state_dict()[name].abs().max() < 3e-4
    run(stage(place), place / "dense")
    again = stage(place, str(place / "dense"), upcycle=MOE, objective=objective)
    assert train.STAGE.shrink(again).upcycle == again.upcycle
    result = run(again, place / "upcycled")
    assert result["parameters"] > load_model(place / "dense" / "model").parameter_count()
    model = load_model(place / "upcycled" / "model")
    assert all(isinstance(block.feedforward, MoESpec) for block in model.spec.decoder)


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ({}, {"objective": AROUND}, "needs a model with mixtures of experts"),
        ({"moe": {}}, {"objective": {**AROUND, "bias_rate": 0.1}}, "mixtures have no balance_bias"),
        ({"moe": {}}, {"upcycle": {}}, "upcycle: is for the model of a folder"),
        ({"moe": {"top_k": 9}}, {}, "must not be more than experts"),
        (
            {"moe": {}},
            {"objective": {**AROUND, "objective": {"kind": "mlm_next_sentence"}}},
            "kind 'causal' does not go with objective 'mlm_next_sentence'",
        ),
        ({"moe": {}}, {"objective": {**AROUND, "objective": AROUND}}, "objective"),
    ],
)
def test_what_does_not_fit_is_said_before_training(
    place: Path, model: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        stage(place, model, **more)


def test_a_dense_model_of_a_folder_needs_upcycling(place: Path) -> None:
    run(stage(place), place / "dense")
    with pytest.raises(DataError, match=r"dense.*needs a model with mixtures of experts"):
        run(stage(place, str(place / "dense"), objective=AROUND), place / "more")
