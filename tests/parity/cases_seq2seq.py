"""T5 1.0 and 1.1, mT5, BART, mBART, M2M-100 and Marian: every head, tied or not, stacks of different sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parity.case import Case, each


def config(name: str, **values: Any) -> Callable[[], Any]:
    """A config of transformers' class `name`."""

    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**values)

    return make


T5 = {
    "vocab_size": 67, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 67, "d_model": 32, "max_position_embeddings": 96, "num_labels": 3,
    "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_layers": 3, "decoder_attention_heads": 2, "decoder_ffn_dim": 40,
}  # fmt: skip
NLLB = {**BART, "decoder_start_token_id": 2}
MARIAN = {
    **BART, "activation_function": "silu", "scale_embedding": True, "pad_token_id": 66, "decoder_start_token_id": 66,
    "eos_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
LONG = (23, 9, 16)
"""Texts in which distances fall into the wide buckets."""
SOFT = 0.12
"""Spread of weights: T5's scores are not scaled, so with larger weights attention is all or nothing, and where logits
are not scaled either, transformers' own fp32 logits are 2e-5 away from its fp64 ones."""

CASES = (
    Case("t5", "T5ForConditionalGeneration", config("T5Config", **T5), lengths=LONG),
    Case(
        "t5", "T5ForConditionalGeneration",
        config(
            "T5Config", **{**T5, "num_layers": 3}, feed_forward_proj="gated-gelu", num_decoder_layers=2,
            tie_word_embeddings=False,
        ),
        "flan", LONG, SOFT,
    ),
    Case("t5", "T5ForConditionalGeneration", config("T5Config", **T5, feed_forward_proj="gated-silu"), "silu", LONG),
    Case("t5", "T5Model", config("T5Config", **T5), lengths=LONG),
    Case("mt5", "MT5ForConditionalGeneration", config("MT5Config", **T5), lengths=LONG, spread=SOFT),
    *each(
        "bart",
        ("BartForConditionalGeneration", "BartForSequenceClassification", "BartModel"),
        config("BartConfig", **BART, forced_eos_token_id=None),
    ),
    Case("bart", "BartForQuestionAnswering", config("BartConfig", **{**BART, "num_labels": 2})),
    Case(
        "bart", "BartForConditionalGeneration",
        config("BartConfig", **BART, forced_eos_token_id=None, scale_embedding=True), "scaled",
    ),
    *each(
        "mbart",
        ("MBartForConditionalGeneration", "MBartForSequenceClassification"),
        config("MBartConfig", **BART, scale_embedding=True, forced_eos_token_id=None, decoder_start_token_id=2),
        label="cc25",
    ),
    Case("mbart", "MBartForQuestionAnswering", config("MBartConfig", **{**BART, "num_labels": 2})),
    Case("m2m_100", "M2M100ForConditionalGeneration", config("M2M100Config", **NLLB), "nllb"),
    Case(
        "m2m_100", "M2M100ForConditionalGeneration",
        config("M2M100Config", **NLLB, scale_embedding=False), "unscaled",
    ),
    Case("marian", "MarianMTModel", config("MarianConfig", **MARIAN)),
)  # fmt: skip
