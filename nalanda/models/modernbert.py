"""ModernBERT (Warner et al. 2024): norms before, rotary positions, gated feed-forward, every third layer sees all.

The first layer's attention has no norm, as the embeddings have just had theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nalanda.models.family import ACTIVATION, Family, Head, Key, Row, classes
from nalanda.models.rope import LayerTypes, RopeByType
from nalanda.models.shape import Shape
from nalanda.nn.spec import HeadSpec, NormSpec, PlacesHeadSpec, SequenceHeadSpec, SpanHeadSpec, TokensHeadSpec

TYPES = LayerTypes(
    rule=lambda config, layer: layer % config.get("global_attn_every_n_layers", 3) != 0,
    window=128,
    layers=22,
    key="local_attention",
    to_window=lambda width: (
        width // 2 + 1
    ),  # theirs counts both sides: 128 is 64 to the left and to the right
    from_window=lambda window: 2 * (window - 1),
)


def _activation(config: Mapping[str, Any]) -> Any:
    return ACTIVATION.read(config.get("classifier_activation", "gelu"))


def _transform(shape: Shape, config: Mapping[str, Any]) -> dict[str, Any]:
    """The dense layer and norm that every head begins with."""
    return {
        "transform": True,
        "transform_bias": config.get("classifier_bias", False),
        "activation": _activation(config),
        "norm": NormSpec(eps=shape.norm_eps, bias=shape.norm_bias),
    }


def _tokens(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    return TokensHeadSpec(bias=config.get("decoder_bias", True), **_transform(shape, config))


def _labels(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    return SequenceHeadSpec(
        classes=classes(config),
        place="mean" if config.get("classifier_pooling", "cls") == "mean" else "first",
        pooler_bias=config.get("classifier_bias", False),
        pooler_activation=_activation(config),
        pooler_norm=NormSpec(eps=shape.norm_eps, bias=shape.norm_bias),
        dropout=config.get("classifier_dropout", 0.0),
    )


def _says_labels(spec: SequenceHeadSpec) -> dict[str, Any]:
    return {"classifier_pooling": "mean" if spec.place == "mean" else "cls"}


def _places(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    dropout = config.get("classifier_dropout", 0.0)
    return PlacesHeadSpec(classes=classes(config), dropout=dropout, **_transform(shape, config))


def _span(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    return SpanHeadSpec(dropout=config.get("classifier_dropout", 0.0), **_transform(shape, config))


LAYER, BLOCK = "model.layers.*.", "encoder.blocks.*."
DENSE = (Row("head.dense", "heads.@.transform"), Row("head.norm", "heads.@.norm"))
CLASSIFIER = Row("classifier", "heads.@.output")

MODERNBERT = Family(
    name="modernbert",
    model_types=("modernbert",),
    base="ModernBertModel",
    prefix="model.",
    constants={"kind": "encoder", "feedforward": "glu", "embedding_norm": True, "first_norm": False},
    keys=(
        Key("vocab_size", "vocabulary", 50368),
        Key("hidden_size", "hidden", 768),
        Key("num_hidden_layers", "layers", 22),
        Key("num_attention_heads", "heads", 12),
        Key("intermediate_size", "inner", 1152),
        Key("hidden_activation", "activation", "gelu", ACTIVATION),
        Key("max_position_embeddings", "max_length", 8192),
        Key("initializer_range", "init_std", 0.02),
        Key("norm_eps", "norm_eps", 1e-5),
        Key("norm_bias", "norm_bias", False),
        Key("attention_bias", "bias", False),
        Key("mlp_bias", "feedforward_bias", False),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("mlp_dropout", "inner_dropout", 0.0),
        Key("embedding_dropout", "dropout", 0.0),
        Key("tie_word_embeddings", "tie_embeddings", True),
        TYPES,
        RopeByType(
            TYPES, full=160_000.0, sliding=10_000.0, full_key="global_rope_theta", sliding_key="local_rope_theta",
            shared=True,
        ),
    ),
    rows=(
        Row("model.embeddings.tok_embeddings", "tokens"),
        Row("model.embeddings.norm", "encoder.embed.norm"),
        Row(f"{LAYER}attn_norm", f"{BLOCK}attention_norm"),
        Row(f"{LAYER}attn.Wqkv", f"{BLOCK}attention.qkv"),
        Row(f"{LAYER}attn.Wo", f"{BLOCK}attention.output"),
        Row(f"{LAYER}mlp_norm", f"{BLOCK}feedforward_norm"),
        Row(f"{LAYER}mlp.Wi", f"{BLOCK}feedforward.gate_up"),
        Row(f"{LAYER}mlp.Wo", f"{BLOCK}feedforward.output"),
        Row("model.final_norm", "encoder.norm"),
    ),
    heads=(
        Head("tokens", "tokens", _tokens, (*DENSE, Row("decoder", "heads.@.output"))),
        Head("labels", "sequence", _labels, (
            Row("head.dense", "heads.@.pooler"), Row("head.norm", "heads.@.norm"), CLASSIFIER,
        ), _says_labels),
        Head("places", "places", _places, (*DENSE, CLASSIFIER)),
        Head("span", "span", _span, (*DENSE, CLASSIFIER)),
    ),
    architectures={
        "ModernBertForMaskedLM": ("tokens",),
        "ModernBertForSequenceClassification": ("labels",),
        "ModernBertForTokenClassification": ("places",),
        "ModernBertForQuestionAnswering": ("span",),
    },
    aliases={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    derived=("*.inv_freq", "*_inv_freq"),
    fresh=dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
    presets={
        "modernbert-base": {},
        "modernbert-large": {
            "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 2624,
        },
    },
)  # fmt: skip
