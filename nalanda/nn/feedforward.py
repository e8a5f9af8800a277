"""The position-wise network of a block.

feedforward = build_feedforward(FeedForwardSpec(kind="glu", inner=512, activation="silu"), hidden)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nalanda.nn.dropout import Dropout
from nalanda.nn.linear import Linear
from nalanda.nn.spec import FeedForwardSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "tanh": torch.tanh,
}


class MLP(nn.Module):
    """output(act(input(x)))."""

    def __init__(self, spec: FeedForwardSpec, hidden: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.activation]
        self.input = Linear(hidden, spec.inner, spec.bias)
        self.dropout = Dropout(spec.dropout)
        self.output = Linear(spec.inner, hidden, spec.bias, residual=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Places do not see one another here."""
        return self.output(self.dropout(self.activation(self.input(x_BTD))))


class GLU(nn.Module):
    """output(act(gate(x)) * up(x)) (Shazeer 2020). `gate_up` holds gate's rows, then up's: one product, not two."""

    def __init__(self, spec: FeedForwardSpec, hidden: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.activation]
        self.gate_up = Linear(hidden, 2 * spec.inner, spec.bias)
        self.fused_rows = {"gate_up.weight": (spec.inner, spec.inner)}
        self.dropout = Dropout(spec.dropout)
        self.output = Linear(spec.inner, hidden, spec.bias, residual=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Places do not see one another here."""
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.output(self.dropout(self.activation(gate_BTF) * up_BTF))


FEEDFORWARDS: dict[str, type[MLP] | type[GLU]] = {"mlp": MLP, "glu": GLU}


def build_feedforward(spec: FeedForwardSpec, hidden: int) -> nn.Module:
    """The network that `spec` describes, on a residual stream `hidden` wide."""
    return FEEDFORWARDS[spec.kind](spec, hidden)
