"""Mixture of experts: each place goes through the few feed-forward networks that its router chooses (Shazeer 2017).

    moe = MoE(MoESpec(experts=8, top_k=2, inner=512), hidden)
    y_BTD = moe(x_BTD)
    y_BTD = moe(x_BTD, routers=logits, choices=chosen)      # appends B x T x E logits and B x T x K experts

    x -> router -> K experts of each place, with weights
      -> rows sorted by expert -> one grouped product per matrix -> sorted back -> weighted sum (+ shared expert)

No place is ever dropped: an expert takes as many rows as choose it. Nothing here adds in an order that could differ
from run to run: rows are gathered, forwards and backwards, and never scattered onto one another.

Weights: `router.weight` E x D (and `router.balance_bias` E), `experts.gate_up.weight` E x 2F x D (gate's rows, then
up's; mlp: `experts.input.weight` E x F x D), `experts.output.weight` E x D x F, `shared.*` as a dense network's,
`shared_gate.weight` 1 x D.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nalanda.nn.dropout import Dropout
from nalanda.nn.feedforward import ACTIVATIONS, FEEDFORWARDS
from nalanda.nn.linear import ExpertLinear, Linear
from nalanda.nn.spec import FeedForwardSpec, MoESpec


class Router(Linear):
    """Which experts a place goes to, and with what weights. All of it is computed in fp32 (or fp64).

    `balance_bias` moves the choice, never the weights; training nudges it so that all experts get as much to do
    (auxiliary-loss-free balancing, Wang et al. 2024). It is not a parameter: it has no gradient.
    """

    balance_bias: Tensor | None

    def __init__(self, spec: MoESpec, hidden: int) -> None:
        super().__init__(hidden, spec.experts)
        self.kind, self.top_k, self.normalize, self.scale = (
            spec.router,
            spec.top_k,
            spec.normalize,
            spec.scale,
        )
        self.register_buffer("balance_bias", torch.zeros(spec.experts) if spec.balance_bias else None)

    def forward(self, x_ND: Tensor) -> Tensor:
        """N x E logits."""
        exact = _exact(x_ND)
        with torch.autocast(x_ND.device.type, enabled=False):
            return F.linear(x_ND.to(exact), self.weight.to(exact))

    def choose(self, logits_NE: Tensor) -> tuple[Tensor, Tensor]:
        """N x K: the chosen experts and the weights of what they say."""
        scores_NE = logits_NE.softmax(-1) if self.kind == "softmax" else logits_NE.sigmoid()
        ranked_NE = scores_NE.detach()
        if self.balance_bias is not None:
            ranked_NE = ranked_NE + self.balance_bias
        chosen_NK = ranked_NE.topk(self.top_k, dim=-1).indices
        weights_NK = scores_NE.gather(-1, chosen_NK)
        if self.normalize:  # sigmoids may all be about 0
            weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)
        return chosen_NK, weights_NK * self.scale


class Experts(nn.Module):
    """`spec.experts` feed-forward networks of one shape, their matrices stacked."""

    def __init__(self, spec: MoESpec, hidden: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.activation]
        self.gated = spec.expert == "glu"
        if self.gated:
            self.gate_up = ExpertLinear(spec.experts, hidden, 2 * spec.inner, spec.bias)
            self.fused_rows = {"gate_up.weight": (spec.inner, spec.inner)}
        else:
            self.input = ExpertLinear(spec.experts, hidden, spec.inner, spec.bias)
        self.dropout = Dropout(spec.dropout)
        self.output = ExpertLinear(spec.experts, spec.inner, hidden, spec.bias, residual=True)

    def forward(self, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        """R x D: the first `counts_E[0]` rows went through expert 0, the next through 1, and so on."""
        if self.gated:
            gate_RF, up_RF = self.gate_up(x_RD, counts_E).chunk(2, dim=-1)
            inner_RF = self.activation(gate_RF) * up_RF
        else:
            inner_RF = self.activation(self.input(x_RD, counts_E))
        return self.output(self.dropout(inner_RF), counts_E)


class _Dispatch(torch.autograd.Function):
    """R x D: each sorted row's place. Backwards a place gathers its K rows, in the order of its choices."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_R: Tensor, row_NK: Tensor) -> Tensor:
        ctx.save_for_backward(row_NK)
        return x_ND.index_select(0, order_R // row_NK.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
        (row_NK,) = ctx.saved_tensors
        grad_ND = grad_RD.new_zeros(row_NK.shape[0], grad_RD.shape[1], dtype=_exact(grad_RD))
        for row_N in row_NK.unbind(1):
            grad_ND += grad_RD.index_select(0, row_N)
        return grad_ND.to(grad_RD.dtype), None, None


class _Combine(torch.autograd.Function):
    """N x D: the weighted sum of each place's K rows, never holding more than one row of each place beside them."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, weights_NK: Tensor, order_R: Tensor, row_NK: Tensor) -> Tensor:
        ctx.save_for_backward(y_RD, weights_NK, order_R, row_NK)
        y_ND = weights_NK.new_zeros(row_NK.shape[0], y_RD.shape[1])
        for row_N, weight_N in zip(row_NK.unbind(1), weights_NK.unbind(1), strict=True):
            y_ND.addcmul_(y_RD.index_select(0, row_N).to(y_ND.dtype), weight_N.unsqueeze(1))
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_RD, weights_NK, order_R, row_NK = ctx.saved_tensors
        grad_RD = grad_ND.index_select(0, order_R // row_NK.shape[1])
        grad_RD.mul_(weights_NK.reshape(-1).index_select(0, order_R).unsqueeze(1))
        grad_NK = [(grad_ND * y_RD.index_select(0, row_N)).sum(1) for row_N in row_NK.unbind(1)]
        return grad_RD.to(y_RD.dtype), torch.stack(grad_NK, 1), None, None


def _exact(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class MoE(nn.Module):
    """The network that `spec` describes, on a residual stream `hidden` wide."""

    def __init__(self, spec: MoESpec, hidden: int) -> None:
        super().__init__()
        self.spec = spec
        self.router = Router(spec, hidden)
        self.experts = Experts(spec, hidden)
        self.shared: nn.Module | None = None
        self.shared_gate: Linear | None = None
        if spec.shared is not None:
            dense = FeedForwardSpec(
                kind=spec.expert,
                inner=spec.shared,
                activation=spec.activation,
                bias=spec.bias,
                dropout=spec.dropout,
            )
            self.shared = FEEDFORWARDS[spec.expert](dense, hidden)
            self.shared_gate = Linear(hidden, 1) if spec.shared_gate else None

    def forward(
        self, x_BTD: Tensor, routers: list[Tensor] | None = None, choices: list[Tensor] | None = None
    ) -> Tensor:
        """Places do not see one another here. `routers` gets B x T x E logits, `choices` B x T x K experts."""
        shape, (top_k, experts) = x_BTD.shape, (self.spec.top_k, self.spec.experts)
        x_ND = x_BTD.reshape(-1, shape[-1])
        logits_NE = self.router(x_ND)
        chosen_NK, weights_NK = self.router.choose(logits_NE)
        if routers is not None:
            routers.append(logits_NE.view(*shape[:-1], experts))
        if choices is not None:
            choices.append(chosen_NK.view(*shape[:-1], top_k))
        expert_R = chosen_NK.reshape(-1)
        order_R = expert_R.argsort(stable=True)
        row_NK = order_R.argsort().view_as(chosen_NK)
        y_RD = self.experts(
            _Dispatch.apply(x_ND, order_R, row_NK), torch.bincount(expert_R, minlength=experts)
        )
        y_ND = _Combine.apply(y_RD, weights_NK, order_R, row_NK)
        if self.shared is not None:
            shared_ND = self.shared(x_ND)
            if self.shared_gate is not None:
                shared_ND = shared_ND * self.shared_gate(x_ND).sigmoid()
            y_ND = y_ND + shared_ND
        return y_ND.to(x_BTD.dtype).view(shape)

    def idle_count(self) -> int:
        """How many of its numbers a place does not go through."""
        numbers = sum(weight.numel() for weight in self.experts.parameters())
        return numbers * (self.spec.experts - self.spec.top_k) // self.spec.experts
