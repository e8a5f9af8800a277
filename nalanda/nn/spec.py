"""The frozen description of a network: everything that `Transformer` and `Model` need to be built, as plain data.

    block = BlockSpec(attention=AttentionSpec(heads=4), feedforward=FeedForwardSpec(inner=768))
    spec = Spec(vocabulary=4096, hidden=192, decoder=(block,) * 3)            # a small GPT

An encoder has `encoder` blocks only, a decoder `decoder` blocks only, an encoder-decoder both, the decoder's with
`cross`. A layer may differ from the next. `Spec.to_dict()` is what a saved model's config.json holds; an option that
came later is left out of it while it is off, so that what was saved and hashed before stays what it was.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nalanda.config import Config, unset
from nalanda.nn.rotary import RotarySpec

Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu", "tanh"]
Probability = Annotated[float, Field(ge=0, lt=1)]
ZeroAtStart = Literal["residual", "head"]


class NormSpec(Config):
    """A normalization of the hidden axis. `bias` is LayerNorm's shift; RMSNorm has none."""

    kind: Literal["layer", "rms"] = "layer"
    eps: float = Field(default=1e-5, gt=0)
    bias: bool = True
    unit_offset: bool = Field(default=False, description="rms: multiply by 1 + weight (Gemma)")


class AttentionSpec(Config):
    """Multi-head attention. Whether it is causal is the stack's matter: encoders are not, decoders are."""

    heads: int = Field(gt=0)
    kv_heads: int | None = Field(
        default=None, gt=0, description="fewer than heads: grouped queries; None: heads"
    )
    head_dim: int | None = Field(default=None, gt=0, description="None: hidden / heads")
    bias: bool = Field(default=False, description="of the query, key and value projections")
    output_bias: bool | None = Field(default=None, description="None: as bias")
    window: int | None = Field(default=None, gt=0, description="sees places nearer than this; None: all")
    dropout: Probability = 0.0
    rotary: RotarySpec | None = Field(default=None, description="turn queries and keys by their positions")
    qk_norm: NormSpec | None = Field(default=None, description="normalize queries and keys")
    qk_norm_over: Literal["head", "all"] = Field(
        default="head", description="each head's dimensions, or those of all heads together (OLMo 2)"
    )
    softcap: float | None = Field(default=None, gt=0, description="scores become c tanh(score / c) (Gemma 2)")
    sinks: bool = Field(default=False, description="a learned score per head that takes weight to nowhere")
    scale: float | None = Field(
        default=None, gt=0, description="of the scores; None: 1/sqrt(head_dim); T5: 1"
    )
    value_table: int | None = Field(
        default=None,
        ge=0,
        exclude_if=unset,
        description="values are mixed with each token's row of this table; layers of one number share it",
    )

    @model_validator(mode="after")
    def _groups(self) -> AttentionSpec:
        if self.heads % self.groups:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.groups})")
        return self

    @property
    def groups(self) -> int:
        """How many key/value heads there are."""
        return self.kv_heads or self.heads

    def dim(self, hidden: int) -> int:
        """The dimension of one head in a network `hidden` wide."""
        return self.head_dim or hidden // self.heads


class FeedForwardSpec(Config):
    """The position-wise network: `mlp` is act(x W) W', `glu` is (act(x W) * x U) W' (Shazeer 2020)."""

    kind: Literal["mlp", "glu"] = "mlp"
    inner: int = Field(gt=0)
    activation: Activation = "gelu"
    bias: bool = False
    dropout: Probability = Field(default=0.0, description="of the inner activations")


class MoESpec(Config):
    """Mixture of experts: a router sends each place through `top_k` of the `experts` networks (nn/moe.py)."""

    kind: Literal["moe"] = "moe"
    experts: int = Field(gt=0)
    top_k: int = Field(default=2, gt=0)
    inner: int = Field(gt=0, description="of each expert")
    expert: Literal["mlp", "glu"] = Field(default="glu", description="what each is, as in FeedForwardSpec")
    activation: Activation = "silu"
    bias: bool = Field(default=False, description="of the experts; the router has none")
    dropout: Probability = Field(default=0.0, description="of the experts' inner activations")
    router: Literal["softmax", "sigmoid"] = Field(
        default="softmax", description="scores over all experts, or of each by itself (DeepSeek-V3)"
    )
    normalize: bool = Field(default=True, description="weights of the chosen sum to 1 (Mixtral); OLMoE: not")
    scale: float = Field(default=1.0, gt=0, description="of the chosen experts' weights")
    shared: int | None = Field(default=None, gt=0, description="inner width of an expert for every place")
    shared_gate: bool = Field(default=False, description="a sigmoid weighs the shared expert (Qwen2-MoE)")
    balance_bias: bool = Field(
        default=False,
        description="a bias per expert that moves the choice alone, set by the load in training",
    )

    @model_validator(mode="after")
    def _chosen_from_experts(self) -> MoESpec:
        if self.top_k > self.experts:
            raise ValueError(f"top_k ({self.top_k}) must not be more than experts ({self.experts})")
        if self.shared_gate and self.shared is None:
            raise ValueError("shared_gate needs a shared expert")
        return self


class PositionSpec(Config):
    """How a stack knows order, where its attentions do not turn by it (rotary).

    `max_length` bounds positions where there is a table (learned, sinusoidal).
    """

    kind: Literal["none", "learned", "sinusoidal", "relative"] = "none"
    max_length: int = Field(default=1024, gt=0)
    offset: int = Field(default=0, ge=0, description="rows of the table before that of place 0 (BART: 2)")
    theta: float = Field(default=10_000.0, gt=0, description="sinusoidal: base of the wavelengths")
    layout: Literal["paper", "tensor2tensor"] = Field(
        default="paper", description="sinusoidal: see position.sinusoids"
    )
    buckets: int = Field(default=32, ge=4, description="relative: number of distance buckets")
    max_distance: int = Field(default=128, gt=1, description="relative: farther distances share a bucket")

    @property
    def limit(self) -> int | None:
        """How many positions there are, or None where any position will do."""
        return self.max_length if self.kind in ("learned", "sinusoidal") else None


class BlockSpec(Config):
    """One layer: self-attention, cross-attention in an encoder-decoder's decoder, feed-forward."""

    attention: AttentionSpec
    cross: AttentionSpec | None = None
    feedforward: FeedForwardSpec | MoESpec = Field(discriminator="kind")
    norm: NormSpec = NormSpec()
    norm_place: Literal["pre", "post", "sandwich", "output"] = Field(
        default="pre", description="see nn/block.py"
    )
    attention_norm: bool = Field(default=True, description="False: self-attention reads the stream as it is")
    dropout: Probability = Field(default=0.0, description="of each sub-layer's output, before it is added")
    first_mix: bool = Field(
        default=False,
        exclude_if=unset,
        description="reads a learned mix of the stream and of what the stack began with",
    )


class Spec(Config):
    """A whole network without its heads."""

    vocabulary: int = Field(gt=0)
    hidden: int = Field(gt=0)
    encoder: tuple[BlockSpec, ...] = ()
    decoder: tuple[BlockSpec, ...] = ()
    encoder_position: PositionSpec = PositionSpec()
    decoder_position: PositionSpec = PositionSpec()
    tie_embeddings: bool = Field(default=True, description="the token head uses the embedding matrix")
    scale_embeddings: bool = Field(default=False, description="multiply embeddings by sqrt(hidden)")
    token_types: int = Field(default=0, ge=0, description="BERT's sentence A/B embeddings")
    embedding_norm: NormSpec | None = None
    embedding_dropout: Probability = 0.0
    final_norm: bool = Field(default=True, description="normalize a stack's output, as its last block does")
    bigrams: int | None = Field(
        default=None,
        gt=0,
        exclude_if=unset,
        description="rows of a hashed table of pairs, the token before and this one, added to embeddings",
    )
    bigram_width: int | None = Field(
        default=None,
        gt=0,
        exclude_if=unset,
        description="of that table's rows, which a matrix then brings to `hidden`; None: hidden",
    )
    previous_mix: bool = Field(
        default=False,
        exclude_if=unset,
        description="embeddings take in that of the token before, each channel by a learned share",
    )
    init: Literal["normal", "scaled", "mup"] = Field(default="normal", description="see nn/initialize.py")
    init_std: float = Field(default=0.02, gt=0)
    init_zero: tuple[ZeroAtStart, ...] = Field(
        default=(), exclude_if=unset, description="matrices that start at 0: see nn/initialize.py"
    )

    @model_validator(mode="after")
    def _fits(self) -> Spec:
        if not self.encoder and not self.decoder:
            raise ValueError("a network needs at least one encoder or decoder block")
        for name, blocks, position in self.stacks():
            for index, block in enumerate(blocks):
                _check_block(f"{name}[{index}]", block, self.hidden)
            if position.kind == "relative" and len({block.attention.heads for block in blocks}) > 1:
                raise ValueError(
                    f"{name}: its blocks share the relative bias, so they need one number of heads"
                )
        if any(block.cross for block in self.encoder):
            raise ValueError("encoder blocks have no cross-attention")
        if any((block.cross is None) is bool(self.encoder) for block in self.decoder):
            raise ValueError("decoder blocks have cross-attention exactly where there is an encoder")
        if "head" in self.init_zero and self.tie_embeddings:
            raise ValueError("init_zero: a tied head is the embeddings, which cannot start at 0; untie it")
        if self.bigram_width is not None and self.bigrams is None:
            raise ValueError("bigram_width is for a table of bigrams; say how many rows it has")
        return self

    def stacks(self) -> list[tuple[str, tuple[BlockSpec, ...], PositionSpec]]:
        """Name, blocks and positions of each stack that has blocks."""
        both = [
            ("encoder", self.encoder, self.encoder_position),
            ("decoder", self.decoder, self.decoder_position),
        ]
        return [stack for stack in both if stack[1]]


def _check_block(place: str, block: BlockSpec, hidden: int) -> None:
    for name, attention in (("attention", block.attention), ("cross", block.cross)):
        if attention is None:
            continue
        if attention.head_dim is None and hidden % attention.heads:
            raise ValueError(
                f"{place}.{name}: hidden ({hidden}) must be a multiple of heads ({attention.heads})"
            )
        if attention.rotary and attention.dim(hidden) % 2:
            raise ValueError(f"{place}.{name}: rotary needs an even head_dim, not {attention.dim(hidden)}")
    if block.cross is not None and block.cross.window is not None:
        raise ValueError(f"{place}.cross: cross-attention has no window")
    if block.cross is not None and block.cross.value_table is not None:
        raise ValueError(f"{place}.cross: values come from the source; only self-attention has a value_table")
    if not block.attention_norm and block.norm_place != "pre":
        raise ValueError(f"{place}: only a block with norm_place 'pre' can go without its attention norm")


class TokensHeadSpec(Config):
    """Logits over the vocabulary. `transform` is BERT's dense layer, activation and norm before them."""

    kind: Literal["tokens"] = "tokens"
    bias: bool = False
    transform: bool = False
    transform_bias: bool = True
    activation: Activation = "gelu"
    norm: NormSpec = NormSpec()
    scale: float = Field(default=1.0, gt=0, description="of the hidden states; T5 tied: hidden ** -0.5")
    softcap: float | None = Field(default=None, gt=0, description="logits become c tanh(logit / c) (Gemma 2)")


class SequenceHeadSpec(Config):
    """Logits over classes from one vector for each row: its first real place, its last, or their mean.

    One class is a regression's value or a reward.
    """

    kind: Literal["sequence"] = "sequence"
    classes: int = Field(gt=0)
    place: Literal["first", "last", "mean"] = "first"
    pooler: bool = Field(default=True, description="a dense layer and tanh before the classes (BERT)")
    pooler_bias: bool = True
    pooler_activation: Activation = "tanh"
    pooler_norm: NormSpec | None = Field(
        default=None, description="after the pooler's activation (ModernBERT)"
    )
    bias: bool = True
    dropout: Probability = 0.0


class PlacesHeadSpec(Config):
    """Logits over classes at every place: entities, parts of speech; with one class a value (PPO's critic)."""

    kind: Literal["places"] = "places"
    classes: int = Field(gt=0)
    transform: bool = Field(
        default=False, description="a dense layer, activation and norm before (ModernBERT)"
    )
    transform_bias: bool = True
    activation: Activation = "gelu"
    norm: NormSpec = NormSpec()
    bias: bool = True
    dropout: Probability = 0.0


class SpanHeadSpec(PlacesHeadSpec):
    """Start and end logits at every place: extractive question answering."""

    kind: Literal["span"] = "span"  # type: ignore[assignment]
    classes: Literal[2] = 2


class EmbeddingHeadSpec(Config):
    """One vector for each row: sentence embeddings. Without `pooler` it has no weights of its own."""

    kind: Literal["embedding"] = "embedding"
    place: Literal["first", "last", "mean"] = "mean"
    pooler: bool = Field(default=False, description="a dense layer and tanh after pooling (BERT's pooler)")
    normalize: bool = Field(default=True, description="to length 1, so that a dot product is the cosine")


HeadSpec = Annotated[
    TokensHeadSpec | SequenceHeadSpec | PlacesHeadSpec | SpanHeadSpec | EmbeddingHeadSpec,
    Field(discriminator="kind"),
]
