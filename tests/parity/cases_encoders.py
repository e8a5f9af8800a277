"""BERT, RoBERTa, XLM-R, DistilBERT and ModernBERT: every head, the network alone with its pooler, tied or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parity.case import SIZES, Case, each


def config(name: str, **more: Any) -> Callable[[], Any]:
    """A config of transformers' class `name` with some values changed."""

    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**{**SIZES, "num_labels": 3, **more})

    return make


BERT_HEADS = (
    "BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction",
    "BertForSequenceClassification", "BertForTokenClassification",
)  # fmt: skip
ROBERTA_HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
DISTIL = {"n_layers": 2, "n_heads": 4, "dim": 32, "hidden_dim": 48}
MODERN = {
    "hidden_size": 32, "num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
WINDOWS = (23, 6, 17)
"""Texts longer than a window of 4 to each side."""
MODERN_HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
ROBERTA = {"type_vocab_size": 1, "max_position_embeddings": 98, "layer_norm_eps": 1e-5}

CASES = (
    *each("bert", BERT_HEADS, config("BertConfig")),
    Case("bert", "BertForQuestionAnswering", config("BertConfig", num_labels=2)),
    Case("bert", "BertForMaskedLM", config("BertConfig", tie_word_embeddings=False), "untied"),
    Case("bert", "BertForMaskedLM", config("BertConfig", hidden_act="gelu_new", layer_norm_eps=1e-3), "tanh"),
    *each("roberta", [f"Roberta{head}" for head in ROBERTA_HEADS], config("RobertaConfig", **ROBERTA)),
    Case("roberta", "RobertaForQuestionAnswering", config("RobertaConfig", **{**ROBERTA, "num_labels": 2})),
    Case("roberta", "RobertaForMaskedLM", config("RobertaConfig", **ROBERTA, tie_word_embeddings=False), "untied"),
    Case("roberta", "RobertaForMaskedLM", config("RobertaConfig", **ROBERTA, pad_token_id=5), "pad 5"),
    *each("xlm-roberta", [f"XLMRoberta{head}" for head in ROBERTA_HEADS], config("XLMRobertaConfig", **ROBERTA)),
    Case("xlm-roberta", "XLMRobertaForQuestionAnswering", config("XLMRobertaConfig", **{**ROBERTA, "num_labels": 2})),
    *each(
        "distilbert",
        ("DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification",
         "DistilBertForTokenClassification"),
        config("DistilBertConfig", **DISTIL),
    ),
    Case("distilbert", "DistilBertForQuestionAnswering", config("DistilBertConfig", **{**DISTIL, "num_labels": 2})),
    Case(
        "distilbert", "DistilBertForMaskedLM",
        config("DistilBertConfig", **DISTIL, tie_word_embeddings=False), "untied",
    ),
    Case(
        "distilbert", "DistilBertForMaskedLM",
        config("DistilBertConfig", **DISTIL, sinusoidal_pos_embds=True), "sinusoids",
    ),
    *each(
        "modernbert",
        [f"ModernBert{head}" for head in MODERN_HEADS], config("ModernBertConfig", **MODERN), lengths=WINDOWS,
    ),
    Case(
        "modernbert", "ModernBertForQuestionAnswering",
        config("ModernBertConfig", **{**MODERN, "num_labels": 2}), lengths=WINDOWS,
    ),
    Case(
        "modernbert", "ModernBertForSequenceClassification",
        config("ModernBertConfig", **MODERN, classifier_pooling="mean", classifier_bias=True), "mean", WINDOWS,
    ),
    Case(
        "modernbert", "ModernBertForMaskedLM",
        config(
            "ModernBertConfig", **MODERN, tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
            norm_bias=True, classifier_activation="silu", global_attn_every_n_layers=2,
        ), "biases", WINDOWS,
    ),
)  # fmt: skip
