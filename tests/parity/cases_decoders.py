"""Decoders besides Llama: what each family has of its own, its windows shorter than the texts, its mixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parity.case import SIZES, Case, each

LONG = (29, 17, 23)
"""Texts longer than WINDOW."""
WINDOW = {"sliding_window": 7}
GROUPED = {
    **SIZES,
    "num_key_value_heads": 2,
    "num_labels": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEP = {"num_hidden_layers": 7}
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def config(name: str, **more: Any) -> Callable[[], Any]:
    """A config of transformers' class `name`Config with some values changed."""

    def make() -> Any:
        import transformers

        return getattr(transformers, f"{name}Config")(**{**GROUPED, **more})

    return make


def gpt2(**more: Any) -> Callable[[], Any]:
    """GPT-2's config has names of its own."""

    def make() -> Any:
        import transformers

        sizes = {
            "vocab_size": 67,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 96,
            "num_labels": 3,
        }
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return transformers.GPT2Config(**{**sizes, **ids, **more})

    return make


def named(name: str, heads: tuple[str, ...] = HEADS) -> tuple[str, ...]:
    """The classes of those heads."""
    return tuple(name + head for head in heads)


GPT2 = (
    Case("gpt2", "GPT2LMHeadModel", gpt2()),
    Case(
        "gpt2",
        "GPT2LMHeadModel",
        gpt2(tie_word_embeddings=False, n_inner=48, activation_function="relu"),
        "untied",
    ),
    *each("gpt2", named("GPT2"), gpt2()),
)
MISTRAL = (
    Case("mistral", "MistralForCausalLM", config("Mistral", sliding_window=None)),
    Case("mistral", "MistralForCausalLM", config("Mistral", **WINDOW), "window", LONG),
    Case(
        "mistral",
        "MistralForCausalLM",
        config("Mistral", head_dim=12, tie_word_embeddings=True),
        "wide heads",
    ),
    *each("mistral", named("Mistral"), config("Mistral", **WINDOW), lengths=LONG),
)
MINISTRAL = (
    Case(
        "ministral",
        "MinistralForCausalLM",
        config("Ministral", head_dim=12, layer_types=["full_attention", "sliding_attention"], **WINDOW),
        "",
        LONG,
    ),
    *each("ministral", named("Ministral"), config("Ministral", head_dim=8, **WINDOW), lengths=LONG),
)
MIXTRAL = (
    Case("mixtral", "MixtralForCausalLM", config("Mixtral", num_local_experts=5)),
    Case("mixtral", "MixtralForCausalLM", config("Mixtral", num_experts_per_tok=3, **WINDOW), "window", LONG),
    Case(
        "mixtral",
        "MixtralForCausalLM",
        config("Mixtral", num_local_experts=3, tie_word_embeddings=True),
        "tied",
    ),
    *each("mixtral", named("Mixtral"), config("Mixtral", num_local_experts=4)),
)
QWEN2 = (
    Case("qwen2", "Qwen2ForCausalLM", config("Qwen2")),
    Case("qwen2", "Qwen2ForCausalLM", config("Qwen2", tie_word_embeddings=True, num_key_value_heads=1), "tied"),
    Case(
        "qwen2",
        "Qwen2ForCausalLM",
        config("Qwen2", use_sliding_window=True, max_window_layers=1, **WINDOW),
        "window",
        LONG,
    ),
    Case(
        "qwen2",
        "Qwen2ForCausalLM",
        config(
            "Qwen2",
            rope_parameters={
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16,
            },
        ),
        "yarn",
        LONG,
    ),
    *each("qwen2", named("Qwen2"), config("Qwen2")),
)  # fmt: skip
QWEN3 = (
    Case("qwen3", "Qwen3ForCausalLM", config("Qwen3", head_dim=12)),
    Case(
        "qwen3",
        "Qwen3ForCausalLM",
        config("Qwen3", head_dim=8, attention_bias=True, tie_word_embeddings=True),
        "tied",
    ),
    Case(
        "qwen3",
        "Qwen3ForCausalLM",
        config(
            "Qwen3", **WINDOW, head_dim=8, use_sliding_window=True,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "window",
        LONG,
    ),
    *each("qwen3", named("Qwen3"), config("Qwen3", head_dim=8)),
)  # fmt: skip
_FEW = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
QWEN_MOE = (
    Case("qwen3_moe", "Qwen3MoeForCausalLM", config("Qwen3Moe", **_FEW)),
    Case(
        "qwen3_moe", "Qwen3MoeForCausalLM", config("Qwen3Moe", **_FEW, norm_topk_prob=True, head_dim=12), "normalized"
    ),
    Case(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        config("Qwen3Moe", **_FEW, **DEEP, decoder_sparse_step=2, mlp_only_layers=[3], tie_word_embeddings=True),
        "some dense",
    ),
    Case(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        config("Qwen3Moe", **_FEW, **WINDOW, use_sliding_window=True),
        "window",
        LONG,
    ),
    *each("qwen3_moe", named("Qwen3Moe"), config("Qwen3Moe", **_FEW)),
    Case("qwen2_moe", "Qwen2MoeForCausalLM", config("Qwen2Moe", **_FEW, shared_expert_intermediate_size=40)),
    Case(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        config(
            "Qwen2Moe", **_FEW, **WINDOW, shared_expert_intermediate_size=40, qkv_bias=False, use_sliding_window=True,
            mlp_only_layers=[1], num_hidden_layers=5, max_window_layers=4,
        ),
        "window",
        LONG,
    ),
    *each("qwen2_moe", named("Qwen2Moe"), config("Qwen2Moe", **_FEW, shared_expert_intermediate_size=40)),
)  # fmt: skip
_GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 10, **WINDOW}
GEMMA = (
    Case("gemma", "GemmaForCausalLM", config("Gemma", head_dim=12)),
    Case("gemma", "GemmaForCausalLM", config("Gemma", attention_bias=True, tie_word_embeddings=False), "untied"),
    *each("gemma", named("Gemma", HEADS[:2]), config("Gemma", head_dim=12)),
    Case(
        "gemma2",
        "Gemma2ForCausalLM",
        config("Gemma2", **_GEMMA, final_logit_softcapping=4.0, attn_logit_softcapping=3.0),
        "",
        LONG,
    ),
    Case(
        "gemma2",
        "Gemma2ForCausalLM",
        config(
            "Gemma2", **_GEMMA, final_logit_softcapping=None, attn_logit_softcapping=None, attention_bias=True,
            tie_word_embeddings=False, layer_types=["full_attention", "sliding_attention"],
        ),
        "uncapped",
        LONG,
    ),
    *each("gemma2", named("Gemma2", HEADS[:2]), config("Gemma2", **_GEMMA), lengths=LONG),
    Case("gemma3", "Gemma3ForCausalLM", config("Gemma3Text", **_GEMMA, **DEEP), "", LONG),
    Case(
        "gemma3",
        "Gemma3ForCausalLM",
        config(
            "Gemma3Text", **_GEMMA, **DEEP, final_logit_softcapping=4.0, tie_word_embeddings=False,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        ),
        "scaled",
        LONG,
    ),
    Case(
        "gemma3",
        "Gemma3TextForSequenceClassification",
        config("Gemma3Text", **_GEMMA, sliding_window_pattern=2),
        "",
        LONG,
    ),
)  # fmt: skip
OLMO = (
    Case("olmo2", "Olmo2ForCausalLM", config("Olmo2")),
    Case(
        "olmo2", "Olmo2ForCausalLM", config("Olmo2", num_key_value_heads=4, tie_word_embeddings=True), "tied"
    ),
    Case("olmo2", "Olmo2ForSequenceClassification", config("Olmo2")),
    Case("olmoe", "OlmoeForCausalLM", config("Olmoe", num_experts=5, num_experts_per_tok=2)),
    Case(
        "olmoe",
        "OlmoeForCausalLM",
        config("Olmoe", num_experts=4, num_experts_per_tok=3, norm_topk_prob=True, tie_word_embeddings=True),
        "tied",
    ),
)
SMOLLM3 = (
    Case("smollm3", "SmolLM3ForCausalLM", config("SmolLM3", num_hidden_layers=5)),
    Case(
        "smollm3",
        "SmolLM3ForCausalLM",
        config(
            "SmolLM3", **WINDOW, no_rope_layers=[0, 1], use_sliding_window=True, attention_bias=True, mlp_bias=True,
            tie_word_embeddings=False,
        ),
        "window",
        LONG,
    ),
    *each("smollm3", named("SmolLM3"), config("SmolLM3", num_hidden_layers=4)),
)  # fmt: skip

CASES = (*GPT2, *MISTRAL, *MINISTRAL, *MIXTRAL, *QWEN2, *QWEN3, *QWEN_MOE, *GEMMA, *OLMO, *SMOLLM3)
