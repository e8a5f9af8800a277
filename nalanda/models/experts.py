"""Parts of config.json that describe mixtures of experts (nn/moe.py), and the rows that most families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nalanda.models.family import ACTIVATION, ConfigProblem, Row, layer_count
from nalanda.models.shape import Shape
from nalanda.nn.spec import MoESpec

EXPERTS = (
    Row("model.layers.*.mlp.gate", "decoder.blocks.*.feedforward.router"),
    Row("model.layers.*.mlp.experts.#.{gate,up}_proj", "decoder.blocks.*.feedforward.experts.gate_up"),
    Row("model.layers.*.mlp.experts.#.down_proj", "decoder.blocks.*.feedforward.experts.output"),
)
SHARED = (
    Row("model.layers.*.mlp.shared_expert.{gate,up}_proj", "decoder.blocks.*.feedforward.shared.gate_up"),
    Row("model.layers.*.mlp.shared_expert.down_proj", "decoder.blocks.*.feedforward.shared.output"),
    Row("model.layers.*.mlp.shared_expert_gate", "decoder.blocks.*.feedforward.shared_gate"),
)
_SHARED = "shared_expert_intermediate_size"
_NORMALIZE = "norm_topk_prob"


@dataclass(frozen=True)
class Experts:
    """How many experts there are, how many a token goes through, and how wide each is.

    counts: the keys that say how many, all of them written, since readers differ; count, top_k: what is meant where
    they are absent. inner: key and default of an expert's width. normalize: whether the weights of the chosen sum to
    1; None: as norm_topk_prob says. shared: default width of the expert for every token; None: there is none.
    """

    counts: tuple[str, ...]
    count: int
    top_k: int
    inner: tuple[str, int]
    normalize: bool | None = None
    shared: int | None = None

    def names(self) -> tuple[str, ...]:
        """See family.Part."""
        own = () if self.normalize is not None else (_NORMALIZE,)
        shared = () if self.shared is None else (_SHARED,)
        return (*self.counts, "num_experts_per_tok", self.inner[0], *own, *shared)

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See family.Part."""
        found = {config[name] for name in self.counts if name in config}
        if len(found) > 1:
            raise ConfigProblem(f"{' and '.join(self.counts)} differ: {sorted(found)}")
        given = config.get(_NORMALIZE, False) if self.normalize is None else self.normalize
        return {
            "moe": MoESpec(
                experts=found.pop() if found else self.count,
                top_k=config.get("num_experts_per_tok", self.top_k),
                inner=config.get(*self.inner),
                activation=ACTIVATION.read(config.get("hidden_act", "silu")),
                normalize=given,
                shared=None if self.shared is None else config.get(_SHARED, self.shared),
                shared_gate=self.shared is not None,
            )
        }

    def write(self, shape: Shape) -> dict[str, Any]:
        """See family.Part."""
        if shape.moe is None:
            return {}
        written: dict[str, Any] = dict.fromkeys(self.counts, shape.moe.experts)
        written |= {"num_experts_per_tok": shape.moe.top_k, self.inner[0]: shape.moe.inner}
        if self.normalize is None:
            written[_NORMALIZE] = shape.moe.normalize
        if self.shared is not None:
            written[_SHARED] = shape.moe.shared
        return written


@dataclass(frozen=True)
class SparseLayers:
    """Which layers are mixtures: every `decoder_sparse_step`-th, `mlp_only_layers` apart. Written is the list."""

    layers: int

    def names(self) -> tuple[str, ...]:
        """See family.Part."""
        return ("mlp_only_layers", "decoder_sparse_step")

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See family.Part."""
        dense, step = set(config.get("mlp_only_layers") or ()), config.get("decoder_sparse_step", 1)
        count = layer_count(config, "num_hidden_layers", self.layers)
        sparse = tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(count))
        return {"sparse": () if all(sparse) else sparse}

    def write(self, shape: Shape) -> dict[str, Any]:
        """See family.Part."""
        sparse = shape.sparse or (shape.moe is not None,) * shape.layers
        return {
            "mlp_only_layers": [layer for layer, is_sparse in enumerate(sparse) if not is_sparse],
            "decoder_sparse_step": 1,
        }
