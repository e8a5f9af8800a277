"""How much memory a training step needs, part by part, by arithmetic alone: no weight is made.

    sizes = Sizes.of(build_empty(spec, heads))
    memory = step_memory(spec, sizes, Rows(8, 1024), MODES["bf16"], optimizer, device="cuda", chunk=512, block=512)
    memory.parts["activations"], memory.peak, memory.at           # bytes, bytes, "forward"

    weights, masters, optimizer, average       always there
    forward    + what the backward pass needs: activations, attention scores, casts of weights, the token head
    backward   + gradients
    update     + gradients, and what the optimizer works with

A part is one small function of bytes per number (`Mode`) and numbers per place: a new mode of precision is one line
of MODES, a new kind of layer one line of the function that counts what it keeps. Counted is what autograd keeps of
the layers in nn/ run uncompiled, which tests compare with torch's own count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nalanda.nn.attend import strip_bounds
from nalanda.nn.mask import FLEX_FROM, MANUAL_UP_TO, ORDERED_UP_TO
from nalanda.nn.model import Model
from nalanda.nn.spec import AttentionSpec, BlockSpec, FeedForwardSpec, MoESpec, Spec
from nalanda.train.optimizer import AdamWConfig, MuonConfig, fused_rows, roles


@dataclass(frozen=True)
class Mode:
    """Bytes of a number. stream: of the residual stream; compute: of products' factors and results; copies: of
    weights cast for products, kept until the backward pass."""

    weights: int
    gradients: int
    stream: int
    compute: int
    masters: int = 0
    copies: int = 0


MODES: dict[str, Mode] = {
    "fp32": Mode(weights=4, gradients=4, stream=4, compute=4),
    "bf16": Mode(weights=4, gradients=4, stream=4, compute=2, copies=2),
}
"""By what `precision` is resolved to."""


@dataclass(frozen=True)
class Rows:
    """A micro-batch: `count` rows of `length` stream places and `source` places; `trained`: share of stream places
    with a target. Numbers may be means."""

    count: float
    length: float
    source: float = 0.0
    trained: float = 1.0

    @property
    def places(self) -> float:
        """Places of both streams."""
        return self.count * (self.length + self.source)


@dataclass(frozen=True)
class Split:
    """How one rank's share is cut: sizes of the parallel axes; `shard` over so many ranks; what is recomputed."""

    tensor: int = 1
    context: int = 1
    expert: int = 1
    shard: int = 1
    checkpointing: str = "none"


WHOLE = Split()


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights: all, those a token goes through, of the token embeddings, of matrices (Muon's), of all
    experts; `stack`: of the largest stack of equal matrices that Muon works on; `newton`: FLOPs of a Newton-Schulz
    step over all matrices."""

    total: int
    active: int
    embedding: int
    matrix: int
    experts: int
    stack: int
    newton: float

    @classmethod
    def of(cls, model: Model) -> Sizes:
        """Counted on a model, which may be without memory."""
        kinds, fused = roles(model), fused_rows(model)
        stacks: dict[tuple[int, int], int] = {}
        matrix = experts = 0
        newton = 0.0
        for name, weight in model.named_parameters():
            experts += weight.numel() if ".experts." in name else 0
            if kinds.get(name) != "matrix":
                continue
            matrix += weight.numel()
            count = weight.shape[0] if weight.ndim == 3 else 1
            for rows in fused.get(name, (weight.shape[-2],)):
                short, long = sorted((rows, weight.shape[-1]))
                stacks[short, long] = stacks.get((short, long), 0) + count * short * long
                newton += count * (4.0 * short * short * long + 2.0 * short**3)
        return cls(
            total=model.parameter_count(),
            active=model.parameter_count(active=True),
            embedding=model.transformer.tokens.weight.numel(),
            matrix=matrix,
            experts=experts,
            stack=max(stacks.values(), default=0),
            newton=newton,
        )

    def held(self, split: Split) -> float:
        """The numbers of one rank, before they are sharded."""
        return (self.total - self.experts) / split.tensor + self.experts / split.expert


@dataclass(frozen=True)
class Memory:
    """Bytes by part, the peak and when it is reached. Not all parts are there at once: their sum is more."""

    parts: Mapping[str, float]
    peak: float
    at: str


@dataclass(frozen=True)
class Kept:
    """Bytes per row that autograd keeps of a layer: all, products' results alone, the layer's input alone; `scores`
    beside all of them where attention is not fused."""

    all: float = 0.0
    products: float = 0.0
    input: float = 0.0
    scores: float = 0.0

    def __add__(self, other: Kept) -> Kept:
        return Kept(
            self.all + other.all,
            self.products + other.products,
            self.input + other.input,
            self.scores + other.scores,
        )


def keeps_scores(
    attention: AttentionSpec, length: float, mode: Mode, device: str, relative: bool, causal: bool = False
) -> bool:
    """Whether attention is worked out by hand, with all scores in memory, as nn/mask.py chooses."""
    if attention.softcap is not None or attention.sinks:
        return device == "cpu" or length < FLEX_FROM
    if device != "cpu":
        return False
    if causal and attention.window is not None and 2 * attention.window <= length:
        return True
    few = ORDERED_UP_TO if causal else MANUAL_UP_TO
    return attention.dropout > 0 or relative or (mode.compute == 2 and length <= few)


def _attention(
    spec: AttentionSpec,
    hidden: int,
    length: float,
    seen: float,
    mode: Mode,
    device: str,
    cross: bool,
    by_hand: bool,
    context: int,
    again: float = 0.0,
) -> Kept:
    """A row's projections, heads and output. `seen`: places looked at; `context` ranks hold all keys and values.
    `again`: how often a place's key and value are copied beyond the first time, because strips of queries overlap."""
    width, key_value = spec.heads * spec.dim(hidden), spec.groups * spec.dim(hidden)
    c, other = mode.compute, seen if cross else length
    projected = (length * width + other * 2 * key_value) * c
    turned = (length * width + other * key_value) * c
    result = length * width * c
    kept, scores = projected + result, 0.0
    if context > 1:
        kept += length * context * 2 * key_value * c
    kept += again * length * 2 * key_value * c
    if by_hand:  # products take contiguous copies of queries, keys and values: what these were views of goes
        of_dropout = (2 * c if c == 4 or seen <= MANUAL_UP_TO else 10) if spec.dropout else 0
        scores = spec.heads * length * seen * (c + of_dropout + (4 if spec.softcap else 0))
    else:
        kept += length * 4 * spec.heads
        if spec.rotary is not None or (spec.qk_norm is not None and not cross):
            kept += turned
    if spec.qk_norm is not None and c < 4:
        kept += turned / c * 4
    products = projected + result + length * hidden * c
    if by_hand:
        products += spec.heads * length * seen * c
    return Kept(kept, products, 0.0, scores)


def _feedforward(spec: FeedForwardSpec | MoESpec, hidden: int, length: float, mode: Mode) -> Kept:
    """A row's inner features."""
    c = mode.compute
    gated = (spec.kind if isinstance(spec, FeedForwardSpec) else spec.expert) == "glu"
    # The gate's result and `up`, act(gate) and the product; without a gate, what goes into the activation and out.
    each = 4 if gated else (1 if spec.activation in ("relu", "tanh") else 2)
    if isinstance(spec, FeedForwardSpec):
        inner = length * spec.inner * c
        return Kept(inner * (each + (2 if spec.dropout else 0)), inner * (2 if gated else 1))
    rows = length * spec.top_k
    inner = (rows * spec.inner + length * (spec.shared or 0)) * c
    routed = length * (hidden * 4 + spec.experts * 16) + rows * (2 * hidden * c + 24)
    return Kept(inner * each + routed, inner * (2 if gated else 1) + rows * hidden * c)


def block_kept(
    block: BlockSpec,
    hidden: int,
    rows: Rows,
    mode: Mode,
    *,
    device: str,
    relative: bool = False,
    split: Split = WHOLE,
    causal: bool = False,
) -> Kept:
    """What one row keeps of a layer. `rows`: the stream's places in `length`, and the source's where there is
    cross-attention."""
    length, source = rows.length / split.context, rows.source
    stream, c = mode.stream, mode.compute
    read = length * hidden * (stream + c)  # a norm's input, and its output as products take it
    if block.norm_place == "sandwich":
        read += length * hidden * 4
    if block.dropout:
        read += length * hidden * (c if device == "cpu" else 1)
    seen = min(rows.length, block.attention.window or rows.length)
    by_hand, again = keeps_scores(block.attention, rows.length, mode, device, relative, causal), 0.0
    if by_hand:
        seen = rows.length
        if causal and split.context == 1:
            strips = strip_bounds(round(rows.length), block.attention.window)
            seen = sum((last - first) * (last - low) for first, last, low in strips) / rows.length
            again = sum(last - low for _, last, low in strips) / rows.length - 1
    own = _attention(
        block.attention, hidden, length, seen, mode, device, False, by_hand, split.context, again
    )
    t = split.tensor
    inner = own
    network = _feedforward(block.feedforward, hidden, length, mode)
    if isinstance(block.feedforward, FeedForwardSpec):  # tensor ranks do not share a mixture out
        inner, network = inner + network, Kept()
    parts = 2
    if block.cross is not None:
        by_hand = keeps_scores(block.cross, source, mode, device, False)
        inner += _attention(block.cross, hidden, length, source, mode, device, True, by_hand, 1)
        inner += Kept(all=source * hidden * c if c < stream else 0.0)  # the memory, cast once a layer
        parts = 3
    if block.first_mix:
        inner += Kept(all=length * hidden * stream)
    return Kept(
        all=inner.all / t + network.all + parts * read,
        products=inner.products / t + network.products + parts * length * hidden * (stream + c),
        input=length * hidden * stream,
        scores=inner.scores / t,
    )


def activations(spec: Spec, rows: Rows, mode: Mode, device: str, split: Split = WHOLE) -> tuple[float, float]:
    """Bytes that a micro-batch keeps for the backward pass: all but attention scores, and attention scores."""
    kept = scores = largest = shared = 0.0
    for name, blocks, position in spec.stacks():
        length = rows.source if name == "encoder" and spec.decoder else rows.length
        own = Rows(rows.count, length, rows.source if name == "decoder" and spec.encoder else 0)
        for block in blocks:
            layer = block_kept(
                block,
                spec.hidden,
                own,
                mode,
                device=device,
                relative=position.kind == "relative",
                split=split,
                causal=name == "decoder",
            )
            if split.checkpointing == "none":
                kept, scores = kept + layer.all, scores + layer.scores
            else:
                kept += layer.input if split.checkpointing == "full" else layer.products
                largest = max(largest, layer.all + layer.scores)
        kept += 2 * length / split.context * spec.hidden * mode.stream  # into the last norm and out of it
        if position.kind == "relative":  # a distance's row in the table of biases, for each pair of places
            shared += 8 * length * length / split.context
    return rows.count * (kept + largest) + shared, rows.count * scores


def _optimizer(config: AdamWConfig | MuonConfig, sizes: Sizes, held: float) -> tuple[float, float]:
    """Bytes of the optimizer's state and of what an update works with, for `held` numbers."""
    if isinstance(config, AdamWConfig):
        return 8.0 * held, 0.0
    share = held / sizes.total
    matrix = sizes.matrix * share
    # Momentum alone for matrices; an update looks ahead in a copy and works on one stack in about four more.
    return 8.0 * (held - matrix) + 4.0 * matrix, 4.0 * matrix + 16.0 * sizes.stack * share


def step_memory(
    spec: Spec,
    sizes: Sizes,
    rows: Rows,
    mode: Mode,
    optimizer: AdamWConfig | MuonConfig,
    *,
    device: str,
    chunk: int,
    block: int,
    micro_batches: int = 1,
    average: bool = False,
    lanes: int = 1,
    split: Split = WHOLE,
) -> Memory:
    """The memory of one rank. `rows`: of one micro-batch; `lanes`: train/lanes.py; `chunk`, `block`: rows of
    logits and of their gradients that are held."""
    held = sizes.held(split)
    kept = held / split.shard
    state, work = _optimizer(optimizer, sizes, kept)
    act, scores = activations(spec, rows, mode, device, split)
    # Tensor ranks share the trained places of the loss and gather the head's matrix for it.
    matrix = spec.vocabulary * spec.hidden
    trained = rows.count * rows.length * rows.trained / split.context / split.tensor
    # A chunk's logits, a block's gradients of them, and the matrix's gradient of a block before it is added.
    logits = (4 * min(trained, chunk) + mode.compute * min(trained, block)) * spec.vocabulary
    logits += mode.compute * matrix
    casts = sizes.held(split) * mode.copies
    parts = {
        "weights": kept * mode.weights,
        "masters": kept * mode.masters,
        "gradients": kept * mode.gradients * (1 if lanes == 1 else lanes + 1),
        "optimizer": state,
        "average": 4.0 * kept if average else 0.0,
        "activations": act,
        "attention scores": scores,
        "cross-entropy": 4 * matrix + trained * spec.hidden * mode.stream + max(4 * matrix, logits),
        "casts of weights": casts
        if split.shard == 1
        else casts / max(1, len(spec.encoder) + len(spec.decoder)) * 2,
        "optimizer's work": work,
    }
    always = sum(parts[name] for name in ("weights", "masters", "optimizer", "average"))
    forward = sum(
        parts[name] for name in ("activations", "attention scores", "cross-entropy", "casts of weights")
    )
    phases = {
        "forward": forward + (parts["gradients"] if micro_batches > 1 else 0.0),
        "backward": parts["gradients"] + 4 * matrix,
        "update": parts["gradients"] + work,
    }
    at = max(phases, key=lambda name: phases[name])
    return Memory(parts, always + phases[at], at)
