"""Gemma, Gemma 2, and Gemma 3's text models: norms of 1 + weight, on both sides from 2 on, windows, capped scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nalanda.models.family import ACTIVATION, Codec, Family, Fixed, Head, Key, Part, Row
from nalanda.models.llama import (
    ATTENTION,
    CONSTANTS,
    DERIVED,
    EMBEDDING,
    FEEDFORWARD,
    FINAL_NORM,
    HEADS,
    NO_IDS,
    QK_NORMS,
    ROWS,
    TIED,
    architectures,
    sizes,
)
from nalanda.models.rope import LayerTypes, Rope, RopeByType
from nalanda.models.shape import Shape
from nalanda.nn.spec import HeadSpec, TokensHeadSpec

_FIRST = CONSTANTS | {"unit_offset": True, "scale_embeddings": True}
_CONSTANTS = _FIRST | {"norm_place": "sandwich"}
_CAP = "final_logit_softcapping"


@dataclass(frozen=True)
class QueryScale:
    """`query_pre_attn_scalar`: scores are multiplied by its inverse root."""

    default: int = 256

    def names(self) -> tuple[str, ...]:
        """See family.Part."""
        return ("query_pre_attn_scalar",)

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See family.Part."""
        return {"scale": config.get("query_pre_attn_scalar", self.default) ** -0.5}

    def write(self, shape: Shape) -> dict[str, Any]:
        """See family.Part."""
        if shape.scale is None:
            return {"query_pre_attn_scalar": shape.head_dim or shape.hidden // shape.heads}
        scalar = shape.scale**-2
        return {"query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar}


def _heads(names: tuple[str, ...], cap: float | None) -> tuple[Head, ...]:
    """Llama's heads of those names, the logits over the vocabulary capped, by default at `cap`."""

    def tokens(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
        return TokensHeadSpec(softcap=config.get(_CAP, cap))

    def says(spec: TokensHeadSpec) -> dict[str, Any]:
        return {_CAP: spec.softcap}

    first = Head("tokens", "tokens", tokens, HEADS[0].rows, says)
    return (first, *(head for head in HEADS[1:] if head.name in names))


def _sizes(vocabulary: int, length: int) -> tuple[Part, ...]:
    return (
        *sizes(
            vocabulary, 2304, 26, 9216, heads=8, groups=4, dim=256, length=length, tied=True,
            activation=("hidden_activation", "gelu_pytorch_tanh"),
        ),
        Key("attention_bias", "bias", False),
        QueryScale(),
        Fixed("use_bidirectional_attention", False),
    )  # fmt: skip


_TANH = Codec(lambda name: ACTIVATION.read("gelu_pytorch_tanh" if name == "gelu" else name), ACTIVATION.write)
"""The first files of Gemma say "gelu" where the approximation by tanh is meant."""

GEMMA = Family(
    name="gemma",
    model_types=("gemma",),
    base="GemmaModel",
    prefix="model.",
    constants=_FIRST,
    keys=(
        *sizes(256000, 3072, 28, 24576, heads=16, groups=16, dim=256, length=8192, tied=True),
        Key("hidden_act", "activation", "gelu_pytorch_tanh", _TANH),
        Key("attention_bias", "bias", False),
        Fixed("use_bidirectional_attention", False),
        Rope(layers=28, length=8192),
    ),
    rows=ROWS,
    heads=HEADS[:3],
    architectures=architectures("Gemma", HEADS[:3]),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={
        "gemma-2b": {
            "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8,
            "num_key_value_heads": 1,
        },
        "gemma-7b": {},
    },
)  # fmt: skip

_ROWS = (
    EMBEDDING,
    *ATTENTION,
    Row("model.layers.*.input_layernorm", "decoder.blocks.*.attention_norm"),
    Row("model.layers.*.post_attention_layernorm", "decoder.blocks.*.attention_output_norm"),
    Row("model.layers.*.pre_feedforward_layernorm", "decoder.blocks.*.feedforward_norm"),
    Row("model.layers.*.post_feedforward_layernorm", "decoder.blocks.*.feedforward_output_norm"),
    *FEEDFORWARD,
    FINAL_NORM,
)
_HEADS2 = _heads(("labels", "places"), 30.0)

GEMMA2 = Family(
    name="gemma2",
    model_types=("gemma2",),
    base="Gemma2Model",
    prefix="model.",
    constants=_CONSTANTS,
    keys=(
        *_sizes(256000, 8192),
        Key("attn_logit_softcapping", "softcap", 50.0),
        LayerTypes(rule=lambda config, layer: layer % 2 == 0, window=4096, layers=26),
        Rope(layers=26, length=8192),
    ),
    rows=_ROWS,
    heads=_HEADS2,
    architectures=architectures("Gemma2", _HEADS2),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={
        "gemma-2-2b": {},
        "gemma-2-9b": {
            "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
            "num_key_value_heads": 8,
        },
        "gemma-2-27b": {
            "hidden_size": 4608, "intermediate_size": 36864, "num_hidden_layers": 46, "num_attention_heads": 32,
            "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 144,
        },
    },
)  # fmt: skip


_PATTERN = "sliding_window_pattern"


def _between(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer of Gemma 3 has a window: all but each sixth."""
    return bool((layer + 1) % config.get(_PATTERN, 6))


_TYPES = LayerTypes(rule=_between, window=4096, layers=26, reads=(_PATTERN,))

GEMMA3 = Family(
    name="gemma3",
    model_types=("gemma3_text",),
    base="Gemma3TextModel",
    prefix="model.",
    constants=_CONSTANTS | {"qk_norm": True},
    keys=(
        *_sizes(262208, 131072),
        Fixed("attn_logit_softcapping", None),
        _TYPES,
        RopeByType(_TYPES, full=1_000_000.0, sliding=10_000.0, length=131072),
    ),
    rows=(*_ROWS, *QK_NORMS),
    heads=_heads(("labels",), None),
    architectures={"Gemma3ForCausalLM": ("tokens",), "Gemma3TextForSequenceClassification": ("labels",)},
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={
        "gemma-3-270m": {
            "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
            "num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 512,
            "max_position_embeddings": 32768,
        },
        "gemma-3-1b": {
            "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
            "num_key_value_heads": 1, "sliding_window": 512, "max_position_embeddings": 32768,
        },
    },
)  # fmt: skip
