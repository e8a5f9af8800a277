"""OLMo 2, which normalizes what its sub-layers add, and OLMoE, a mixture of experts."""

from __future__ import annotations

from nalanda.models.experts import EXPERTS, Experts
from nalanda.models.family import Family, Fixed, Key, Row
from nalanda.models.llama import (
    ATTENTION,
    CONSTANTS,
    DERIVED,
    EMBEDDING,
    FEEDFORWARD,
    FINAL_NORM,
    HEADS,
    NO_IDS,
    NORMS,
    QK_NORMS,
    TIED,
    architectures,
    sizes,
)
from nalanda.models.rope import Rope

_CONSTANTS = CONSTANTS | {"qk_norm": True, "qk_norm_over": "all"}

OLMO2 = Family(
    name="olmo2",
    model_types=("olmo2",),
    base="Olmo2Model",
    prefix="model.",
    constants=_CONSTANTS | {"norm_place": "output"},
    keys=(*sizes(50304, eps=1e-5), Key("attention_bias", "bias", False), Rope()),
    rows=(
        EMBEDDING,
        *ATTENTION,
        *QK_NORMS,
        Row("model.layers.*.post_attention_layernorm", "decoder.blocks.*.attention_norm"),
        Row("model.layers.*.post_feedforward_layernorm", "decoder.blocks.*.feedforward_norm"),
        *FEEDFORWARD,
        FINAL_NORM,
    ),
    heads=HEADS[:2],
    architectures=architectures("Olmo2", HEADS[:2]),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={
        "olmo-2-1b": {
            "vocab_size": 100352, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 16, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 500000.0,
        },
        "olmo-2-7b": {
            "vocab_size": 100352, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 500000.0,
        },
        "olmo-2-13b": {
            "vocab_size": 100352, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
            "num_attention_heads": 40, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 500000.0,
        },
    },
)  # fmt: skip

OLMOE = Family(
    name="olmoe",
    model_types=("olmoe",),
    base="OlmoeModel",
    prefix="model.",
    constants=_CONSTANTS,
    keys=(
        *sizes(50304, 2048, 16, 2048, heads=16, length=4096, eps=1e-5),
        Key("attention_bias", "bias", False),
        Fixed("clip_qkv", None),
        Experts(("num_experts",), 64, 8, ("intermediate_size", 2048)),
        Rope(layers=16, length=4096),
    ),
    rows=(EMBEDDING, *ATTENTION, *QK_NORMS, *NORMS, *EXPERTS, FINAL_NORM),
    heads=HEADS[:1],
    architectures=architectures("Olmoe", HEADS[:1]),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={"olmoe-1b-7b": {"intermediate_size": 1024, "max_position_embeddings": 4096}},
)
