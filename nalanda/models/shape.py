"""A network described by a flat list of values, as recipes and other tools' config.json do; `Spec` spells it out.

    shape = Shape(kind="decoder", vocabulary=32000, hidden=4096, layers=32, heads=32, inner=11008, norm="rms")
    spec = shape.spec()
    Shape.of(spec) == shape                  # for every spec that a shape can say; else ValueError says what differs

What differs from layer to layer is a tuple with a value for each: `windows`, `rotaries`, `sparse`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from nalanda.config import Config
from nalanda.nn.rotary import RotarySpec
from nalanda.nn.spec import (
    Activation,
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    MoESpec,
    NormSpec,
    PositionSpec,
    Probability,
    Spec,
    ZeroAtStart,
)

MAX_LAYERS, MAX_WIDTH, MAX_ROWS = 10_000, 2**24, 2**28
"""Beyond what any network has: a config.json that says more is refused before memory is asked for."""


class Shape(Config):
    """Names are those of the specs (nn/spec.py); an encoder-decoder's stacks differ in the `decoder_` values only."""

    kind: Literal["encoder", "decoder", "encoder_decoder"]
    vocabulary: int = Field(gt=0, le=MAX_ROWS)
    hidden: int = Field(gt=0, le=MAX_WIDTH)
    layers: int = Field(gt=0, le=MAX_LAYERS)
    decoder_layers: int | None = Field(default=None, gt=0, le=MAX_LAYERS)
    heads: int = Field(gt=0, le=MAX_WIDTH)
    decoder_heads: int | None = Field(default=None, gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    head_dim: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    inner: int = Field(gt=0, le=MAX_WIDTH)
    decoder_inner: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    activation: Activation = "gelu"
    feedforward: Literal["mlp", "glu"] = "mlp"
    moe: MoESpec | None = None
    sparse: tuple[bool, ...] = Field(
        (), description="which layers are mixtures of experts; (): all, with moe"
    )
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = Field(default=1e-5, gt=0)
    norm_bias: bool = True
    unit_offset: bool = False
    norm_place: Literal["pre", "post", "sandwich", "output"] = "pre"
    first_norm: bool = Field(True, description="whether the first layer's attention has its norm")
    bias: bool = False
    output_bias: bool | None = None
    feedforward_bias: bool = False
    qk_norm: bool = False
    qk_norm_over: Literal["head", "all"] = "head"
    windows: tuple[int | None, ...] = ()
    rotaries: tuple[RotarySpec | None, ...] = ()
    cross_rotary: bool = False
    scale: float | None = None
    softcap: float | None = Field(default=None, gt=0)
    sinks: bool = False
    position: Literal["none", "learned", "sinusoidal", "relative"] = "none"
    max_length: int = Field(default=1024, gt=0, le=MAX_ROWS)
    offset: int = Field(default=0, ge=0)
    theta: float = Field(default=10_000.0, gt=0)
    layout: Literal["paper", "tensor2tensor"] = "paper"
    buckets: int = Field(default=32, ge=4)
    max_distance: int = Field(default=128, gt=1)
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    token_types: int = Field(default=0, ge=0)
    embedding_norm: bool = False
    final_norm: bool = True
    dropout: Probability = 0.0
    attention_dropout: Probability = 0.0
    inner_dropout: Probability = 0.0
    init: Literal["normal", "scaled", "mup"] = "normal"
    init_std: float = Field(default=0.02, gt=0)
    init_zero: tuple[ZeroAtStart, ...] = ()

    @model_validator(mode="after")
    def _table_fits(self) -> Shape:
        if self.position == "sinusoidal" and self.max_length * self.hidden > MAX_ROWS:
            raise ValueError(
                f"a table of {self.max_length:,} positions of {self.hidden:,} numbers is too large"
            )
        return self

    def spec(self) -> Spec:
        """The network. Raises pydantic's ValidationError where the values do not fit one another."""
        encoder = () if self.kind == "decoder" else tuple(self._block(i) for i in range(self.layers))
        decoder: tuple[BlockSpec, ...] = ()
        if self.kind == "decoder":
            decoder = tuple(self._block(i) for i in range(self.layers))
        elif self.kind == "encoder_decoder":
            decoder = tuple(self._block(i, cross=True) for i in range(self.decoder_layers or self.layers))
        position = PositionSpec(
            kind=self.position,
            max_length=self.max_length,
            offset=self.offset,
            theta=self.theta,
            layout=self.layout,
            buckets=self.buckets,
            max_distance=self.max_distance,
        )
        return Spec(
            vocabulary=self.vocabulary,
            hidden=self.hidden,
            encoder=encoder,
            decoder=decoder,
            encoder_position=position,
            decoder_position=position,
            tie_embeddings=self.tie_embeddings,
            scale_embeddings=self.scale_embeddings,
            token_types=self.token_types,
            embedding_norm=self._norm() if self.embedding_norm else None,
            embedding_dropout=self.dropout,
            final_norm=self.final_norm,
            init=self.init,
            init_std=self.init_std,
            init_zero=tuple(z for z in self.init_zero if z != "head" or not self.tie_embeddings),
        )

    def _norm(self) -> NormSpec:
        bias = self.norm_bias and self.norm == "layer"
        return NormSpec(kind=self.norm, eps=self.norm_eps, bias=bias, unit_offset=self.unit_offset)

    def _block(self, layer: int, cross: bool = False) -> BlockSpec:
        attention = AttentionSpec(
            heads=self.decoder_heads or self.heads if cross else self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            bias=self.bias,
            output_bias=self.output_bias,
            window=self.windows[layer] if self.windows else None,
            dropout=self.attention_dropout,
            rotary=self.rotaries[layer] if self.rotaries else None,
            qk_norm=self._norm() if self.qk_norm else None,
            qk_norm_over=self.qk_norm_over,
            scale=self.scale,
            softcap=self.softcap,
            sinks=self.sinks,
        )
        others = {"rotary": attention.rotary if self.cross_rotary else None, "window": None}
        return BlockSpec(
            attention=attention,
            cross=attention.model_copy(update=others) if cross else None,
            feedforward=self._feedforward(layer, cross),
            norm=self._norm(),
            norm_place=self.norm_place,
            attention_norm=self.first_norm or layer > 0,
            dropout=self.dropout,
        )

    def _feedforward(self, layer: int, cross: bool) -> FeedForwardSpec | MoESpec:
        if self.moe is not None and (not self.sparse or self.sparse[layer]):
            return self.moe
        return FeedForwardSpec(
            kind=self.feedforward,
            inner=self.decoder_inner or self.inner if cross else self.inner,
            activation=self.activation,
            bias=self.feedforward_bias,
            dropout=self.inner_dropout,
        )

    @classmethod
    def of(cls, spec: Spec) -> Shape:
        """The shape that says `spec`, what only training looks at apart. Raises ValueError where none does."""
        shape = _read(spec)
        if essence(shape.spec()) != essence(spec):
            raise ValueError("its layers differ in ways that a flat description cannot say")
        return shape


def _read(spec: Spec) -> Shape:
    """What the first layer of each stack says, and lists of what may differ; `Shape.of` compares."""
    blocks = spec.encoder or spec.decoder
    first, attention, norm = blocks[0], blocks[0].attention, blocks[0].norm
    deep = spec.decoder[0] if spec.encoder and spec.decoder else None
    dense = next((b.feedforward for b in blocks if isinstance(b.feedforward, FeedForwardSpec)), None)
    sparse = next((b.feedforward for b in blocks if isinstance(b.feedforward, MoESpec)), None)
    windows = tuple(b.attention.window for b in blocks)
    rotaries = tuple(b.attention.rotary for b in blocks)
    return Shape(
        **_read_position(spec.stacks()[0][2]),
        kind="decoder" if not spec.encoder else "encoder_decoder" if spec.decoder else "encoder",
        vocabulary=spec.vocabulary,
        hidden=spec.hidden,
        layers=len(blocks),
        decoder_layers=len(spec.decoder) if deep else None,
        heads=attention.heads,
        decoder_heads=deep.attention.heads if deep else None,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        inner=(dense or sparse).inner,  # type: ignore[union-attr]
        decoder_inner=deep.feedforward.inner if deep else None,
        activation=(dense or sparse).activation,  # type: ignore[union-attr]
        feedforward=dense.kind if dense else "glu",
        moe=sparse,
        sparse=tuple(isinstance(b.feedforward, MoESpec) for b in blocks) if sparse and dense else (),
        norm=norm.kind,
        norm_eps=norm.eps,
        norm_bias=norm.bias,
        unit_offset=norm.unit_offset,
        norm_place=first.norm_place,
        first_norm=first.attention_norm,
        bias=attention.bias,
        output_bias=attention.output_bias,
        feedforward_bias=dense.bias if dense else False,
        qk_norm=attention.qk_norm is not None,
        qk_norm_over=attention.qk_norm_over,
        windows=windows if any(windows) else (),
        rotaries=rotaries if any(rotaries) else (),
        cross_rotary=bool(deep and deep.cross and deep.cross.rotary),
        scale=attention.scale,
        softcap=attention.softcap,
        sinks=attention.sinks,
        tie_embeddings=spec.tie_embeddings,
        scale_embeddings=spec.scale_embeddings,
        token_types=spec.token_types,
        embedding_norm=spec.embedding_norm is not None,
        final_norm=spec.final_norm,
        dropout=first.dropout,
        attention_dropout=attention.dropout,
        inner_dropout=dense.dropout if dense else 0.0,
        init=spec.init,
        init_std=spec.init_std,
        init_zero=spec.init_zero,
    )


def _read_position(position: PositionSpec) -> dict[str, Any]:
    names = ("max_length", "offset", "theta", "layout", "buckets", "max_distance")
    return {"position": position.kind, **{name: getattr(position, name) for name in names}}


TRAINING = {"dropout", "attention_dropout", "inner_dropout", "init", "init_std", "init_zero"}
"""Values of a shape that only training looks at."""
_NOT_COMPUTED = {*TRAINING, "embedding_dropout", "max_length"}
"""What a trained network computes does not hang on these; `max_length` does where there is a table."""
_TABLES = ("learned", "sinusoidal")


def essence(spec: Spec) -> Any:
    """What a network computes, as plain values in one spelling: equal for specs that give equal outputs."""

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        kept = {key: walk(inner) for key, inner in value.items() if key not in _NOT_COMPUTED}
        if value.get("kind") in _TABLES and "max_length" in value:
            kept["max_length"] = value["max_length"]
        if "kv_heads" in value:
            dim = value["head_dim"] or spec.hidden // value["heads"]
            kept["kv_heads"], kept["head_dim"] = value["kv_heads"] or value["heads"], dim
            kept["scale"] = value["scale"] if value["scale"] is not None else dim**-0.5
            kept["output_bias"] = value["bias"] if value["output_bias"] is None else value["output_bias"]
        if value.get("kind") == "rms":
            kept.pop("bias", None)
        return kept

    values = walk(spec.to_dict())
    for stack in ("encoder", "decoder"):
        if not values[stack]:
            values.pop(f"{stack}_position")
    return values
