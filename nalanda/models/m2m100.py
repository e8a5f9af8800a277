"""M2M-100 (Fan et al. 2021) and NLLB-200 (NLLB Team 2022): mBART's layers, sinusoidal positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nalanda.models.bart import CONSTANTS, OUTPUT, SHARED, keys
from nalanda.models.family import Codec, ConfigProblem, Family, Head, Key
from nalanda.models.shape import Shape
from nalanda.nn.spec import HeadSpec, TokensHeadSpec


def _tokens(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    return TokensHeadSpec()


def _behind_pad(pad: Any) -> int:
    if not isinstance(pad, int) or pad < 0:
        raise ConfigProblem(f"pad_token_id is {pad!r}; positions begin behind it, so it must be 0 or more")
    return pad + 1


BOTH = ("encoder", "decoder")
M2M100 = Family(
    name="m2m_100",
    model_types=("m2m_100",),
    base="M2M100Model",
    constants={**CONSTANTS, "position": "sinusoidal", "layout": "tensor2tensor"},
    keys=(
        *keys(128112, "relu", 0.1),
        Key("scale_embedding", "scale_embeddings", True),
        Key("pad_token_id", "offset", 1, Codec(_behind_pad, lambda offset: offset - 1)),
    ),
    heads=(Head("tokens", "tokens", _tokens, (OUTPUT,)),),
    architectures={"M2M100ForConditionalGeneration": ("tokens",)},
    derived=("*.embed_positions.weights",),
    presets={
        "m2m100-418m": {},
        "nllb-200-distilled-600m": {"vocab_size": 256206},
        "nllb-200-distilled-1.3b": {
            "vocab_size": 256206, **{f"{stack}_layers": 24 for stack in BOTH},
            **{f"{stack}_ffn_dim": 8192 for stack in BOTH},
        },
    },
    **SHARED,
)  # fmt: skip
