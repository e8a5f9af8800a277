"""Qwen 2 and 2.5, Qwen 3, and their mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nalanda.models.experts import EXPERTS, SHARED, Experts, SparseLayers
from nalanda.models.family import Family, Key
from nalanda.models.llama import (
    CONSTANTS,
    DERIVED,
    HEADS,
    NO_IDS,
    QK_NORMS,
    ROWS,
    TIED,
    answering,
    architectures,
    sizes,
)
from nalanda.models.rope import LayerTypes, Rope

_VOCABULARY, _LENGTH = 151936, 32768
_DENSE = sizes(_VOCABULARY, inner=22016, groups=32, length=_LENGTH)
_BIASED = CONSTANTS | {"output_bias": False}
_SWITCH, _UPPER = "use_sliding_window", "max_window_layers"


def _upper(config: Mapping[str, Any], layer: int) -> bool:
    return bool(layer >= config.get(_UPPER, 28))


def _odd(config: Mapping[str, Any], layer: int) -> bool:
    return bool(layer % 2 == 0 and layer < config.get(_UPPER, 28))


QWEN2 = Family(
    name="qwen2",
    model_types=("qwen2",),
    base="Qwen2Model",
    prefix="model.",
    odd_prefixes=answering("Qwen2"),
    constants=_BIASED | {"bias": True},
    keys=(*_DENSE, LayerTypes(_upper, window=4096, switch=_SWITCH, reads=(_UPPER,)), Rope(length=_LENGTH)),
    rows=ROWS,
    heads=HEADS,
    architectures=architectures("Qwen2"),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={
        "qwen2.5-0.5b": {
            "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        },
        "qwen2.5-7b": {
            "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 131072,
            "rope_theta": 1000000.0,
        },
    },
)  # fmt: skip

QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3",),
    base="Qwen3Model",
    prefix="model.",
    odd_prefixes=answering("Qwen3"),
    constants=CONSTANTS | {"qk_norm": True},
    keys=(
        *sizes(_VOCABULARY, inner=22016, groups=32, dim=128, length=_LENGTH),
        Key("attention_bias", "bias", False),
        LayerTypes(_upper, window=4096, switch=_SWITCH, reads=(_UPPER,)),
        Rope(length=_LENGTH),
    ),
    rows=(*ROWS, *QK_NORMS),
    heads=HEADS,
    architectures=architectures("Qwen3"),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={
        "qwen3-0.6b": {
            "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960, "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
        },
        "qwen3-8b": {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_key_value_heads": 8,
            "head_dim": 128, "max_position_embeddings": 40960, "rope_theta": 1000000.0,
        },
    },
)  # fmt: skip

QWEN2_MOE = Family(
    name="qwen2_moe",
    model_types=("qwen2_moe",),
    base="Qwen2MoeModel",
    prefix="model.",
    constants=_BIASED,
    keys=(
        *sizes(_VOCABULARY, 2048, 24, 5632, heads=16, groups=16, length=_LENGTH),
        Key("qkv_bias", "bias", True),
        Experts(("num_experts",), 60, 4, ("moe_intermediate_size", 1408), shared=5632),
        SparseLayers(24),
        LayerTypes(_odd, window=4096, layers=24, switch=_SWITCH, reads=(_UPPER,)),
        Rope(layers=24, length=_LENGTH),
    ),
    rows=(*ROWS, *EXPERTS, *SHARED),
    heads=HEADS,
    architectures=architectures("Qwen2Moe"),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={
        "qwen1.5-moe-a2.7b": {
            "max_position_embeddings": 8192, "rope_theta": 1000000.0, "num_experts": 60, "num_experts_per_tok": 4,
        },
    },
)  # fmt: skip

QWEN3_MOE = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    base="Qwen3MoeModel",
    prefix="model.",
    odd_prefixes=answering("Qwen3Moe"),
    constants=CONSTANTS | {"qk_norm": True},
    keys=(
        *sizes(_VOCABULARY, 2048, 24, 6144, groups=4, length=_LENGTH),
        Key("attention_bias", "bias", False),
        Experts(("num_local_experts", "num_experts"), 128, 8, ("moe_intermediate_size", 768)),
        SparseLayers(24),
        LayerTypes(lambda config, layer: True, window=4096, layers=24, listed=False, switch=_SWITCH),
        Rope(layers=24, length=_LENGTH),
    ),
    rows=(*ROWS, *QK_NORMS, *EXPERTS),
    heads=HEADS,
    architectures=architectures("Qwen3Moe"),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={
        "qwen3-30b-a3b": {
            "num_hidden_layers": 48, "head_dim": 128, "norm_topk_prob": True, "max_position_embeddings": 40960,
            "rope_theta": 1000000.0,
        },
    },
)  # fmt: skip
