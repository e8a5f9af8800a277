"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020): BERT's layers, positions that begin behind pad's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nalanda.models.bert import CONSTANTS, KEYS, PLACES, dropout, pooler, rows
from nalanda.models.family import ConfigProblem, Family, Head, Key, Row, classes
from nalanda.models.shape import Shape
from nalanda.nn.spec import HeadSpec, NormSpec, SequenceHeadSpec, TokensHeadSpec


@dataclass(frozen=True)
class PositionsAfterPad:
    """A table of `max_position_embeddings` rows, of which those up to the number of pad's id are not used."""

    default: int = 512

    def names(self) -> tuple[str, ...]:
        """See family.Part."""
        return ("max_position_embeddings", "pad_token_id")

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See family.Part."""
        pad, size = config.get("pad_token_id", 1), config.get("max_position_embeddings", self.default)
        if not isinstance(pad, int) or pad < 0:
            raise ConfigProblem(
                f"pad_token_id is {pad!r}; positions begin behind it, so it must be 0 or more"
            )
        return {"offset": pad + 1, "max_length": size - pad - 1}

    def write(self, shape: Shape) -> dict[str, Any]:
        """See family.Part."""
        return {"max_position_embeddings": shape.max_length + shape.offset, "pad_token_id": shape.offset - 1}


def tokens(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """The masked token; the activation is GELU whatever the layers have."""
    return TokensHeadSpec(bias=True, transform=True, norm=NormSpec(eps=shape.norm_eps))


def labels(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Classes of a text, from its first token through a dense layer that is the head's own."""
    return SequenceHeadSpec(classes=classes(config), dropout=dropout(config))


HEADS = (
    Head("tokens", "tokens", tokens, (
        Row("lm_head.dense", "heads.@.transform"),
        Row("lm_head.layer_norm", "heads.@.norm"),
        Row("lm_head.decoder.weight", "heads.@.output.weight"),
        Row("lm_head.bias", "heads.@.output.bias"),
    )),
    Head("labels", "sequence", labels, (
        Row("classifier.dense", "heads.@.pooler"), Row("classifier.out_proj", "heads.@.output"),
    )),
    *PLACES,
    Head("pooler", "embedding", pooler, (Row("roberta.pooler.dense", "heads.@.pooler"),), optional=True),
)  # fmt: skip


def family(name: str, classes_name: str, vocabulary: int, presets: Mapping[str, Mapping[str, Any]]) -> Family:
    """The family of one model_type; Hugging Face's classes begin with `classes_name`."""
    return Family(
        name=name,
        model_types=(name,),
        base=f"{classes_name}Model",
        prefix="roberta.",
        constants=CONSTANTS,
        keys=(Key("vocab_size", "vocabulary", vocabulary), *KEYS[1:], PositionsAfterPad()),
        rows=rows("roberta."),
        heads=HEADS,
        architectures={
            f"{classes_name}ForMaskedLM": ("tokens",),
            f"{classes_name}ForSequenceClassification": ("labels",),
            f"{classes_name}ForTokenClassification": ("places",),
            f"{classes_name}ForQuestionAnswering": ("span",),
            f"{classes_name}Model": ("pooler",),
        },
        aliases={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        untied={"lm_head.bias": ("lm_head.decoder.bias",)},
        derived=("*embeddings.position_ids",),
        presets=presets,
    )


COMMON = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ROBERTA = family(
    "roberta", "Roberta", 50265,
    {
        "roberta-base": COMMON,
        "roberta-large": {**COMMON, **LARGE},
    },
)  # fmt: skip
XLM_ROBERTA = family(
    "xlm-roberta", "XLMRoberta", 30522,
    {
        "xlm-roberta-base": {**COMMON, "vocab_size": 250002},
        "xlm-roberta-large": {**COMMON, **LARGE, "vocab_size": 250002},
    },
)  # fmt: skip
