"""Marian (Junczys-Dowmunt et al. 2018), as OPUS-MT's models are published: the 2017 Transformer."""

from __future__ import annotations

from typing import Any

from nalanda.models.bart import CONSTANTS, SHARED, TOKENS, keys
from nalanda.models.family import Family, Fixed, Key

BOTH = ("encoder", "decoder")
OLD: dict[str, Any] = {
    "normalize_before": False, "normalize_embedding": False, "add_final_layer_norm": False,
    "static_position_embeddings": True,
}  # fmt: skip
MARIAN = Family(
    name="marian",
    model_types=("marian",),
    base="MarianModel",
    constants={**CONSTANTS, "position": "sinusoidal", "norm_place": "post", "final_norm": False},
    keys=(
        *keys(58101, **OLD),
        Key("scale_embedding", "scale_embeddings", False),
        Fixed(
            "share_encoder_decoder_embeddings", True,
            "source and target have vocabularies of their own, and a network here has one",
        ),
    ),
    heads=(TOKENS,),
    architectures={"MarianMTModel": ("tokens",)},
    derived=("*.embed_positions.weight",),
    fresh={"pad_token_id": None, "eos_token_id": None, "forced_eos_token_id": None, "decoder_start_token_id": 0},
    presets={
        "opus-mt": {
            "d_model": 512, "scale_embedding": True, "activation_function": "swish", "max_position_embeddings": 512,
            **{f"{stack}_layers": 6 for stack in BOTH}, **{f"{stack}_ffn_dim": 2048 for stack in BOTH},
            **{f"{stack}_attention_heads": 8 for stack in BOTH},
        },
    },
    **SHARED,
)  # fmt: skip
