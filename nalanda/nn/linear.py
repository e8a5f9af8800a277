"""The one place where matrices are made: a faster kernel, a quantized or an adapted layer has one door to come in by.

Linear(192, 768, bias=True)
Linear(768, 192, bias=True, residual=True)     # ends a residual branch: starts smaller, see initialize.py
"""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """x W^T + b. `residual` says that its output is added to the residual stream."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False, residual: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.residual = residual

    def reset_parameters(self) -> None:
        """Nothing: initialize.py draws every weight, once."""
