"""Llama: heads, grouped keys, tied or not, biases, every scaling of rotary embeddings, SmolLM 2's proportions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parity.case import SIZES, Case, each


def config(**more: Any) -> Callable[[], Any]:
    """A Llama config with some values changed."""

    def make() -> Any:
        import transformers

        return transformers.LlamaConfig(**{**SIZES, "rms_norm_eps": 1e-6, "num_labels": 3, **more})

    return make


def scaled(kind: str, theta: float = 500.0, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **values}}


LONG = (31, 17, 26)
"""Texts longer than the positions that the scalings say the network was trained with."""
SCALINGS = {
    "linear": {**scaled("linear", factor=4.0), "max_position_embeddings": 96},
    "dynamic": {**scaled("dynamic", factor=4.0), "max_position_embeddings": 12},
    "yarn": scaled("yarn", factor=4.0, original_max_position_embeddings=12),
    "yarn-mscale": scaled(
        "yarn",
        factor=8.0,
        original_max_position_embeddings=12,
        mscale=1.0,
        mscale_all_dim=0.5,
        beta_fast=16.0,
    ),
    "llama3": scaled(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=12
    ),
    "longrope": {
        **scaled("longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.5, 2.0, 3.0, 4.0], factor=3.0),
        "original_max_position_embeddings": 12,
    },
}
HEADS = ("LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaForQuestionAnswering")

CASES = (
    Case("llama", "LlamaForCausalLM", config(**scaled("default"))),
    Case("llama", "LlamaForCausalLM", config(num_key_value_heads=2), "grouped"),
    Case("llama", "LlamaForCausalLM", config(num_key_value_heads=1, head_dim=12), "wide heads"),
    Case("llama", "LlamaForCausalLM", config(tie_word_embeddings=True), "tied"),
    Case("llama", "LlamaForCausalLM", config(attention_bias=True, mlp_bias=True), "biases"),
    Case(
        "llama",
        "LlamaForCausalLM",
        config(
            hidden_size=36, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=3, intermediate_size=96,
            rms_norm_eps=1e-5, tie_word_embeddings=True, **scaled("default", 100_000.0),
        ),
        "smollm2",
    ),
    *(
        Case("llama", "LlamaForCausalLM", config(num_key_value_heads=2, **values), label, LONG)
        for label, values in SCALINGS.items()
    ),
    *each("llama", HEADS, config(num_key_value_heads=2, pad_token_id=0)),
)  # fmt: skip
