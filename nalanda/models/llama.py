"""Llama 2, 3 and what is built alike (SmolLM 2 is a Llama); the rows here serve the families that share its names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nalanda.models.family import ACTIVATION, Family, Fixed, Head, Key, Part, Row, classes
from nalanda.models.rope import Rope
from nalanda.models.shape import Shape
from nalanda.nn.spec import HeadSpec, PlacesHeadSpec, SequenceHeadSpec, SpanHeadSpec, TokensHeadSpec

CONSTANTS = {"kind": "decoder", "norm": "rms", "norm_bias": False, "feedforward": "glu"}

EMBEDDING = Row("model.embed_tokens", "tokens")
ATTENTION = (
    Row("model.layers.*.self_attn.{q,k,v}_proj", "decoder.blocks.*.attention.qkv"),
    Row("model.layers.*.self_attn.o_proj", "decoder.blocks.*.attention.output"),
)
QK_NORMS = (
    Row("model.layers.*.self_attn.q_norm", "decoder.blocks.*.attention.query_norm"),
    Row("model.layers.*.self_attn.k_norm", "decoder.blocks.*.attention.key_norm"),
)
NORMS = (
    Row("model.layers.*.input_layernorm", "decoder.blocks.*.attention_norm"),
    Row("model.layers.*.post_attention_layernorm", "decoder.blocks.*.feedforward_norm"),
)
FEEDFORWARD = (
    Row("model.layers.*.mlp.{gate,up}_proj", "decoder.blocks.*.feedforward.gate_up"),
    Row("model.layers.*.mlp.down_proj", "decoder.blocks.*.feedforward.output"),
)
FINAL_NORM = Row("model.norm", "decoder.norm")
ROWS = (EMBEDDING, *ATTENTION, *NORMS, *FEEDFORWARD, FINAL_NORM)


def tokens(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Logits over the vocabulary."""
    return TokensHeadSpec()


def labels(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Classes of a text, from its last token."""
    return SequenceHeadSpec(classes=classes(config), place="last", pooler=False, bias=False)


def places(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Classes of each token."""
    return PlacesHeadSpec(classes=classes(config), bias=config.get("token_classification_bias", True))


def span(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Start and end of an answer."""
    return SpanHeadSpec()


HEADS = (
    Head("tokens", "tokens", tokens, (Row("lm_head", "heads.@.output"),)),
    Head("labels", "sequence", labels, (Row("score", "heads.@.output"),)),
    Head("places", "places", places, (Row("score", "heads.@.output"),)),
    Head("span", "span", span, (Row("qa_outputs", "heads.@.output"),)),
)


CLASSES = {
    "tokens": "ForCausalLM",
    "labels": "ForSequenceClassification",
    "places": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}


def architectures(name: str, heads: tuple[Head, ...] = HEADS) -> dict[str, tuple[str, ...]]:
    """Hugging Face's classes for a decoder called `name` with those heads."""
    return {f"{name}{CLASSES[head.name]}": (head.name,) for head in heads}


def answering(name: str) -> dict[str, str]:
    """The prefix of the keys of those question answerers that Hugging Face made before the prefix was "model."."""
    return {f"{name}ForQuestionAnswering": "transformer."}


@dataclass(frozen=True)
class HeadSizes:
    """How many key/value heads, and how large each head is. Written as numbers, which all families read alike;
    `groups` and `dim` are what is meant where the keys are absent, None: as many as heads, hidden / heads."""

    groups: int | None = None
    dim: int | None = None

    def names(self) -> tuple[str, ...]:
        """See family.Part."""
        return ("num_key_value_heads", "head_dim")

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See family.Part."""
        return {
            "kv_heads": config.get("num_key_value_heads", self.groups),
            "head_dim": config.get("head_dim", self.dim),
        }

    def write(self, shape: Shape) -> dict[str, Any]:
        """See family.Part."""
        return {
            "num_key_value_heads": shape.kv_heads or shape.heads,
            "head_dim": shape.head_dim or shape.hidden // shape.heads,
        }


def sizes(
    vocabulary: int = 32000,
    hidden: int = 4096,
    layers: int = 32,
    inner: int = 11008,
    *,
    heads: int = 32,
    groups: int | None = None,
    dim: int | None = None,
    length: int = 2048,
    eps: float = 1e-6,
    tied: bool = False,
    activation: tuple[str, str] = ("hidden_act", "silu"),
) -> tuple[Part, ...]:
    """The keys that all these families share, with the family's defaults."""
    return (
        Key("vocab_size", "vocabulary", vocabulary),
        Key("hidden_size", "hidden", hidden),
        Key("num_hidden_layers", "layers", layers),
        Key("num_attention_heads", "heads", heads),
        HeadSizes(groups, dim),
        Key("intermediate_size", "inner", inner),
        Key(activation[0], "activation", activation[1], ACTIVATION),
        Key("rms_norm_eps", "norm_eps", eps),
        Key("max_position_embeddings", "max_length", length),
        Key("tie_word_embeddings", "tie_embeddings", tied),
        Key("initializer_range", "init_std", 0.02),
        Key("attention_dropout", "attention_dropout", 0.0),
    )


TIED = {"lm_head.weight": "model.embed_tokens.weight"}
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""Else transformers takes the ids of a model of its own choice, even beyond the vocabulary."""
DERIVED = ("*.rotary_emb.inv_freq",)

LLAMA = Family(
    name="llama",
    model_types=("llama",),
    base="LlamaModel",
    prefix="model.",
    odd_prefixes=answering("Llama"),
    constants=CONSTANTS,
    keys=(
        *sizes(),
        Key("attention_bias", "bias", False),
        Key("mlp_bias", "feedforward_bias", False),
        Rope(),
        Fixed("pretraining_tp", 1),
    ),
    rows=ROWS,
    heads=HEADS,
    architectures=architectures("Llama"),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={
        "llama-2-7b": {},
        "llama-3.2-1b": {
            "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192,
            "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
            "tie_word_embeddings": True, "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        },
        "smollm2-135m": {
            "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "intermediate_size": 1536, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
            "max_position_embeddings": 8192, "tie_word_embeddings": True,
        },
    },
)  # fmt: skip
