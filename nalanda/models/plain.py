"""What a recipe writes to describe a model of one's own; every layer is alike, and `build_spec` spells them out.

model: {kind: encoder_decoder, layers: 3, hidden: 192, heads: 4, inner: 768, position: rotary}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from nalanda.config import Config, unset
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
    TokensHeadSpec,
    ZeroAtStart,
)


class MoEConfig(Config):
    """Feed-forwards that are mixtures of experts; each expert is as `feedforward`, `activation`, `bias` say."""

    experts: int = Field(default=8, gt=1)
    top_k: int = Field(default=2, gt=0, description="experts that a token goes through")
    inner: int | None = Field(default=None, gt=0, description="width of an expert; None: the feed-forward's")
    every: int = Field(default=1, gt=0, description="every n-th layer is a mixture, the last of each n")
    dense: int = Field(default=0, ge=0, description="so many first layers are not (DeepSeek)")
    router: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = Field(default=True, description="weights of the chosen experts sum to 1")
    scale: float = Field(default=1.0, gt=0, description="of the chosen experts' weights")
    shared: int | None = Field(
        default=None, gt=0, description="width of an expert that every token goes through"
    )
    shared_gate: bool = False
    balance_bias: bool = Field(
        default=False, description="for an objective's bias_rate: balance without a loss"
    )

    @model_validator(mode="after")
    def _makes_a_spec(self) -> MoEConfig:
        self.spec(FeedForwardSpec(inner=1))
        return self

    def covers(self, layer: int) -> bool:
        """Whether the layer of this number, from 0, is a mixture."""
        return layer >= self.dense and (layer - self.dense) % self.every == self.every - 1

    def spec(self, dense: FeedForwardSpec) -> MoESpec:
        """The mixture in place of a feed-forward."""
        return MoESpec(
            experts=self.experts,
            top_k=self.top_k,
            inner=self.inner or dense.inner,
            expert=dense.kind,
            activation=dense.activation,
            bias=dense.bias,
            dropout=dense.dropout,
            router=self.router,
            normalize=self.normalize,
            scale=self.scale,
            shared=self.shared,
            shared_gate=self.shared_gate,
            balance_bias=self.balance_bias,
        )


class ModelConfig(Config):
    """A model with random weights. Defaults are a small modern network that trains without long warm-up."""

    kind: Literal["encoder", "decoder", "encoder_decoder"] = "encoder_decoder"
    layers: int = Field(default=3, gt=0, description="blocks of each stack")
    decoder_layers: int | None = Field(
        default=None, gt=0, description="blocks of an encoder-decoder's decoder; None: layers"
    )
    hidden: int = Field(default=192, gt=0, description="width of the residual stream")
    heads: int = Field(default=4, gt=0)
    kv_heads: int | None = Field(
        default=None, gt=0, description="fewer than heads: grouped queries; None: heads"
    )
    head_dim: int | None = Field(default=None, gt=0, description="None: hidden / heads")
    inner: int | None = Field(
        default=None, gt=0, description="feed-forward width; None: 4 hidden, or 8/3 hidden (glu)"
    )
    activation: Activation = "gelu"
    feedforward: Literal["mlp", "glu"] = "mlp"
    moe: MoEConfig | None = Field(default=None, description="mixtures of experts; None: every layer is dense")
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = Field(default=1e-5, gt=0)
    norm_place: Literal["pre", "post"] = "pre"
    bias: bool = Field(default=False, description="of projections, feed-forward and LayerNorm")
    qk_norm: bool = False
    window: int | None = Field(
        default=None, gt=0, description="self-attention sees places nearer than this; None: all"
    )
    position: Literal["none", "learned", "sinusoidal", "rotary", "relative"] = "rotary"
    cross_rotary: bool = Field(default=False, description="rotary positions in cross-attention as well")
    max_length: int = Field(default=1024, gt=0, description="longest sequence, in tokens")
    theta: float = Field(default=10_000.0, gt=0, description="rotary and sinusoidal: base of the wavelengths")
    dropout: Probability = Field(default=0.0, description="of embeddings and of each sub-layer's output")
    attention_dropout: Probability = 0.0
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    token_types: int = Field(default=0, ge=0, description="BERT's sentence A/B embeddings: 2")
    embedding_norm: bool = False
    value_embeddings: Literal["none", "alternate", "ends", "all"] = Field(
        default="none",
        exclude_if=unset,
        description="tables of token vectors mixed into attention values: one for every second layer, one for each "
        "pair of a first and a last layer (three at most), or one for every layer",
    )
    first_mix: bool = Field(
        default=False, exclude_if=unset, description="every layer may mix in what the stack began with"
    )
    bigrams: int | None = Field(
        default=None,
        gt=0,
        exclude_if=unset,
        description="rows of a hashed table of pairs of neighbouring tokens",
    )
    bigram_width: int | None = Field(
        default=None, gt=0, exclude_if=unset, description="of that table's rows; None: hidden"
    )
    previous_mix: bool = Field(
        default=False, exclude_if=unset, description="embeddings take in shares of those of the token before"
    )
    logit_softcap: float | None = Field(
        default=None, gt=0, exclude_if=unset, description="logits become c tanh(logit / c)"
    )
    init: Literal["normal", "scaled", "mup"] = "normal"
    init_std: float = Field(default=0.02, gt=0)
    init_zero: tuple[ZeroAtStart, ...] = Field(
        default=(),
        exclude_if=unset,
        description="start at 0: ends of branches (residual), the untied head (head)",
    )

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.decoder_layers is not None and self.kind != "encoder_decoder":
            raise ValueError(f"decoder_layers is for kind encoder_decoder; kind {self.kind} has layers only")
        if self.cross_rotary and (self.kind != "encoder_decoder" or self.position != "rotary"):
            raise ValueError("cross_rotary needs kind encoder_decoder and position rotary")
        if self.moe is not None and not any(map(self.moe.covers, range(self.layers))):
            raise ValueError("moe: no layer is a mixture; lower moe.every or moe.dense")
        if self.value_embeddings == "ends" and self.layers < 2:
            raise ValueError("value_embeddings: 'ends' needs at least 2 layers")
        build_spec(self, vocabulary=1)
        return self


def build_spec(config: ModelConfig, vocabulary: int) -> Spec:
    """The network that `config` describes, over a vocabulary of `vocabulary` tokens."""
    norm = NormSpec(kind=config.norm, eps=config.norm_eps, bias=config.bias)
    rotary = RotarySpec(theta=config.theta)
    attention = AttentionSpec(
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        bias=config.bias,
        window=config.window,
        dropout=config.attention_dropout,
        rotary=rotary if config.position == "rotary" else None,
        qk_norm=NormSpec(kind="rms", eps=config.norm_eps) if config.qk_norm else None,
    )
    block = BlockSpec(
        attention=attention,
        feedforward=FeedForwardSpec(
            kind=config.feedforward, inner=_inner(config), activation=config.activation, bias=config.bias
        ),
        norm=norm,
        norm_place=config.norm_place,
        dropout=config.dropout,
        first_mix=config.first_mix,
    )
    cross = attention.model_copy(update={"rotary": rotary if config.cross_rotary else None, "window": None})
    added = "none" if config.position == "rotary" else config.position
    position = PositionSpec(kind=added, max_length=config.max_length, theta=config.theta)
    decoder_block = block.model_copy(update={"cross": cross}) if config.kind == "encoder_decoder" else block
    depth = config.decoder_layers or config.layers
    encoder = () if config.kind == "decoder" else _layers(config, block, config.layers)
    decoder = () if config.kind == "encoder" else _layers(config, decoder_block, depth)
    return Spec(
        vocabulary=vocabulary,
        hidden=config.hidden,
        encoder=encoder,
        decoder=decoder,
        encoder_position=position,
        decoder_position=position,
        tie_embeddings=config.tie_embeddings,
        scale_embeddings=config.scale_embeddings,
        token_types=config.token_types,
        embedding_norm=norm if config.embedding_norm else None,
        embedding_dropout=config.dropout,
        final_norm=config.norm_place == "pre",
        bigrams=config.bigrams,
        bigram_width=config.bigram_width,
        previous_mix=config.previous_mix,
        init=config.init,
        init_std=config.init_std,
        init_zero=config.init_zero,
    )


def token_head(config: ModelConfig) -> TokensHeadSpec:
    """The head over the vocabulary that `config` describes."""
    return TokensHeadSpec(softcap=config.logit_softcap)


def _layers(config: ModelConfig, block: BlockSpec, count: int) -> tuple[BlockSpec, ...]:
    """`count` blocks, some with experts, some with token vectors in their values."""
    moe, blocks = config.moe, [block] * count
    if moe is not None and isinstance(block.feedforward, FeedForwardSpec):
        sparse = block.model_copy(update={"feedforward": moe.spec(block.feedforward)})
        blocks = [sparse if moe.covers(layer) else block for layer in range(count)]
    tables = _VALUE_TABLES[config.value_embeddings](count)
    return tuple(_with_values(b, tables[layer]) if layer in tables else b for layer, b in enumerate(blocks))


def _ends(count: int) -> dict[int, int]:
    shared = min(3, count // 2)
    return {layer: number for number in range(shared) for layer in (number, count - shared + number)}


_VALUE_TABLES: dict[str, Callable[[int], dict[int, int]]] = {
    "none": lambda count: {},
    "alternate": lambda count: {
        layer: number for number, layer in enumerate(range((count - 1) % 2, count, 2))
    },
    "ends": _ends,
    "all": lambda count: {layer: layer for layer in range(count)},
}
"""The value table of each layer that has one, for a stack of so many layers."""


def _with_values(block: BlockSpec, table: int) -> BlockSpec:
    return block.model_copy(update={"attention": block.attention.model_copy(update={"value_table": table})})


def _inner(config: ModelConfig) -> int:
    """The feed-forward width: glu has three matrices where mlp has two, so 8/3 costs the same; a multiple of 32."""
    if config.inner is not None:
        return config.inner
    if config.feedforward == "mlp":
        return 4 * config.hidden
    return -(-8 * config.hidden // 3 // 32) * 32
