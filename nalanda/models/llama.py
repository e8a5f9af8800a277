"""Llama 2, 3 and what is built alike (SmolLM 2 is a Llama); the rows here serve the families that share its names."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Plain logits; Gemma 2 caps them."""
    return TokensHeadSpec(softcap=config.get("final_logit_softcapping"))


def labels(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Classes of a text, from its last token."""
    return SequenceHeadSpec(classes=classes(config), place="last", pooler=False, bias=False)


def places(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Classes of each token."""
    return PlacesHeadSpec(classes=classes(config))


def span(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Start and end of an answer."""
    return SpanHeadSpec()


HEADS = (
    Head("tokens", "tokens", tokens, (Row("lm_head", "heads.@.output"),)),
    Head("labels", "sequence", labels, (Row("score", "heads.@.output"),)),
    Head("places", "places", places, (Row("score", "heads.@.output"),)),
    Head("span", "span", span, (Row("qa_outputs", "heads.@.output"),)),
)


def architectures(name: str) -> dict[str, tuple[str, ...]]:
    """Hugging Face's classes for a decoder called `name`."""
    return {
        f"{name}ForCausalLM": ("tokens",),
        f"{name}ForSequenceClassification": ("labels",),
        f"{name}ForTokenClassification": ("places",),
        f"{name}ForQuestionAnswering": ("span",),
    }


def sizes(
    vocabulary: int = 32000, hidden: int = 4096, layers: int = 32, inner: int = 11008
) -> tuple[Part, ...]:
    """The keys that all these families share, with the family's defaults."""
    return (
        Key("vocab_size", "vocabulary", vocabulary),
        Key("hidden_size", "hidden", hidden),
        Key("num_hidden_layers", "layers", layers),
        Key("num_attention_heads", "heads", 32),
        Key("intermediate_size", "inner", inner),
        Key("initializer_range", "init_std", 0.02),
        Key("attention_dropout", "attention_dropout", 0.0),
    )


DERIVED = ("*.rotary_emb.inv_freq",)

LLAMA = Family(
    name="llama",
    model_types=("llama",),
    base="LlamaModel",
    prefix="model.",
    constants=CONSTANTS,
    keys=(
        *sizes(),
        Key("num_key_value_heads", "kv_heads", None),
        Key("head_dim", "head_dim", None),
        Key("hidden_act", "activation", "silu", ACTIVATION),
        Key("rms_norm_eps", "norm_eps", 1e-6),
        Key("max_position_embeddings", "max_length", 2048),
        Key("attention_bias", "bias", False),
        Key("mlp_bias", "feedforward_bias", False),
        Key("tie_word_embeddings", "tie_embeddings", False),
        Rope(),
        Fixed("pretraining_tp", 1),
    ),
    rows=ROWS,
    heads=HEADS,
    architectures=architectures("Llama"),
    aliases={"lm_head.weight": "model.embed_tokens.weight"},
    derived=DERIVED,
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
