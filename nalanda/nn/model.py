"""A transformer with its heads: what is trained, saved and served.

model = Model(spec, {"tokens": TokensHeadSpec()})
output = model(batch)                               # a Batch: ids, segments, positions, source_ids ...
logits = model.logits(output.hidden_BTD[trained])   # only the places that are needed
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from nalanda.nn.cache import Cache
from nalanda.nn.heads import build_head
from nalanda.nn.moe import MoE
from nalanda.nn.spec import BlockSpec, FeedForwardSpec, HeadSpec, MoESpec, Spec
from nalanda.nn.transformer import Output, Transformer

# Batch keys and the arguments of Transformer.forward that they are.
_ARGUMENTS = {
    "ids": "ids_BT",
    "segments": "segments_BT",
    "positions": "positions_BT",
    "token_types": "token_types_BT",
    "prefix": "prefix_BT",
    "source_ids": "source_ids_BS",
    "source_segments": "source_segments_BS",
    "source_positions": "source_positions_BS",
}


class Model(nn.Module):
    """`transformer` and `heads`; the head over the vocabulary is called "tokens"."""

    def __init__(self, spec: Spec, heads: Mapping[str, HeadSpec]) -> None:
        super().__init__()
        self.spec = spec
        self.head_specs = dict(heads)
        self.origin: dict[str, Any] = {}
        """config.json's values of the checkpoint that the model was read from: what else it says is saved again."""
        self.generation: dict[str, Any] = {}
        """generation_config.json's values: how the model's makers decode with it."""
        self.transformer = Transformer(spec)
        self.heads = nn.ModuleDict(
            {name: build_head(head, spec, self.transformer.tokens) for name, head in self.head_specs.items()}
        )

    def forward(
        self, batch: Mapping[str, Tensor], *, cache: Cache | None = None, capture: Collection[str] = ()
    ) -> Output:
        """Hidden states of the batch's stream; keys that are not inputs (targets, labels) are not looked at."""
        arguments = {name: batch[key] for key, name in _ARGUMENTS.items() if key in batch}
        return self.transformer(**arguments, cache=cache, capture=capture)

    def logits(self, hidden: Tensor, head: str = "tokens", segments_BT: Tensor | None = None) -> Tensor:
        """What `head` reads from hidden states. "tokens": ... x V from ... x D; a sequence head: B x C from
        B x T x D, and with `segments_BT` it leaves padding out. Raises KeyError for an unknown head."""
        module = self.heads[head]
        return module(hidden) if segments_BT is None else module(hidden, segments_BT)

    def tied(self) -> dict[str, str]:
        """Names of weights that are another weight: name -> the name it is stored under."""
        first: dict[int, str] = {}
        names = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if first.setdefault(id(parameter), name) != name:
                names[name] = first[id(parameter)]
        return names

    def parameter_count(self, embeddings: bool = True, active: bool = False) -> int:
        """How many numbers are trained, tied ones once; without `embeddings`, the token matrix is left out; `active`
        counts of a mixture's experts only the `top_k` that a token goes through."""
        total = sum(parameter.numel() for parameter in self.parameters())
        if active:
            total -= sum(module.idle_count() for module in self.modules() if isinstance(module, MoE))
        return total if embeddings else total - self.transformer.tokens.weight.numel()

    def flops_per_token(self, length: int, source_length: int = 0) -> float:
        """FLOPs of a training step (forward and twice that backward) per token of a row.

        A row has `length` stream tokens and `source_length` source tokens, and the FLOPs are divided by their sum.
        Counted: products with weights (a multiply and an add each), the attention's two products, and the token head
        at every stream place; causal attention counts half of its square, a mixture its router and `top_k` experts.
        """
        spec = self.spec
        stream = spec.decoder or spec.encoder
        total = sum(
            _block_flops(block, spec.hidden, length, source_length, bool(spec.decoder)) for block in stream
        )
        if self.transformer.both:
            total += sum(_block_flops(block, spec.hidden, source_length, 0, False) for block in spec.encoder)
        if "tokens" in self.heads:
            total += 2.0 * length * spec.hidden * spec.vocabulary
        return 3.0 * total / max(length + source_length, 1)


def _block_flops(block: BlockSpec, hidden: int, length: int, source: int, causal: bool) -> float:
    own, cross = block.attention, block.cross
    seen = min(length, own.window or length) * (0.5 if causal else 1.0)
    width = own.heads * own.dim(hidden)
    total = 2.0 * length * hidden * (2 * width + 2 * own.groups * own.dim(hidden))
    total += 2.0 * length * _feedforward_numbers(block.feedforward, hidden) + 4.0 * length * seen * width
    if cross is not None:
        width = cross.heads * cross.dim(hidden)
        total += 4.0 * length * hidden * width + 4.0 * source * hidden * cross.groups * cross.dim(hidden)
        total += 4.0 * length * source * width
    return total


def _feedforward_numbers(spec: FeedForwardSpec | MoESpec, hidden: int) -> int:
    """Entries of the matrices that a token goes through."""
    matrices = {"mlp": 2, "glu": 3}
    if isinstance(spec, FeedForwardSpec):
        return hidden * spec.inner * matrices[spec.kind]
    inner = spec.top_k * spec.inner + (spec.shared or 0)
    return hidden * (inner * matrices[spec.expert] + spec.experts + spec.shared_gate)
