"""Tables: what GGUF files call things, beside what Hugging Face checkpoints call them. Read in both directions.

FAMILIES["gemma3_text"].rows      # tensors: GGUF name, Hugging Face key, how one becomes the other
FAMILIES["gemma3_text"].numbers   # metadata key (below "gemma3."), keys of config.json

A GGUF architecture may hold several model types ("llama" is Llama, Mistral and Mixtral); `family_of` tells which.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

# What was done to a tensor on its way into the GGUF file; all of it can be undone.
#   rotary     the rows of each head reordered, from halves (0 ... d/2, d/2 ... d) to neighbours (0 d/2 1 d/2+1 ...)
#   plus_one   one added, where the model computes with 1 + weight
#   transpose  [in, out] turned into [out, in]
Op = Literal["copy", "rotary", "plus_one", "transpose"]


@dataclass(frozen=True)
class Row:
    """One kind of tensor. {n} is the layer, {e} the expert. Where only `theirs` has {e}, `gguf` is all experts
    stacked; older files have them apart, as `apart`."""

    gguf: str
    theirs: str
    op: Op = "copy"
    needed: bool = True
    apart: str | None = None


@dataclass(frozen=True)
class Number:
    """A row of config: the metadata key below the architecture's name, and the keys of config.json that mean it, the
    first of which is given when a file is read."""

    gguf: str
    theirs: tuple[str, ...]
    kind: type = int


@dataclass(frozen=True)
class Family:
    """A model type as a GGUF architecture.

    `fixed`: what a file cannot say, because llama.cpp knows it; given when read, and checked when written.
    `defaults`: what an absent key of config.json means, where that is neither an error nor what `fixed` says.
    """

    architecture: str
    model_type: str
    causal: str
    rows: tuple[Row, ...]
    numbers: tuple[Number, ...]
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    biases: bool = False  # config.json says whether attention has them
    tied: bool | None = (
        None  # output.weight is never (True) or always (False) in the file; None: as the model is
    )


def undo(op: Op, chunk: Tensor, head: int) -> Tensor:
    """A chunk of a GGUF tensor, whole heads of `head` rows where `op` is rotary, as the checkpoint has it."""
    if op == "rotary":
        pairs = chunk.reshape(-1, head // 2, 2, *chunk.shape[1:])
        return pairs.transpose(1, 2).reshape(chunk.shape)
    return chunk - 1 if op == "plus_one" else chunk


def apply(op: Op, chunk: Tensor, head: int) -> Tensor:
    """The opposite of `undo`."""
    if op == "rotary":
        halves = chunk.reshape(-1, 2, head // 2, *chunk.shape[1:])
        return halves.transpose(1, 2).reshape(chunk.shape)
    return chunk + 1 if op == "plus_one" else chunk


def _ends(norm: Op = "copy") -> tuple[Row, ...]:
    return (
        Row("token_embd.weight", "model.embed_tokens.weight"),
        Row("output_norm.weight", "model.norm.weight", norm),
        Row("output.weight", "lm_head.weight", needed=False),
    )


def _layer(ours: str, theirs: str, op: Op = "copy", bias: bool | None = None) -> tuple[Row, ...]:
    """A weight of each layer, and its bias: needed (True), allowed (False) or unknown (None)."""
    gguf, key = f"blk.{{n}}.{ours}", f"model.layers.{{n}}.{theirs}"
    weight = Row(f"{gguf}.weight", f"{key}.weight", op)
    return (weight,) if bias is None else (weight, Row(f"{gguf}.bias", f"{key}.bias", op, needed=bias))


def _attention(op: Op = "copy", bias: bool | None = None, out_bias: bool | None = None) -> tuple[Row, ...]:
    return (
        *_layer("attn_q", "self_attn.q_proj", op, bias),
        *_layer("attn_k", "self_attn.k_proj", op, bias),
        *_layer("attn_v", "self_attn.v_proj", "copy", bias),
        *_layer("attn_output", "self_attn.o_proj", "copy", out_bias),
    )


def _head_norms(op: Op = "copy") -> tuple[Row, ...]:
    return (
        *_layer("attn_q_norm", "self_attn.q_norm", op),
        *_layer("attn_k_norm", "self_attn.k_norm", op),
    )


def _norms(*pairs: tuple[str, str], op: Op = "copy") -> tuple[Row, ...]:
    return tuple(row for ours, theirs in pairs for row in _layer(ours, theirs, op))


def _glu(bias: bool | None = None) -> tuple[Row, ...]:
    return tuple(
        row
        for part in ("gate", "up", "down")
        for row in _layer(f"ffn_{part}", f"mlp.{part}_proj", "copy", bias)
    )


def _experts(module: str, gate: str, up: str, down: str) -> tuple[Row, ...]:
    layer = f"model.layers.{{n}}.{module}"
    return (
        Row("blk.{n}.ffn_gate_inp.weight", f"{layer}.gate.weight"),
        *(
            Row(
                f"blk.{{n}}.ffn_{part}_exps.weight",
                f"{layer}.experts.{{e}}.{key}.weight",
                apart=f"blk.{{n}}.ffn_{part}.{{e}}.weight",
            )
            for part, key in (("gate", gate), ("up", up), ("down", down))
        ),
    )


def _gpt2() -> tuple[Row, ...]:
    parts: tuple[tuple[str, str, Op], ...] = (
        ("attn_norm", "ln_1", "copy"),
        ("attn_qkv", "attn.c_attn", "transpose"),
        ("attn_output", "attn.c_proj", "transpose"),
        ("ffn_norm", "ln_2", "copy"),
        ("ffn_up", "mlp.c_fc", "transpose"),
        ("ffn_down", "mlp.c_proj", "transpose"),
    )
    return (
        Row("token_embd.weight", "transformer.wte.weight"),
        Row("position_embd.weight", "transformer.wpe.weight"),
        Row("output_norm.weight", "transformer.ln_f.weight"),
        Row("output_norm.bias", "transformer.ln_f.bias"),
        Row("output.weight", "lm_head.weight", needed=False),
        *(
            row
            for ours, theirs, op in parts
            for row in (
                Row(f"blk.{{n}}.{ours}.weight", f"transformer.h.{{n}}.{theirs}.weight", op),
                Row(f"blk.{{n}}.{ours}.bias", f"transformer.h.{{n}}.{theirs}.bias"),
            )
        ),
    )


_PRE = (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"))
_POST = (("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm"))
_BOTH = (("attn_norm", "input_layernorm"), ("ffn_norm", "pre_feedforward_layernorm"), *_POST)

_NUMBERS = (
    Number("context_length", ("max_position_embeddings",)),
    Number("embedding_length", ("hidden_size",)),
    Number("block_count", ("num_hidden_layers",)),
    Number("feed_forward_length", ("intermediate_size",)),
    Number("attention.head_count", ("num_attention_heads",)),
    Number("attention.head_count_kv", ("num_key_value_heads",)),
    Number("attention.layer_norm_rms_epsilon", ("rms_norm_eps",), float),
)
_USED = Number("expert_used_count", ("num_experts_per_tok",))
_SOFTCAP = Number("final_logit_softcapping", ("final_logit_softcapping",), float)
_GPT2_NUMBERS = (
    Number("context_length", ("n_positions", "n_ctx", "max_position_embeddings")),
    Number("embedding_length", ("n_embd", "hidden_size")),
    Number("block_count", ("n_layer", "num_hidden_layers")),
    Number("feed_forward_length", ("n_inner",)),
    Number("attention.head_count", ("n_head", "num_attention_heads")),
    Number("attention.layer_norm_epsilon", ("layer_norm_epsilon",), float),
)
_SILU = {"hidden_act": "silu"}
_WHOLE = {**_SILU, "use_sliding_window": False}
_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
_LLAMA_ROWS = (*_ends(), *_norms(*_PRE), *_attention("rotary", False, False), *_glu(False))

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama", "llama", "LlamaForCausalLM", _LLAMA_ROWS, _NUMBERS, _SILU, {"rms_norm_eps": 1e-6}, True
        ),
        Family(
            "llama",
            "mistral",
            "MistralForCausalLM",
            (*_ends(), *_norms(*_PRE), *_attention("rotary"), *_glu()),
            _NUMBERS,
            _SILU,
            {"rms_norm_eps": 1e-6, "sliding_window": 4096},
        ),
        Family(
            "llama",
            "mixtral",
            "MixtralForCausalLM",
            (
                *_ends(),
                *_norms(*_PRE),
                *_attention("rotary"),
                *_experts("block_sparse_moe", "w1", "w3", "w2"),
            ),
            (*_NUMBERS, Number("expert_count", ("num_local_experts", "num_experts")), _USED),
            {**_SILU, "sliding_window": None},
            {"rms_norm_eps": 1e-5, "rope_theta": 1e6},
        ),
        Family(
            "qwen2",
            "qwen2",
            "Qwen2ForCausalLM",
            (*_ends(), *_norms(*_PRE), *_attention("copy", True), *_glu()),
            _NUMBERS,
            _WHOLE,
            {"rms_norm_eps": 1e-6},
        ),
        Family(
            "qwen3",
            "qwen3",
            "Qwen3ForCausalLM",
            (*_ends(), *_norms(*_PRE), *_attention("copy", False, False), *_head_norms(), *_glu()),
            _NUMBERS,
            _WHOLE,
            {"rms_norm_eps": 1e-6, "head_dim": 128},
            True,
        ),
        Family(
            "qwen3moe",
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            (
                *_ends(),
                *_norms(*_PRE),
                *_attention(),
                *_head_norms(),
                *_experts("mlp", "gate_proj", "up_proj", "down_proj"),
            ),
            (
                *_NUMBERS,
                Number("expert_feed_forward_length", ("moe_intermediate_size",)),
                Number("expert_count", ("num_experts", "num_local_experts")),
                _USED,
            ),
            {
                **_WHOLE,
                "attention_bias": False,
                "norm_topk_prob": True,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            },
            {"rms_norm_eps": 1e-6, "norm_topk_prob": False},
        ),
        Family(
            "gemma2",
            "gemma2",
            "Gemma2ForCausalLM",
            (*_ends("plus_one"), *_norms(*_BOTH, op="plus_one"), *_attention(), *_glu()),
            (
                *_NUMBERS,
                Number("attention.sliding_window", ("sliding_window",)),
                Number("attn_logit_softcapping", ("attn_logit_softcapping",), float),
                _SOFTCAP,
            ),
            _GEMMA,
            {
                "rms_norm_eps": 1e-6,
                "head_dim": 256,
                "sliding_window": 4096,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
                "query_pre_attn_scalar": 256,
                "tie_word_embeddings": True,
            },
            tied=True,
        ),
        Family(
            "gemma3",
            "gemma3_text",
            "Gemma3ForCausalLM",
            (
                *_ends("plus_one"),
                *_norms(*_BOTH, op="plus_one"),
                *_attention(),
                *_head_norms("plus_one"),
                *_glu(),
            ),
            (*_NUMBERS, Number("attention.sliding_window", ("sliding_window",)), _SOFTCAP),
            {**_GEMMA, "attn_logit_softcapping": None, "use_bidirectional_attention": False},
            {
                "rms_norm_eps": 1e-6,
                "head_dim": 256,
                "sliding_window": 4096,
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "query_pre_attn_scalar": 256,
                "final_logit_softcapping": None,
                "tie_word_embeddings": True,
            },
        ),
        Family(
            "olmo2",
            "olmo2",
            "Olmo2ForCausalLM",
            (*_ends(), *_norms(*_POST), *_attention(), *_head_norms(), *_glu()),
            _NUMBERS,
            {**_SILU, "attention_bias": False},
            {"rms_norm_eps": 1e-5},
            tied=False,
        ),
        Family(
            "olmoe",
            "olmoe",
            "OlmoeForCausalLM",
            (
                *_ends(),
                *_norms(*_PRE),
                *_attention(),
                *_head_norms(),
                *_experts("mlp", "gate_proj", "up_proj", "down_proj"),
            ),
            (*_NUMBERS, Number("expert_count", ("num_experts", "num_local_experts")), _USED),
            {**_SILU, "attention_bias": False, "norm_topk_prob": False, "clip_qkv": None},
            {"rms_norm_eps": 1e-5},
            tied=False,
        ),
        Family(
            "smollm3",
            "smollm3",
            "SmolLM3ForCausalLM",
            (*_ends(), *_norms(*_PRE), *_attention("rotary"), *_glu()),
            _NUMBERS,
            {**_WHOLE, "attention_bias": False, "mlp_bias": False, "no_rope_layer_interval": 4},
            {"rms_norm_eps": 1e-6, "rope_theta": 2e6, "tie_word_embeddings": True},
        ),
        Family(
            "gpt2",
            "gpt2",
            "GPT2LMHeadModel",
            _gpt2(),
            _GPT2_NUMBERS,
            {
                "activation_function": "gelu_new",
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
                "add_cross_attention": False,
            },
            {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        ),
    )
}

# Tensors that carry no weights of their own: read as config, or a table that every reader can compute.
TABLES = ("rope_freqs.weight",)


def family_of(architecture: str, metadata: Mapping[str, Any]) -> Family | None:
    """The model type behind a GGUF architecture, None where it is unknown."""
    if architecture == "llama":
        if metadata.get("llama.expert_count"):
            return FAMILIES["mixtral"]
        return FAMILIES["mistral" if metadata.get("llama.attention.sliding_window") else "llama"]
    return next((family for family in FAMILIES.values() if family.architecture == architecture), None)


def expand(rows: Collection[Row], layers: int) -> list[tuple[Row, int]]:
    """Each row with each of its layers; rows outside the layers come once, with layer 0."""
    return [(row, n) for row in rows for n in (range(layers) if "{n}" in row.gguf else (0,))]
