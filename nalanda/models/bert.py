"""BERT (Devlin et al. 2019): an encoder with norms after each sub-layer, learned positions and sentence types.

The rows and keys here serve RoBERTa and XLM-R too, which differ in their positions and heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nalanda.models.family import (
    ACTIVATION,
    Codec,
    ConfigProblem,
    Family,
    Fixed,
    Head,
    Key,
    Part,
    Row,
    classes,
)
from nalanda.models.shape import Shape
from nalanda.nn.spec import (
    EmbeddingHeadSpec,
    HeadSpec,
    NormSpec,
    PlacesHeadSpec,
    SequenceHeadSpec,
    SpanHeadSpec,
    TokensHeadSpec,
)

CONSTANTS = {
    "kind": "encoder", "norm_place": "post", "bias": True, "feedforward_bias": True, "position": "learned",
    "embedding_norm": True, "final_norm": False,
}  # fmt: skip


def _at_least_one(value: Any) -> Any:
    if value < 1:
        raise ConfigProblem(f"type_vocab_size is {value}; a BERT has at least 1")
    return value


KEYS: tuple[Part, ...] = (
    Key("vocab_size", "vocabulary", 30522),
    Key("hidden_size", "hidden", 768),
    Key("num_hidden_layers", "layers", 12),
    Key("num_attention_heads", "heads", 12),
    Key("intermediate_size", "inner", 3072),
    Key("hidden_act", "activation", "gelu", ACTIVATION),
    Key("hidden_dropout_prob", "dropout", 0.1),
    Key("attention_probs_dropout_prob", "attention_dropout", 0.1),
    Key("type_vocab_size", "token_types", 2, Codec(_at_least_one, int)),
    Key("initializer_range", "init_std", 0.02),
    Key("layer_norm_eps", "norm_eps", 1e-12),
    Key("tie_word_embeddings", "tie_embeddings", True),
    Fixed("position_embedding_type", "absolute"),
    Fixed("is_decoder", False),
    Fixed("add_cross_attention", False),
    Fixed("pruned_heads", {}),
)
"""All but the positions."""


def rows(prefix: str) -> tuple[Row, ...]:
    """BERT's tensors, in a class that calls its BERT `prefix`."""
    layer, block = f"{prefix}encoder.layer.*.", "encoder.blocks.*."
    return (
        Row(f"{prefix}embeddings.word_embeddings", "tokens"),
        Row(f"{prefix}embeddings.position_embeddings", "encoder.embed.positions.table"),
        Row(f"{prefix}embeddings.token_type_embeddings", "encoder.embed.types"),
        Row(f"{prefix}embeddings.LayerNorm", "encoder.embed.norm"),
        Row(f"{layer}attention.self.{{query,key,value}}", f"{block}attention.qkv"),
        Row(f"{layer}attention.output.dense", f"{block}attention.output"),
        Row(f"{layer}attention.output.LayerNorm", f"{block}attention_norm"),
        Row(f"{layer}intermediate.dense", f"{block}feedforward.input"),
        Row(f"{layer}output.dense", f"{block}feedforward.output"),
        Row(f"{layer}output.LayerNorm", f"{block}feedforward_norm"),
    )


def dropout(config: Mapping[str, Any]) -> float:
    """Of the heads that give classes."""
    own = config.get("classifier_dropout")
    return float(config.get("hidden_dropout_prob", 0.1) if own is None else own)


def tokens(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """The masked token, through a dense layer, activation and norm."""
    norm = NormSpec(eps=shape.norm_eps)
    return TokensHeadSpec(bias=True, transform=True, activation=shape.activation, norm=norm)


def order(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Whether the second sentence follows the first."""
    return SequenceHeadSpec(classes=2)


def labels(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Classes of a text, from its first token."""
    return SequenceHeadSpec(classes=classes(config), dropout=dropout(config))


def places(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Classes of each token."""
    return PlacesHeadSpec(classes=classes(config), dropout=dropout(config))


def span(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Start and end of an answer."""
    return SpanHeadSpec()


def pooler(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """The vector of a text's first token, as the network without a head gives it."""
    return EmbeddingHeadSpec(place="first", pooler=True, normalize=False)


POOLER = Row("bert.pooler.dense", "heads.@.pooler")
PLACES = (
    Head("places", "places", places, (Row("classifier", "heads.@.output"),)),
    Head("span", "span", span, (Row("qa_outputs", "heads.@.output"),)),
)

BERT = Family(
    name="bert",
    model_types=("bert",),
    base="BertModel",
    prefix="bert.",
    constants=CONSTANTS,
    keys=(*KEYS, Key("max_position_embeddings", "max_length", 512)),
    rows=rows("bert."),
    heads=(
        Head("tokens", "tokens", tokens, (
            Row("cls.predictions.transform.dense", "heads.@.transform"),
            Row("cls.predictions.transform.LayerNorm", "heads.@.norm"),
            Row("cls.predictions.decoder.weight", "heads.@.output.weight"),
            Row("cls.predictions.bias", "heads.@.output.bias"),
        )),
        Head("labels", "sequence", labels, (POOLER, Row("classifier", "heads.@.output"))),
        Head("next_sentence", "sequence", order, (POOLER, Row("cls.seq_relationship", "heads.@.output"))),
        *PLACES,
        Head("pooler", "embedding", pooler, (POOLER,), optional=True),
    ),
    architectures={
        "BertForPreTraining": ("tokens", "next_sentence"),
        "BertForMaskedLM": ("tokens",),
        "BertForNextSentencePrediction": ("next_sentence",),
        "BertForSequenceClassification": ("labels",),
        "BertForTokenClassification": ("places",),
        "BertForQuestionAnswering": ("span",),
        "BertModel": ("pooler",),
    },
    aliases={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    untied={"cls.predictions.bias": ("cls.predictions.decoder.bias",)},
    derived=("*embeddings.position_ids",),
    presets={
        "bert-base-uncased": {},
        "bert-base-multilingual-cased": {"vocab_size": 119547},
        "bert-large-uncased": {
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        },
    },
)  # fmt: skip
