"""BART (Lewis et al. 2020) and mBART (Liu et al. 2020); the rows and keys here serve M2M-100 and Marian as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nalanda.models.family import ACTIVATION, Family, Fixed, Head, Key, Part, Row, classes
from nalanda.models.shape import Shape
from nalanda.nn.spec import HeadSpec, SequenceHeadSpec, SpanHeadSpec, TokensHeadSpec

CONSTANTS = {"kind": "encoder_decoder", "bias": True, "feedforward_bias": True}
LEARNED = {"position": "learned", "offset": 2, "embedding_norm": True}


def keys(
    vocabulary: int, activation: str = "gelu", attention_dropout: float = 0.0, **old: Any
) -> tuple[Part, ...]:
    """What these families' config.json say; `old`: what those of fairseq's time say, which a family fixes."""
    sizes = (
        Key(f"{name}_{theirs}", f"{'decoder_' if name == 'decoder' else ''}{ours}", default)
        for name in ("encoder", "decoder")
        for theirs, ours, default in (
            ("layers", "layers", 12),
            ("attention_heads", "heads", 16),
            ("ffn_dim", "inner", 4096),
        )
    )
    return (
        Key("vocab_size", "vocabulary", vocabulary),
        Key("d_model", "hidden", 1024),
        *sizes,
        Key("activation_function", "activation", activation, ACTIVATION),
        Key("max_position_embeddings", "max_length", 1024),
        Key("dropout", "dropout", 0.1),
        Key("attention_dropout", "attention_dropout", attention_dropout),
        Key("activation_dropout", "inner_dropout", 0.0),
        Key("init_std", "init_std", 0.02),
        Key("tie_word_embeddings", "tie_embeddings", True),
        Fixed("is_decoder", False),
        Fixed("is_encoder_decoder", True, "an encoder or decoder alone is not read"),
        *(Fixed(name, value) for name, value in old.items()),
    )  # fmt: skip


def _stack(name: str) -> tuple[Row, ...]:
    layer, block = f"model.{name}.layers.*.", f"{name}.blocks.*."
    cross = (
        Row(f"{layer}encoder_attn.q_proj", f"{block}cross.query"),
        Row(f"{layer}encoder_attn.{{k_proj,v_proj}}", f"{block}cross.key_value"),
        Row(f"{layer}encoder_attn.out_proj", f"{block}cross.output"),
        Row(f"{layer}encoder_attn_layer_norm", f"{block}cross_norm"),
    )
    return (
        Row(f"model.{name}.embed_positions", f"{name}.embed.positions.table"),
        Row(f"model.{name}.layernorm_embedding", f"{name}.embed.norm"),
        Row(f"{layer}self_attn.{{q_proj,k_proj,v_proj}}", f"{block}attention.qkv"),
        Row(f"{layer}self_attn.out_proj", f"{block}attention.output"),
        Row(f"{layer}self_attn_layer_norm", f"{block}attention_norm"),
        *(cross if name == "decoder" else ()),
        Row(f"{layer}fc1", f"{block}feedforward.input"),
        Row(f"{layer}fc2", f"{block}feedforward.output"),
        Row(f"{layer}final_layer_norm", f"{block}feedforward_norm"),
        Row(f"model.{name}.layer_norm", f"{name}.norm"),
    )


ROWS = (Row("model.shared", "tokens"), *_stack("encoder"), *_stack("decoder"))
"""Of all four families; those without a norm or a table of positions have no parameter for its row."""
EMBEDDINGS = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
SHARED: dict[str, Any] = {
    "prefix": "model.",
    "rows": ROWS,
    "aliases": dict.fromkeys((*EMBEDDINGS, "lm_head.weight"), "model.shared.weight"),
    "untied": {"model.shared.weight": EMBEDDINGS},
    "always": {"is_encoder_decoder": True},
    "zeros": ("final_logits_bias",),
}


def tokens(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """Logits, with a bias that is not trained by their authors but stored."""
    return TokensHeadSpec(bias=True)


def _labels(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    dropout, default = config.get("classifier_dropout", 0.0), 3 if config.get("model_type") == "bart" else 2
    return SequenceHeadSpec(classes=classes(config, default), place="last", dropout=dropout)


def _span(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    return SpanHeadSpec()


OUTPUT = Row("lm_head", "heads.@.output")
TOKENS = Head("tokens", "tokens", tokens, (Row("final_logits_bias", "heads.@.output.bias", "row"), OUTPUT))
"""`final_logits_bias` comes first: it is the bias of a matrix whose own class has none."""
HEADS = (
    TOKENS,
    Head("labels", "sequence", _labels, (
        Row("classification_head.dense", "heads.@.pooler"), Row("classification_head.out_proj", "heads.@.output"),
    )),
    Head("span", "span", _span, (Row("qa_outputs", "heads.@.output"),)),
)  # fmt: skip


def architectures(name: str) -> dict[str, tuple[str, ...]]:
    """Hugging Face's classes for a family called `name`; a text's class is read at the target's last token."""
    return {
        f"{name}ForConditionalGeneration": ("tokens",),
        f"{name}ForSequenceClassification": ("labels",),
        f"{name}ForQuestionAnswering": ("span",),
    }


SCALE = Key("scale_embedding", "scale_embeddings", False)
OLD: dict[str, Any] = {"normalize_embedding": True, "static_position_embeddings": False}
SMALL = {
    f"{stack}_{key}": value
    for stack in ("encoder", "decoder")
    for key, value in (("layers", 6), ("ffn_dim", 3072), ("attention_heads", 12))
}
BART = Family(
    name="bart",
    model_types=("bart",),
    base="BartModel",
    constants={**CONSTANTS, **LEARNED, "norm_place": "post", "final_norm": False},
    keys=(*keys(50265, normalize_before=False, add_final_layer_norm=False, **OLD), SCALE),
    heads=HEADS,
    architectures=architectures("Bart"),
    presets={"bart-base": {"d_model": 768, **SMALL}, "bart-large": {}},
    **SHARED,
)
MBART = Family(
    name="mbart",
    model_types=("mbart",),
    base="MBartModel",
    constants={**CONSTANTS, **LEARNED},
    keys=(*keys(50265, normalize_before=True, add_final_layer_norm=True, **OLD), SCALE),
    heads=HEADS,
    architectures=architectures("MBart"),
    presets={
        "mbart-large-cc25": {"vocab_size": 250027, "scale_embedding": True},
        "mbart-large-50": {"vocab_size": 250054, "scale_embedding": True, "activation_function": "relu"},
    },
    **SHARED,
)
