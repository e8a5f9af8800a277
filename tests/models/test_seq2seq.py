"""T5, BART and their relatives: what their config.json say, old files, tensors that repeat one another."""

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
from nalanda.nn.spec import TokensHeadSpec

T5 = {
    "vocab_size": 31, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
}  # fmt: skip
BART = {
    "vocab_size": 31, "d_model": 16, "max_position_embeddings": 20, "encoder_layers": 2, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20,
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": T5,
    "bart": BART,
    "mbart": {**BART, "scale_embedding": True},
    "m2m_100": BART,
    "marian": {**BART, "scale_embedding": True, "activation_function": "swish", "pad_token_id": 30},
}
SOURCE, TARGET = torch.arange(5, 14)[None], torch.arange(9, 16)[None]


def build(name: str, tokens: TokensHeadSpec | None = None, **changes: Any) -> Model:
    """A tiny network of the family with its head, and nothing that was read from a file."""
    torch.manual_seed(0)
    family, config = FAMILIES[name], {**TINY[name], **changes}
    head = tokens or family.head("tokens", "tokens").spec(family.shape(config), config)
    model = Model(family.spec(config), {"tokens": head}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    return model.logits(model({"ids": TARGET, "source_ids": SOURCE}).hidden_BTD)


def change(folder: Path, weights: Any = None, **config: Any) -> None:
    """Changes the tensors of a folder by a function, and values of config.json; None removes the key."""
    if weights is not None:
        save_file(weights(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    values = {**json.loads((folder / "config.json").read_text()), **config}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    (folder / "manifest.json").unlink(missing_ok=True)


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def check_theirs(folder: Path, expected: torch.Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    theirs, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        found = theirs.eval()(SOURCE, decoder_input_ids=TARGET).logits
    assert found.std() > 0.02
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", list(TINY))
def test_config_there_and_back(name: str) -> None:
    family = FAMILIES[name]
    for values in (TINY[name], *family.presets.values()):
        spec = family.spec(values)
        written = family.config(spec)
        assert family.spec(written) == spec
        assert family.config(spec, written) == written
        assert written["is_encoder_decoder"] is True


@pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours
@pytest.mark.parametrize("name", list(TINY))
def test_absent_keys_mean_what_transformers_means(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(name).to_dict()
    assert FAMILIES[name].spec({"model_type": name}) == FAMILIES[name].spec(theirs)


@pytest.mark.parametrize(
    ("value", "kind", "activation"),
    [
        ("relu", "mlp", "relu"),
        ("gated-gelu", "glu", "gelu_tanh"),
        ("gated-silu", "glu", "silu"),
        ("gelu", "mlp", "gelu"),
        ("gelu_new", "mlp", "gelu_tanh"),
    ],
)
def test_t5_feed_forward(value: str, kind: str, activation: str) -> None:
    family = FAMILIES["t5"]
    spec = family.spec({**T5, "feed_forward_proj": value})
    feedforward = spec.encoder[0].feedforward
    assert (feedforward.kind, feedforward.activation) == (kind, activation)
    assert family.spec(family.config(spec)) == spec


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj.*'mish'"),
        ("t5", {"is_decoder": True}, "is_decoder is True"),
        ("t5", {"is_encoder_decoder": False}, "an encoder or decoder alone is not read"),
        ("bart", {"normalize_before": True}, "normalize_before is True; only False"),
        ("bart", {"static_position_embeddings": True}, "static_position_embeddings is True"),
        ("mbart", {"add_final_layer_norm": False}, "add_final_layer_norm is False; only True"),
        ("m2m_100", {"pad_token_id": None}, "pad_token_id is None"),
        (
            "marian",
            {"share_encoder_decoder_embeddings": False},
            "source and target have vocabularies of their own",
        ),
        ("marian", {"d_model": 18}, "multiple of heads"),
    ],
)
def test_what_would_change_numbers_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigProblem, match=message):
        FAMILIES[name].spec({**TINY[name], **changes})


@pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours
@pytest.mark.parametrize("name", list(TINY))
def test_transformers_reads_what_was_built_here(tmp_path: Path, name: str) -> None:
    model = build(name)
    save_model(model, tmp_path / "model")
    assert torch.equal(logits(load_model(tmp_path / "model")), logits(model))
    check_theirs(tmp_path / "model", logits(model))


@pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours
@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_untied(tmp_path: Path, name: str) -> None:
    model = build(name, tie_word_embeddings=False)
    save_model(model, tmp_path / "model")
    assert "lm_head.weight" in load_file(tmp_path / "model" / "model.safetensors")
    again = load_model(tmp_path / "model")
    assert torch.equal(logits(again), logits(model))
    check_theirs(tmp_path / "model", logits(model))
    save_model(again, tmp_path / "again")
    files = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("model", "again")]
    assert files[0] == files[1]


def test_untied_with_embeddings_that_differ(tmp_path: Path) -> None:
    save_model(build("bart", tie_word_embeddings=False), tmp_path / "model")
    key = "model.decoder.embed_tokens.weight"
    change(tmp_path / "model", lambda w: {**w, key: torch.zeros_like(w[key])})
    with pytest.raises(RunError, match=f"'{key}' differs from 'model.encoder.embed_tokens.weight'"):
        load_model(tmp_path / "model")


@pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours
@pytest.mark.parametrize("scale", [1.0, 16**-0.5])
@pytest.mark.parametrize("tied", [True, False])
def test_t5_scales_or_not(tmp_path: Path, tied: bool, scale: float) -> None:
    model = build("t5", TokensHeadSpec(scale=scale), tie_word_embeddings=tied)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.head_specs["tokens"] == TokensHeadSpec(scale=scale)
    assert torch.equal(logits(again), logits(model))
    check_theirs(tmp_path / "model", logits(model))


def test_t5_goes_by_what_is_stored(tmp_path: Path) -> None:
    """Files of transformers 5 say that all is tied; what scales, and the stored matrix, decide."""
    model = build("t5", TokensHeadSpec(), tie_word_embeddings=False)
    save_model(model, tmp_path / "model")
    change(tmp_path / "model", tie_word_embeddings=True, scale_decoder_outputs=False)
    again = load_model(tmp_path / "model")
    assert not again.spec.tie_embeddings
    assert torch.equal(logits(again), logits(model))
    change(tmp_path / "model", lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"})
    tied = load_model(tmp_path / "model")
    assert tied.spec.tie_embeddings
    assert tied.head_specs["tokens"] == TokensHeadSpec()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_of_tied_tensors_any_may_be_stored(tmp_path: Path, name: str) -> None:
    model = build(name)
    save_model(model, tmp_path / "model")
    prefix = "" if name == "t5" else "model."

    def other(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        shared = weights.pop(f"{prefix}shared.weight")
        return {**weights, "lm_head.weight": shared, f"{prefix}decoder.embed_tokens.weight": shared.clone()}

    change(tmp_path / "model", other)
    assert torch.equal(logits(load_model(tmp_path / "model")), logits(model))


def test_tables_that_config_says_are_not_read(tmp_path: Path) -> None:
    for name, key in (("marian", "weight"), ("m2m_100", "weights")):
        model = build(name)
        save_model(model, tmp_path / name)
        change(
            tmp_path / name,
            lambda w, key=key: {**w, f"model.encoder.embed_positions.{key}": torch.zeros(22, 16)},
        )
        assert torch.equal(logits(load_model(tmp_path / name)), logits(model))


@pytest.mark.parametrize("name", ["bart", "m2m_100", "marian"])
def test_in_half_precision(tmp_path: Path, name: str) -> None:
    model = build(name)
    save_model(model, tmp_path / "model")
    half = logits(load_model(tmp_path / "model", dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert (half - logits(model)).abs().mean() < 0.05 * logits(model).abs().mean()


def test_bart_without_its_bias_and_its_prefix(tmp_path: Path) -> None:
    """bart-base is published as the network alone; old files of its generator have no final_logits_bias."""
    model = build("bart")
    torch.nn.init.zeros_(model.heads["tokens"].output.bias)
    save_model(model, tmp_path / "model")
    change(tmp_path / "model", lambda w: {k: v for k, v in w.items() if k != "final_logits_bias"})
    assert torch.equal(logits(load_model(tmp_path / "model")), logits(model))
    change(
        tmp_path / "model",
        lambda w: {k.removeprefix("model."): v for k, v in w.items()},
        architectures=["BartModel"],
    )
    assert not load_model(tmp_path / "model").heads
    again = load_model(tmp_path / "model", {"tokens": TokensHeadSpec()})
    assert torch.equal(logits(again), logits(model))


def test_marian_keeps_what_decoding_needs(tmp_path: Path) -> None:
    save_model(build("marian"), tmp_path / "model")
    change(
        tmp_path / "model",
        decoder_start_token_id=30,
        pad_token_id=30,
        forced_eos_token_id=0,
        encoder_layerdrop=0.1,
    )
    save_model(load_model(tmp_path / "model"), tmp_path / "again")
    words = read_config(tmp_path / "again")
    assert words["decoder_start_token_id"] == words["pad_token_id"] == 30
    assert words["architectures"] == ["MarianMTModel"]
    assert words["encoder_layerdrop"] == 0.1


PUBLISHED = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "flan-t5-small": 76_961_152,
    "flan-t5-base": 247_577_856,
    "mt5-small": 300_176_768,
    "bart-base": 139_420_416,
    "bart-large": 406_291_456,
    "mbart-large-50": 610_879_488,
    "m2m100-418m": 483_905_536,
    "nllb-200-distilled-600m": 615_073_792,
}
"""How many numbers the published networks have, their output matrix too where it is another than the embeddings."""


@pytest.mark.parametrize("preset", list(PUBLISHED))
def test_presets_are_as_large_as_what_was_published(preset: str) -> None:
    family = next(family for family in FAMILIES.values() if preset in family.presets)
    spec = family.spec(family.presets[preset])
    heads = {} if spec.tie_embeddings else {"tokens": TokensHeadSpec()}
    assert build_empty(spec, heads).parameter_count() == PUBLISHED[preset]
