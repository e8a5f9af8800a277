"""DistilBERT (Sanh et al. 2019): half of BERT's layers, no sentence types, no pooler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nalanda.models.bert import CONSTANTS
from nalanda.models.family import ACTIVATION, Family, Fixed, Head, Key, Row, classes
from nalanda.models.shape import Shape
from nalanda.nn.spec import (
    HeadSpec,
    NormSpec,
    PlacesHeadSpec,
    SequenceHeadSpec,
    SpanHeadSpec,
    TokensHeadSpec,
)

EPS = 1e-12
LAYER, BLOCK = "distilbert.transformer.layer.*.", "encoder.blocks.*."


def _tokens(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    return TokensHeadSpec(bias=True, transform=True, activation=shape.activation, norm=NormSpec(eps=EPS))


def _labels(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    dropout = config.get("seq_classif_dropout", 0.2)
    return SequenceHeadSpec(classes=classes(config), pooler_activation="relu", dropout=dropout)


def _places(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    return PlacesHeadSpec(classes=classes(config), dropout=shape.dropout)


def _span(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    return SpanHeadSpec(dropout=config.get("qa_dropout", 0.1))


DISTILBERT = Family(
    name="distilbert",
    model_types=("distilbert",),
    base="DistilBertModel",
    prefix="distilbert.",
    constants={**CONSTANTS, "norm_eps": EPS},
    keys=(
        Key("vocab_size", "vocabulary", 30522),
        Key("dim", "hidden", 768),
        Key("n_layers", "layers", 6),
        Key("n_heads", "heads", 12),
        Key("hidden_dim", "inner", 3072),
        Key("activation", "activation", "gelu", ACTIVATION),
        Key("dropout", "dropout", 0.1),
        Key("attention_dropout", "attention_dropout", 0.1),
        Key("max_position_embeddings", "max_length", 512),  # stored also where sinusoidal_pos_embds made them
        Key("initializer_range", "init_std", 0.02),
        Key("tie_word_embeddings", "tie_embeddings", True),
        Fixed("pruned_heads", {}),
    ),
    rows=(
        Row("distilbert.embeddings.word_embeddings", "tokens"),
        Row("distilbert.embeddings.position_embeddings", "encoder.embed.positions.table"),
        Row("distilbert.embeddings.LayerNorm", "encoder.embed.norm"),
        Row(f"{LAYER}attention.{{q_lin,k_lin,v_lin}}", f"{BLOCK}attention.qkv"),
        Row(f"{LAYER}attention.out_lin", f"{BLOCK}attention.output"),
        Row(f"{LAYER}sa_layer_norm", f"{BLOCK}attention_norm"),
        Row(f"{LAYER}ffn.lin1", f"{BLOCK}feedforward.input"),
        Row(f"{LAYER}ffn.lin2", f"{BLOCK}feedforward.output"),
        Row(f"{LAYER}output_layer_norm", f"{BLOCK}feedforward_norm"),
    ),
    heads=(
        Head("tokens", "tokens", _tokens, (
            Row("vocab_transform", "heads.@.transform"),
            Row("vocab_layer_norm", "heads.@.norm"),
            Row("vocab_projector", "heads.@.output"),
        )),
        Head("labels", "sequence", _labels, (
            Row("pre_classifier", "heads.@.pooler"), Row("classifier", "heads.@.output"),
        )),
        Head("places", "places", _places, (Row("classifier", "heads.@.output"),)),
        Head("span", "span", _span, (Row("qa_outputs", "heads.@.output"),)),
    ),
    architectures={
        "DistilBertForMaskedLM": ("tokens",),
        "DistilBertForSequenceClassification": ("labels",),
        "DistilBertForTokenClassification": ("places",),
        "DistilBertForQuestionAnswering": ("span",),
    },
    aliases={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    derived=("*embeddings.position_ids",),
    presets={
        "distilbert-base-uncased": {},
        "distilbert-base-multilingual-cased": {"vocab_size": 119547},
    },
)  # fmt: skip
