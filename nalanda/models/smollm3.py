"""SmolLM 3: a Llama in which every fourth layer knows nothing of positions."""

from __future__ import annotations

from nalanda.models.family import Family, Key
from nalanda.models.llama import (
    CONSTANTS,
    DERIVED,
    HEADS,
    NO_IDS,
    ROWS,
    TIED,
    answering,
    architectures,
    sizes,
)
from nalanda.models.rope import LayerTypes, Rope

_ROPE = Rope(theta=2_000_000.0, layers=36, length=32768, skip="no_rope_layers")

SMOLLM3 = Family(
    name="smollm3",
    model_types=("smollm3",),
    base="SmolLM3Model",
    prefix="model.",
    odd_prefixes=answering("SmolLM3"),
    constants=CONSTANTS,
    keys=(
        *sizes(128256, 2048, 36, 11008, heads=16, groups=4, length=32768, tied=True),
        Key("attention_bias", "bias", False),
        Key("mlp_bias", "feedforward_bias", False),
        _ROPE,
        LayerTypes(
            rule=lambda config, layer: not _ROPE.turns(config, layer),
            window=None,
            layers=36,
            switch="use_sliding_window",
        ),
    ),
    rows=ROWS,
    heads=HEADS,
    architectures=architectures("SmolLM3"),
    aliases=TIED,
    derived=DERIVED,
    fresh=NO_IDS,
    presets={"smollm3-3b": {"max_position_embeddings": 65536, "rope_theta": 5000000.0}},
)
