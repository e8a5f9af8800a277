"""GPT-2. Its matrices are stored inputs x outputs; early files have no "transformer." before their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nalanda.models.family import ACTIVATION, Family, Fixed, Head, Key, Row
from nalanda.models.llama import NO_IDS, labels, places, span, tokens
from nalanda.models.shape import Shape


@dataclass(frozen=True)
class Inner:
    """`n_inner`; null, as almost always, is four times the width of the stream."""

    hidden: int

    def names(self) -> tuple[str, ...]:
        """See family.Part."""
        return ("n_inner",)

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See family.Part."""
        given = config.get("n_inner")
        return {"inner": 4 * config.get("n_embd", self.hidden) if given is None else given}

    def write(self, shape: Shape) -> dict[str, Any]:
        """See family.Part."""
        return {"n_inner": None if shape.inner == 4 * shape.hidden else shape.inner}


GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    base="GPT2Model",
    prefix="transformer.",
    constants={"kind": "decoder", "position": "learned", "bias": True, "feedforward_bias": True},
    keys=(
        Key("vocab_size", "vocabulary", 50257),
        Key("n_embd", "hidden", 768),
        Key("n_layer", "layers", 12),
        Key("n_head", "heads", 12),
        Inner(768),
        Key("n_positions", "max_length", 1024),
        Key("activation_function", "activation", "gelu_new", ACTIVATION),
        Key("layer_norm_epsilon", "norm_eps", 1e-5),
        Key("tie_word_embeddings", "tie_embeddings", True),
        Key("initializer_range", "init_std", 0.02),
        Key("embd_pdrop", "dropout", 0.1),  # we have one rate for both: that of the residual stream is read
        Key("resid_pdrop", "dropout", 0.1),
        Key("attn_pdrop", "attention_dropout", 0.1),
        Fixed("scale_attn_weights", True),
        Fixed("scale_attn_by_inverse_layer_idx", False),
        Fixed("add_cross_attention", False),
    ),
    rows=(
        Row("transformer.wte", "tokens"),
        Row("transformer.wpe", "decoder.embed.positions.table"),
        Row("transformer.h.*.ln_1", "decoder.blocks.*.attention_norm"),
        Row("transformer.h.*.attn.c_attn", "decoder.blocks.*.attention.qkv", "transpose"),
        Row("transformer.h.*.attn.c_proj", "decoder.blocks.*.attention.output", "transpose"),
        Row("transformer.h.*.ln_2", "decoder.blocks.*.feedforward_norm"),
        Row("transformer.h.*.mlp.c_fc", "decoder.blocks.*.feedforward.input", "transpose"),
        Row("transformer.h.*.mlp.c_proj", "decoder.blocks.*.feedforward.output", "transpose"),
        Row("transformer.ln_f", "decoder.norm"),
    ),
    heads=(
        Head("tokens", "tokens", tokens, (Row("lm_head", "heads.@.output"),)),
        Head("labels", "sequence", labels, (Row("score", "heads.@.output"),)),
        Head("places", "places", places, (Row("classifier", "heads.@.output"),)),
        Head("span", "span", span, (Row("qa_outputs", "heads.@.output"),)),
    ),
    architectures={
        "GPT2LMHeadModel": ("tokens",),
        "GPT2ForSequenceClassification": ("labels",),
        "GPT2ForTokenClassification": ("places",),
        "GPT2ForQuestionAnswering": ("span",),
    },
    aliases={"lm_head.weight": "transformer.wte.weight"},
    derived=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias"),
    fresh=NO_IDS,
    presets={
        "gpt2": {},
        "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
        "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
        "gpt2-xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    },
)
