"""What every stage, every objective and every network description promises, checked alike for all of them."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from nalanda.config import Config, parse
from nalanda.data.batch import Batch, check, tensors
from nalanda.models.plain import ModelConfig, MoEConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec, SequenceHeadSpec, Spec, TokensHeadSpec
from nalanda.objectives.experts import ExpertsConfig
from nalanda.objectives.loss import Loss, Objective
from nalanda.objectives.next_sentence import MlmNextSentenceConfig
from nalanda.objectives.tokens import TokensConfig
from nalanda.stages.verbs import VERBS, stage_of

VOCABULARY = 11
OBJECTIVES: dict[str, Config] = {
    "tokens": TokensConfig(label_smoothing=0.1, z_loss=1e-3),
    "mlm_next_sentence": MlmNextSentenceConfig(next_sentence_weight=0.5),
    "experts": ExpertsConfig[TokensConfig](objective=TokensConfig(), load_balance=0.1, z_loss=0.1),
}
SPECS = {
    "encoder": ModelConfig(kind="encoder", layers=1, hidden=16, heads=2, position="learned", token_types=2),
    "decoder": ModelConfig(kind="decoder", layers=2, hidden=16, heads=4, kv_heads=2, feedforward="glu"),
    "mixture": ModelConfig(kind="encoder", layers=2, hidden=16, heads=2, moe=MoEConfig(experts=4, every=2)),
    "encoder_decoder": ModelConfig(layers=1, decoder_layers=2, hidden=16, heads=2, norm="rms", qk_norm=True),
}


@pytest.fixture
def recipes(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Minimal recipes of each verb; between them they name every kind of place that a stage watches."""
    for name in ("a.txt", "b.txt", "en.json", "hi.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "tokenizer").mkdir()
    for name in ("main", "run/model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    at = str(tmp_path)
    data = {"kind": "pairs", "corpus": f"{at}/corpus", "tokenizer": f"{at}/tokenizer"}
    texts = {"kind": "text", "path": f"{at}/*.txt", "language": "eng_Latn"}
    messages = {"kind": "messages", "source_path": f"{at}/en.json", "path": f"{at}/hi.json"}
    languages = {"language": "eng_Latn", "target_language": "hin_Deva"}
    return {
        "corpus": [{"sources": [texts | {"path": f"{at}/a.txt"}, texts, messages | languages]}],
        "tokenizer": [{"corpus": f"{at}/corpus", "vocabulary": 600}],
        "train": [
            {"data": data, "model": {"layers": 1}, "budget": {"steps": 9}, "translations": {"every": 2}},
            {
                "data": {"kind": "mixture", "parts": [data, data], "weights": [1, 2]},
                "model": f"{at}/run",
                "budget": {"replay": f"{at}/checkpoint"},
            },
        ],
        "evaluate": [{"corpus": f"{at}/corpus", "models": {"main one": f"{at}/main", "other": f"{at}/run"}}],
        "report": [{"stages": [f"{at}/corpus", f"{at}/run"]}],
    }


def at_key(values: Any, key: str) -> Any:
    """What a config's plain values hold at a dotted key; a number indexes a list."""
    for part in key.split("."):
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values


@pytest.mark.parametrize("verb", VERBS)
def test_a_stage_names_its_verb_shrinks_and_knows_its_inputs(
    verb: str, recipes: dict[str, list[dict[str, Any]]]
) -> None:
    stage = stage_of(verb)
    assert issubclass(stage.config, Config)
    assert typing.get_args(stage.config.model_fields["verb"].annotation) == (verb,)
    watched = 0
    for values in recipes[verb]:
        config: Any = parse(stage.config, values, "recipe")
        with pytest.raises(ValidationError, match="frozen"):
            config.verb = verb
        assert stage.config.model_validate(json.loads(json.dumps(config.to_dict()))) == config
        shrunk = stage.shrink(config)
        assert type(shrunk) is stage.config
        assert stage.config.model_validate(shrunk.to_dict()) == shrunk, "shrunk to what a recipe may not say"
        for key, place in stage.inputs(config).items():
            named = at_key(config.to_dict(), key.partition(":")[0])  # after a colon: one file of several
            assert place.match(named) or Path(named) in place.parents, f"{key} is {named}, not {place}"
            watched += 1
    assert watched >= 1


def a_model(kind: str) -> Model:
    torch.manual_seed(3)
    heads: dict[str, HeadSpec] = {"tokens": TokensHeadSpec(), "next_sentence": SequenceHeadSpec(classes=2)}
    return Model(build_spec(SPECS[kind], VOCABULARY), heads)


def a_batch() -> Batch:
    draw = torch.Generator().manual_seed(4)
    rows, width = 3, 6
    batch = Batch(
        ids=torch.randint(VOCABULARY, (rows, width), generator=draw),
        segments=torch.ones(rows, width, dtype=torch.int32),
        positions=torch.arange(width, dtype=torch.int32).repeat(rows, 1),
        targets=torch.randint(VOCABULARY, (rows, width), generator=draw),
        target_weight=(torch.rand(rows, width, generator=draw) < 0.5).float(),
        labels=torch.tensor([0, 1, 1]),
        label_weight=torch.tensor([1.0, 0.5, 0.0]),
    )
    check(batch)
    return batch


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_gives_sums_for_the_terms_it_counts(kind: str) -> None:
    objective = typing.cast(Objective, OBJECTIVES[kind])
    model, once = a_model("mixture"), a_batch()
    twice = Batch(**{key: torch.cat([value, value]) for key, value in tensors(once)})  # type: ignore[typeddict-item]
    count, count_twice = objective.weights(once), objective.weights(twice)
    loss: Loss = objective(model, once, count)
    loss_twice: Loss = objective(model, twice, count_twice)
    assert set(loss.terms) == set(count) == set(count_twice)
    for name, term in loss.terms.items():
        assert term.shape == ()
        assert term.requires_grad
        value = term.item()
        assert value > 0
        assert loss_twice.terms[name].item() == pytest.approx(2 * value, rel=1e-5)
        assert count_twice[name] == pytest.approx(2 * count[name], rel=1e-6)
    assert set(loss.metrics) == set(loss_twice.metrics) != set()
    for name, metric in loss.metrics.items():
        assert len(metric) == 2
        for part, part_twice in zip(metric, loss_twice.metrics[name]):
            assert part.shape == ()
            assert not part.requires_grad
            assert part_twice.item() == pytest.approx(2 * part.item(), rel=1e-5)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_is_a_frozen_config_of_its_kind(kind: str) -> None:
    objective = OBJECTIVES[kind]
    assert objective.to_dict()["kind"] == kind
    assert type(objective).model_validate(objective.to_dict()) == objective
    for name in type(objective).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(objective, name, getattr(objective, name))


@pytest.mark.parametrize("kind", SPECS)
def test_a_spec_is_plain_frozen_data_that_decides_every_shape(kind: str) -> None:
    spec = build_spec(SPECS[kind], VOCABULARY)
    again = Spec.model_validate(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    with pytest.raises(ValidationError, match="frozen"):
        spec.hidden = 32

    def shapes(of: Spec) -> dict[str, torch.Size]:
        return {
            name: value.shape for name, value in Model(of, {"tokens": TokensHeadSpec()}).state_dict().items()
        }

    assert shapes(again) == shapes(spec)
    assert shapes(spec.model_copy(update={"vocabulary": VOCABULARY + 1})) != shapes(spec)
