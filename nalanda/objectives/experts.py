"""Balance among a mixture's experts, around any objective: one forward pass, the routers' logits captured on the way.

    objective = ExpertsConfig[TokensConfig](objective=TokensConfig(), load_balance=0.01, z_loss=0.001)

load_balance   per layer E sum_e f_e P_e (Fedus et al. 2021): f_e the share of tokens that chose expert e, P_e its
               mean score; K where both are even. The mean over a stack's layers. f has no gradient and is counted in
               what went through the model at once (`scope: micro`: a micro-batch, or a lane's rows of it), so this
               term does not add over micro-batches; their values are averaged by tokens.
router_z       logsumexp(logits)^2 (Zoph et al. 2022), summed over tokens and exact whatever the split.

Padding counts nowhere. Tallies, named after the routers, say how often each expert was chosen (train/hooks_moe.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor

from nalanda.base.errors import DataError, RunError
from nalanda.config import Config
from nalanda.data.batch import Batch
from nalanda.nn.spec import MoESpec
from nalanda.objectives.loss import HeadedModel, Loss, Objective

Inner = TypeVar("Inner", bound=Config)


class ExpertsConfig(Config, Generic[Inner]):
    """Terms of `objective`, and `load_balance` and `router_z` (0 leaves one out), each a mean over the tokens read.

    Metrics, means over layers: `load_balance`, `router_z`, `expert_load_max` (the busiest expert's load over the mean
    load), `expert_load_entropy` and `router_entropy` (of the loads and of a token's scores; 1 where they are even).
    """

    kind: Literal["experts"] = "experts"
    objective: Inner
    load_balance: float = Field(default=0.01, ge=0)
    z_loss: float = Field(default=0.001, ge=0)
    bias_rate: float = Field(
        default=0.0,
        ge=0,
        description="a step moves each expert's balance_bias by this, towards even loads (0.001: DeepSeek-V3)",
    )
    scope: Literal["micro"] = "micro"
    per_layer: bool = Field(default=False, description="the metrics of each layer as well")

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """One name in schemas, whatever is inside."""
        return cls.__name__

    def weights(self, batch: Batch) -> dict[str, float]:
        """The inner objective's counts, and the tokens that are read."""
        both = [batch["segments"]] + ([batch["source_segments"]] if "source_segments" in batch else [])
        tokens = float(sum(int((segments != 0).sum()) for segments in both))
        coefficients = {"load_balance": self.load_balance, "router_z": self.z_loss}
        own = {name: tokens for name, coefficient in coefficients.items() if coefficient}
        return {**cast(Objective, self.objective).weights(batch), **own}

    def __call__(self, model: HeadedModel, batch: Batch, totals: dict[str, float]) -> Loss:
        """All terms' sums, from the inner objective's own passes. Raises DataError where that trains nothing."""
        objective = cast(Objective, self.objective)
        if torch.is_grad_enabled() and not any(totals[name] for name in objective.weights(batch)):
            raise DataError("no token of this step is trained by the inner objective; check the data's masks")
        watched = _Watched(model)
        inner = objective(watched, batch, totals)
        found = watched.routes
        if not found:
            raise RunError("objective: kind 'experts' needs a model with mixtures of experts, see `moe`")
        terms, metrics = dict(inner.terms), dict(inner.metrics)
        layers = Counter(routed.stack for routed in found)
        if self.load_balance:
            each = [routed.balance() * routed.tokens / layers[routed.stack] for routed in found]
            terms["load_balance"] = self.load_balance * torch.stack(each).sum()
        if self.z_loss:
            each = [routed.z_sum() / layers[routed.stack] for routed in found]
            terms["router_z"] = self.z_loss * torch.stack(each).sum()
        tallies = dict(inner.tallies)
        for routed in found:
            for name, (top, bottom) in routed.metrics().items():
                for key in (name, f"{name}/{routed.layer}")[: 1 + self.per_layer]:
                    before = metrics.get(key, (0.0, 0.0))
                    metrics[key] = (before[0] + top, before[1] + bottom)
            key = f"transformer.{routed.layer}.feedforward.router"
            tallies[key] = tallies.get(key, 0) + routed.counts_E
        return Loss(terms, metrics, tallies)


class _Watched:
    """A model whose calls also capture routing; everything else is the model's own."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.routes: list[_Routed] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, batch: Batch, capture: Collection[str] = (), **more: Any) -> Any:
        output = self.model(batch, capture=(*capture, "router", "experts"), **more)
        stacks = self.model.spec.stacks()
        for stack, blocks, _ in stacks:
            source = stack == "encoder" and len(stacks) == 2
            segments = batch.get("source_segments") if source else batch.get("segments")
            sparse = [(i, b.feedforward) for i, b in enumerate(blocks) if isinstance(b.feedforward, MoESpec)]
            routers = output.captured.get(f"{stack}.router", [])
            choices = output.captured.get(f"{stack}.experts", [])
            for (index, spec), logits, chosen in zip(sparse, routers, choices):
                self.routes.append(_Routed.of(stack, index, spec, logits, chosen, segments))
        return output


@dataclass(frozen=True)
class _Routed:
    """One pass through one layer's router: N places, of which `tokens` are no padding."""

    stack: str
    layer: str
    spec: MoESpec
    logits_NE: Tensor
    scores_NE: Tensor  # sum to 1
    real_N1: Tensor
    tokens: Tensor
    counts_E: Tensor

    @classmethod
    def of(
        cls, stack: str, index: int, spec: MoESpec, logits: Tensor, chosen: Tensor, segments: Tensor | None
    ) -> _Routed:
        logits_NE, chosen_NK = logits.reshape(-1, spec.experts), chosen.reshape(-1, spec.top_k)
        real_N1 = torch.ones_like(chosen_NK[:, :1], dtype=torch.bool)
        if segments is not None:
            real_N1 = (segments != 0).reshape(-1, 1)
        scores_NE = logits_NE.softmax(-1)
        if spec.router == "sigmoid":
            scores_NE = logits_NE.sigmoid()
            scores_NE = scores_NE / (scores_NE.sum(-1, keepdim=True) + 1e-20)
        places = torch.where(real_N1, chosen_NK, spec.experts).reshape(-1)
        counts_E = torch.bincount(places, minlength=spec.experts + 1)[: spec.experts]
        layer = f"{stack}.blocks.{index}"
        return cls(stack, layer, spec, logits_NE, scores_NE, real_N1, real_N1.sum(), counts_E)

    def balance(self) -> Tensor:
        """E sum_e f_e P_e, K at its smallest where the scores follow the loads."""
        tokens = self.tokens.clamp(min=1)
        mean_E = (self.scores_NE * self.real_N1).sum(0) / tokens
        return self.spec.experts * (self.counts_E / tokens * mean_E).sum()

    def z_sum(self) -> Tensor:
        """The summed squares of the log-normalizers."""
        return (self.logits_NE.logsumexp(-1, keepdim=True).square() * self.real_N1).sum()

    @torch.no_grad()
    def metrics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums and counts."""
        tokens, largest = self.tokens, math.log(self.spec.experts) or 1.0
        share_E = self.counts_E / (tokens.clamp(min=1) * self.spec.top_k)
        entropy = torch.special.entr(self.scores_NE).sum(-1, keepdim=True)
        return {
            "load_balance": (self.balance() * tokens, tokens),
            "router_z": (self.z_sum(), tokens),
            "expert_load_max": (share_E.max() * self.spec.experts * tokens, tokens),
            "expert_load_entropy": (torch.special.entr(share_E).sum() / largest * tokens, tokens),
            "router_entropy": ((entropy * self.real_N1).sum() / largest, tokens),
        }
