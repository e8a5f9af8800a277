"""The one place where matrices are made: a faster kernel, a quantized or an adapted layer has one door to come in by.

Linear(192, 768, bias=True)
Linear(768, 192, bias=True, residual=True)     # ends a residual branch: starts smaller, see initialize.py
ExpertLinear(8, 192, 768)                      # eight in one tensor; rows sorted by expert go through their own
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """x W^T + b. `residual` says that its output is added to the residual stream."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False, residual: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.residual = residual

    def reset_parameters(self) -> None:
        """Nothing: initialize.py draws every weight, once."""


class ExpertLinear(nn.Module):
    """`experts` matrices in one tensor E x outputs x inputs; each row of the input goes through one of them."""

    def __init__(
        self, experts: int, inputs: int, outputs: int, bias: bool = False, residual: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.residual = inputs, outputs, residual
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(experts, outputs)) if bias else None

    def forward(self, x_RI: Tensor, counts_E: Tensor) -> Tensor:
        """R x outputs: the first `counts_E[0]` rows through matrix 0, the next through 1, and so on."""
        kind = x_RI.device.type
        if torch.is_autocast_enabled(kind):
            x_RI = x_RI.to(torch.get_autocast_dtype(kind))
        weight, bias = self.weight.to(x_RI.dtype), None if self.bias is None else self.bias.to(x_RI.dtype)
        if not _groups(x_RI, weight):
            return _slices(x_RI, weight, bias, counts_E)
        y_RO = F.grouped_mm(x_RI, weight.mT, offs=counts_E.cumsum(0).to(torch.int32))
        if bias is None:
            return y_RO
        of_row_R = torch.arange(len(bias), device=bias.device).repeat_interleave(counts_E)
        return y_RO + bias[of_row_R]


def _groups(x: Tensor, weight: Tensor) -> bool:
    """Whether torch (2.13) has one call for all groups: bf16, and fp32 in eager mode on CPUs, in whole 16 bytes."""
    if not hasattr(F, "grouped_mm"):
        return False
    compiling = torch.compiler.is_compiling()
    kinds = (torch.bfloat16,) if compiling or x.device.type != "cpu" else (torch.bfloat16, torch.float32)
    if x.dtype not in kinds or any(size * x.element_size() % 16 for size in weight.shape[1:]):
        return False
    return compiling or x.data_ptr() % 16 == weight.data_ptr() % 16 == 0


def _slices(x_RI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, counts_E: Tensor) -> Tensor:
    """One product for each expert, on its contiguous rows."""
    parts = x_RI.split(counts_E.tolist())
    biases = [None] * len(parts) if bias_EO is None else bias_EO.unbind(0)
    return torch.cat([F.linear(x, w, b) for x, w, b in zip(parts, weight_EOI.unbind(0), biases, strict=True)])
