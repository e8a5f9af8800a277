"""Mistral; Ministral, of whose layers some see all; Mixtral, whose feed-forwards are mixtures of experts."""

from __future__ import annotations

from nalanda.models.experts import Experts
from nalanda.models.family import Family, Row
from nalanda.models.llama import (
    ATTENTION,
    CONSTANTS,
    DERIVED,
    EMBEDDING,
    FINAL_NORM,
    HEADS,
    NO_IDS,
    NORMS,
    ROWS,
    TIED,
    answering,
    architectures,
    sizes,
)
from nalanda.models.rope import LayerTypes, Rope

_LENGTH = 131072

MISTRAL = Family(
    name="mistral",
    model_types=("mistral",),
    base="MistralModel",
    prefix="model.",
    constants=CONSTANTS,
    keys=(
        *sizes(inner=14336, groups=8, length=_LENGTH),
        LayerTypes(rule=lambda config, layer: True, window=4096, listed=False),
        Rope(length=_LENGTH),
    ),
    rows=ROWS,
    heads=HEADS,
    architectures=architectures("Mistral"),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={
        "mistral-7b-v0.1": {
            "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5, "sliding_window": 4096, "rope_theta": 10000.0,
        },
        "mistral-7b-v0.3": {
            "vocab_size": 32768, "num_key_value_heads": 8, "intermediate_size": 14336, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 32768, "sliding_window": None, "rope_theta": 1000000.0,
        },
    },
)  # fmt: skip

MINISTRAL = Family(
    name="ministral",
    model_types=("ministral",),
    base="MinistralModel",
    prefix="model.",
    odd_prefixes=answering("Ministral"),
    constants=CONSTANTS,
    keys=(
        *sizes(inner=14336, groups=8, length=_LENGTH),
        LayerTypes(rule=lambda config, layer: True, window=4096),
        Rope(length=_LENGTH),
    ),
    rows=ROWS,
    heads=HEADS,
    architectures=architectures("Ministral"),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
)

MIXTRAL = Family(
    name="mixtral",
    model_types=("mixtral",),
    base="MixtralModel",
    prefix="model.",
    constants=CONSTANTS,
    keys=(
        *sizes(inner=14336, groups=8, length=_LENGTH, eps=1e-5),
        Experts(counts=("num_local_experts",), count=8, top_k=2, inner=("intermediate_size", 14336), normalize=True),
        LayerTypes(rule=lambda config, layer: True, window=None, listed=False),
        Rope(theta=1_000_000.0, length=_LENGTH),
    ),
    rows=(
        EMBEDDING,
        *ATTENTION,
        *NORMS,
        Row("model.layers.*.block_sparse_moe.gate", "decoder.blocks.*.feedforward.router"),
        Row("model.layers.*.block_sparse_moe.experts.#.{w1,w3}", "decoder.blocks.*.feedforward.experts.gate_up"),
        Row("model.layers.*.block_sparse_moe.experts.#.w2", "decoder.blocks.*.feedforward.experts.output"),
        FINAL_NORM,
    ),
    heads=HEADS,
    architectures=architectures("Mixtral"),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={
        "mixtral-8x7b": {"max_position_embeddings": 32768, "rope_theta": 1000000.0, "rms_norm_eps": 1e-5},
        "mixtral-8x22b": {
            "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56, "num_attention_heads": 48,
            "max_position_embeddings": 65536, "rope_theta": 1000000.0, "rms_norm_eps": 1e-5,
        },
    },
)  # fmt: skip
