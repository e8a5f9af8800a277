"""BERT and its relatives: what their config.json say, old files, heads that come and go, and saving from nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nalanda.base.errors import RunError
from nalanda.models.auto import FAMILIES
from nalanda.models.exchange import load_model, save_model
from nalanda.models.family import ConfigProblem
from nalanda.models.reading import build_empty
from nalanda.nn.model import Model
from nalanda.nn.spec import (
    EmbeddingHeadSpec,
    HeadSpec,
    PlacesHeadSpec,
    SequenceHeadSpec,
    SpanHeadSpec,
    TokensHeadSpec,
)

BERT = {
    "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 12,
}  # fmt: skip
ROBERTA = {**BERT, "max_position_embeddings": 14, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
TINY: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "distilbert": {
        "vocab_size": 31, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 12,
    },
    "modernbert": {**BERT, "num_hidden_layers": 4, "local_attention": 6, "pad_token_id": 0},
}  # fmt: skip
AUTO = {
    "tokens": "AutoModelForMaskedLM",
    "labels": "AutoModelForSequenceClassification",
    "places": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
}


def build(name: str, heads: dict[str, HeadSpec] | None = None) -> Model:
    """A tiny network of the family with its heads, and nothing that was read from a file."""
    torch.manual_seed(0)
    family, config = FAMILIES[name], {**TINY[name], "num_labels": 3}
    if heads is None:
        heads = {"tokens": family.head("tokens", "tokens").spec(family.shape(config), config)}
    model = Model(family.spec(config), heads).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


def family_head(name: str, head: str) -> HeadSpec:
    family, config = FAMILIES[name], {**TINY[name], "num_labels": 3}
    found = next(h for h in family.heads if h.name == head)
    return found.spec(family.shape(config), config)


def logits(model: Model, head: str) -> torch.Tensor:
    ids = torch.arange(5, 14)[None]
    return model.logits(model({"ids": ids}).hidden_BTD, head)


def rewrite(folder: Path, **changes: Any) -> None:
    """Changes config.json's values; None removes the key."""
    values = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    (folder / "manifest.json").unlink(missing_ok=True)


def rename(folder: Path, change: Any) -> None:
    """Changes the tensors' names and what they hold."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    (folder / "manifest.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", list(TINY))
def test_config_there_and_back(name: str) -> None:
    family = FAMILIES[name]
    for values in (TINY[name], *family.presets.values()):
        spec = family.spec(values)
        written = family.config(spec)
        assert family.spec(written) == spec
        assert family.config(spec, written) == written


@pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours
@pytest.mark.parametrize("name", list(TINY))
def test_absent_keys_mean_what_transformers_means(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(name).to_dict()
    assert FAMILIES[name].shape({"model_type": name}) == FAMILIES[name].shape(theirs)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder is True"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("bert", {"type_vocab_size": 0}, "type_vocab_size is 0"),
        ("bert", {"hidden_act": "mish"}, "hidden_act.*'mish'"),
        ("bert", {"num_attention_heads": 3}, "multiple of heads"),
        ("roberta", {"pad_token_id": None}, "pad_token_id is None"),
        ("roberta", {"pad_token_id": -1}, "pad_token_id is -1"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings"),
        ("modernbert", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
    ],
)
def test_what_would_change_numbers_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigProblem, match=message):
        FAMILIES[name].spec({**TINY[name], **changes})


def test_modernbert_old_and_new_files_say_the_same() -> None:
    family = FAMILIES["modernbert"]
    old = {
        **TINY["modernbert"], "global_attn_every_n_layers": 3, "global_rope_theta": 500.0, "local_rope_theta": 40.0,
    }  # fmt: skip
    spec = family.spec(old)
    assert [block.attention.window for block in spec.encoder] == [None, 4, 4, None]
    assert [block.attention.rotary.theta for block in spec.encoder] == [500.0, 40.0, 40.0, 500.0]
    assert [block.attention_norm for block in spec.encoder] == [False, True, True, True]
    new = family.config(spec)
    assert new["local_attention"] == 6
    assert "layer_types" in new
    assert family.spec({k: v for k, v in new.items() if not k.endswith("_rope_theta")}) == spec


@pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours
@pytest.mark.parametrize("head", list(AUTO))
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
def test_transformers_reads_what_was_built_here(tmp_path: Path, name: str, head: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = build(name, {head: family_head(name, head)})
    save_model(model, tmp_path / "model")
    theirs, report = getattr(transformers, AUTO[head]).from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(report.values())
    with torch.no_grad():
        output = theirs.eval()(torch.arange(5, 14)[None])
        found = logits(model, head)
    expected = torch.stack([output.start_logits, output.end_logits], -1) if head == "span" else output.logits
    assert expected.std() > 0.05
    assert (found - expected).abs().max() < 1e-5
    assert torch.equal(logits(load_model(tmp_path / "model"), head), found)


def test_a_head_that_the_family_does_not_build_is_saved_as_ours(tmp_path: Path) -> None:
    model = build("bert", {"tokens": TokensHeadSpec()})
    save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "nalanda"
    assert torch.equal(logits(load_model(tmp_path / "model"), "tokens"), logits(model, "tokens"))


def test_bare_bert_with_and_without_pooler(tmp_path: Path) -> None:
    model = build("bert", {"pooler": family_head("bert", "pooler")})
    save_model(model, tmp_path / "with")
    stored = load_file(tmp_path / "with" / "model.safetensors")
    assert "pooler.dense.weight" in stored
    assert "embeddings.word_embeddings.weight" in stored
    assert torch.equal(logits(load_model(tmp_path / "with"), "pooler"), logits(model, "pooler"))
    save_model(load_model(tmp_path / "with"), tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == stored.keys()

    rename(tmp_path / "with", lambda w: {k: v for k, v in w.items() if not k.startswith("pooler")})
    bare = load_model(tmp_path / "with")
    assert not bare.heads
    save_model(bare, tmp_path / "without")
    assert "nalanda" not in json.loads((tmp_path / "without" / "config.json").read_text())
    assert not load_model(tmp_path / "without").heads


def test_names_of_tensorflow_and_what_copies_store(tmp_path: Path) -> None:
    model = build("bert")
    save_model(model, tmp_path / "model")

    def old(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for k, v in weights.items()
        }
        found["cls.predictions.decoder.weight"] = found["bert.embeddings.word_embeddings.weight"].clone()
        found["cls.predictions.decoder.bias"] = found.pop(
            "cls.predictions.bias"
        )  # of two that are one, the other
        found["bert.embeddings.position_ids"] = torch.arange(12)[None]
        return found

    rename(tmp_path / "model", old)
    assert torch.equal(logits(load_model(tmp_path / "model"), "tokens"), logits(model, "tokens"))
    rename(
        tmp_path / "model",
        lambda w: {**w, "cls.predictions.decoder.weight": torch.zeros(31, 16)},
    )
    with pytest.raises(RunError, match=r"'cls.predictions.decoder.weight' differs from 'bert.embeddings"):
        load_model(tmp_path / "model")


def test_heads_that_were_not_asked_for_are_said(tmp_path: Path) -> None:
    heads = {"tokens": family_head("bert", "tokens"), "next_sentence": SequenceHeadSpec(classes=2)}
    save_model(build("bert", heads), tmp_path / "model")
    rewrite(tmp_path / "model", architectures=["BertForMaskedLM"])  # as bert-base-uncased says
    notes: list[str] = []
    assert list(load_model(tmp_path / "model", note=notes.append).heads) == ["tokens"]
    assert any("seq_relationship" in note and "left out" in note for note in notes)

    rewrite(tmp_path / "model", architectures=None)  # then what is stored decides
    assert set(load_model(tmp_path / "model").heads) == {"tokens", "next_sentence"}


def test_a_new_classifier_keeps_the_pooler(tmp_path: Path) -> None:
    heads = {"tokens": family_head("bert", "tokens"), "next_sentence": SequenceHeadSpec(classes=2)}
    model = build("bert", heads)
    save_model(model, tmp_path / "model")
    notes: list[str] = []
    tuned = load_model(tmp_path / "model", {"labels": SequenceHeadSpec(classes=2)}, note=notes.append)
    assert torch.equal(tuned.heads["labels"].pooler.weight, model.heads["next_sentence"].pooler.weight)
    assert any("head labels starts from random" in note for note in notes)


def test_two_heads_that_would_share_tensors(tmp_path: Path) -> None:
    heads = {
        "places": PlacesHeadSpec(classes=4, dropout=0.1),
        "labels": SequenceHeadSpec(classes=3, dropout=0.1),
    }
    model = build("bert", heads)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    for head in heads:
        assert torch.equal(logits(again, head), logits(model, head))


def test_how_vectors_are_pooled_is_asked(tmp_path: Path) -> None:
    save_model(build("bert", {"pooler": family_head("bert", "pooler")}), tmp_path / "model")
    asked = EmbeddingHeadSpec(place="mean", normalize=True)
    model = load_model(tmp_path / "model", {"embedding": asked})
    assert model.head_specs == {"embedding": asked}
    save_model(model, tmp_path / "again")
    modules = json.loads((tmp_path / "again" / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
    assert load_model(tmp_path / "again").head_specs == {"embedding": asked}


def test_distilbert_has_relu_before_its_classes() -> None:
    head = family_head("distilbert", "labels")
    assert isinstance(head, SequenceHeadSpec)
    assert (head.pooler_activation, head.classes) == ("relu", 3)
    assert isinstance(family_head("distilbert", "span"), SpanHeadSpec)


PUBLISHED = {
    "bert-base-uncased": 109_482_240 - 590_592,
    "bert-large-uncased": 335_141_888 - 1_049_600,
    "roberta-base": 124_645_632 - 590_592,
    "xlm-roberta-base": 278_043_648 - 590_592,
    "distilbert-base-uncased": 66_362_880,
    "modernbert-base": 149_014_272,
}
"""How many numbers the published networks have, poolers apart."""


@pytest.mark.parametrize("preset", list(PUBLISHED))
def test_presets_are_as_large_as_what_was_published(preset: str) -> None:
    family = next(family for family in FAMILIES.values() if preset in family.presets)
    assert build_empty(family.spec(family.presets[preset]), {}).parameter_count() == PUBLISHED[preset]
