"""T5 1.0 and 1.1 (Raffel et al. 2020), Flan-T5 and mT5: relative biases, RMS norms, scores that are not scaled.

Whether logits are made with the embeddings, and whether states are scaled before, hangs on the release:
1.0 does both, 1.1, Flan-T5 and mT5 do neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nalanda.models.family import ACTIVATION, Family, Fixed, Head, Key, Row
from nalanda.models.shape import Shape
from nalanda.nn.spec import HeadSpec, TokensHeadSpec


@dataclass(frozen=True)
class Projection:
    """`feed_forward_proj`: an activation, or "gated-" and one; "gated-gelu" is GELU by tanh."""

    default: str

    def names(self) -> tuple[str, ...]:
        """See family.Part."""
        return ("feed_forward_proj",)

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See family.Part."""
        value = config.get("feed_forward_proj") or self.default
        gated, name = value.startswith("gated-"), value.removeprefix("gated-")
        activation = ACTIVATION.read("gelu_new" if gated and name == "gelu" else name)
        return {"feedforward": "glu" if gated else "mlp", "activation": activation}

    def write(self, shape: Shape) -> dict[str, Any]:
        """See family.Part."""
        gated = shape.feedforward == "glu"
        name = "gelu" if gated and shape.activation == "gelu_tanh" else ACTIVATION.write(shape.activation)
        return {"feed_forward_proj": f"gated-{name}" if gated else name}


def _scaled(config: Mapping[str, Any]) -> bool:
    """Whether states are scaled before they are compared with embeddings."""
    said = config.get("scale_decoder_outputs")
    return config.get("tie_word_embeddings") is not False if said is None else bool(said)


def _settle(config: Mapping[str, Any], own: bool) -> dict[str, Any]:
    """transformers goes by what is stored, not by `tie_word_embeddings`, which says only whether to scale."""
    if own is (config.get("tie_word_embeddings") is False):
        return dict(config)
    return {**config, "tie_word_embeddings": not own, "scale_decoder_outputs": _scaled(config)}


def _tokens(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    return TokensHeadSpec(scale=shape.hidden**-0.5 if _scaled(config) else 1.0)


def _says_tokens(spec: TokensHeadSpec) -> dict[str, Any]:
    return {"scale_decoder_outputs": spec.scale != 1.0}


def _plain_tokens(shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    return TokensHeadSpec()


def _stack(name: str) -> tuple[Row, ...]:
    layer, block, last = f"{name}.block.*.layer", f"{name}.blocks.*.", 2 if name == "decoder" else 1
    cross = (
        Row(f"{layer}.1.EncDecAttention.q", f"{block}cross.query"),
        Row(f"{layer}.1.EncDecAttention.{{k,v}}", f"{block}cross.key_value"),
        Row(f"{layer}.1.EncDecAttention.o", f"{block}cross.output"),
        Row(f"{layer}.1.layer_norm", f"{block}cross_norm"),
    )
    return (
        Row(f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias", f"{name}.relative.table"),
        Row(f"{layer}.0.SelfAttention.{{q,k,v}}", f"{block}attention.qkv"),
        Row(f"{layer}.0.SelfAttention.o", f"{block}attention.output"),
        Row(f"{layer}.0.layer_norm", f"{block}attention_norm"),
        *(cross if last == 2 else ()),
        Row(f"{layer}.{last}.DenseReluDense.wi", f"{block}feedforward.input"),
        Row(f"{layer}.{last}.DenseReluDense.{{wi_0,wi_1}}", f"{block}feedforward.gate_up"),
        Row(f"{layer}.{last}.DenseReluDense.wo", f"{block}feedforward.output"),
        Row(f"{layer}.{last}.layer_norm", f"{block}feedforward_norm"),
        Row(f"{name}.final_layer_norm", f"{name}.norm"),
    )


def _family(
    name: str, prefix: str, head: Head, sizes: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]
) -> Family:
    return Family(
        name=name,
        model_types=(name,),
        base=f"{prefix}Model",
        constants={
            "kind": "encoder_decoder", "norm": "rms", "norm_bias": False, "scale": 1.0, "position": "relative",
        },
        keys=(
            Key("vocab_size", "vocabulary", sizes["vocab_size"]),
            Key("d_model", "hidden", 512),
            Key("d_kv", "head_dim", 64),
            Key("d_ff", "inner", sizes["d_ff"]),
            Key("num_layers", "layers", sizes["num_layers"]),
            Key("num_decoder_layers", "decoder_layers", None),
            Key("num_heads", "heads", sizes["num_heads"]),
            Key("relative_attention_num_buckets", "buckets", 32),
            Key("relative_attention_max_distance", "max_distance", 128),
            *(Key("dropout_rate", ours, 0.1) for ours in ("dropout", "attention_dropout", "inner_dropout")),
            Key("layer_norm_epsilon", "norm_eps", 1e-6),
            Key("tie_word_embeddings", "tie_embeddings", True),
            Projection(sizes["feed_forward_proj"]),
            Fixed("is_decoder", False),
            Fixed("is_encoder_decoder", True, "an encoder or decoder alone is not read"),
        ),
        rows=(Row("shared", "tokens"), *_stack("encoder"), *_stack("decoder")),
        heads=(head,),
        architectures={f"{prefix}ForConditionalGeneration": ("tokens",)},
        aliases=dict.fromkeys(
            ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
        ),
        derived=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
        output="lm_head.weight",
        settle=_settle,
        always={"is_encoder_decoder": True},
        presets=presets,
    )  # fmt: skip


OUTPUT = (Row("lm_head", "heads.@.output"),)
BASE = {"d_model": 768, "num_layers": 12, "num_heads": 12}
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
T5 = _family(
    "t5", "T5", Head("tokens", "tokens", _tokens, OUTPUT, _says_tokens),
    {"vocab_size": 32128, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "feed_forward_proj": "relu"},
    {
        "t5-small": {},
        "t5-base": {**BASE, "d_ff": 3072},
        "flan-t5-small": {"d_ff": 1024, "num_layers": 8, "num_heads": 6, **V1_1},
        "flan-t5-base": {**BASE, "d_ff": 2048, **V1_1},
    },
)  # fmt: skip
MT5 = _family(
    "mt5", "MT5", Head("tokens", "tokens", _plain_tokens, OUTPUT),
    {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"},
    {
        "mt5-small": {"tie_word_embeddings": False},
        "mt5-base": {**BASE, "d_ff": 2048, "tie_word_embeddings": False},
    },
)  # fmt: skip
