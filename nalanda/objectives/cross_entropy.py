"""Cross-entropy of a linear head, computed in chunks of rows so that all logits are never held at once.

    loss, nll, correct = linear_cross_entropy(hidden_ND, weight_VD, bias_V, targets_N, weight_N)

A head's loss is a scalar, so its gradient is known up to one factor as soon as the logits are: each chunk's
logits are turned into their own gradient in place. Three matrix products, as with plain autograd, but little memory
(Liger Kernel, Hsu et al. 2024, the same idea).

    rows of hidden states:  |---- block ----|---- block ----|    one product each for both gradients
                            | chunk | chunk | chunk | chunk |    logits in fp32, while they are in cache

Each block's gradient of the matrix is as large as the matrix itself: few blocks, or adding them up costs a tenth of
a whole training step. So the logits' gradients of a block are kept in the compute type until it is full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CPU_LOGITS = 2**21  # logits held at once: 8 MiB, about what stays in the last-level cache
_GPU_LOGITS = 2**26  # 256 MiB
_CPU_BLOCK = 2**24  # gradients of logits held at once: 32 MiB in bf16


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits to hold at once on `device`."""
    return max(256, (_CPU_LOGITS if device.type == "cpu" else _GPU_LOGITS) // vocabulary)


def rows_per_block(vocabulary: int, chunk: int, device: torch.device) -> int:
    """How many rows of the logits' gradients to hold at once on `device`: whole chunks."""
    if device.type != "cpu":
        return chunk
    return max(1, _CPU_BLOCK // vocabulary // chunk) * chunk


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    weight_N: Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sums over N rows of the loss, of the negative log-likelihood, and of right guesses.

    The logits are `hidden_ND @ weight_VD.T + bias_V`, with `softcap` c then c tanh(logit / c). The loss is
    cross-entropy with `label_smoothing` (as `torch.nn.functional.cross_entropy`) plus `z_loss` times the squared
    log-normalizer (PaLM, Chowdhery et al. 2022); the negative log-likelihood (nats) has neither. Only the loss
    has a gradient, of first order only.
    Matrix products run in the autocast type where autocast is on, everything else in fp32 (or fp64).
    `chunk` is the rows of logits held at once; None chooses by the device.
    """
    rows = chunk or rows_per_chunk(weight_VD.shape[0], hidden_ND.device)
    loss, nll, correct = _LinearCrossEntropy.apply(
        hidden_ND, weight_VD, bias_V, targets_N, weight_N, label_smoothing, z_loss, softcap, rows
    )
    return loss, nll, correct


def _compute_type(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        row_weight: Tensor,
        smoothing: float,
        z_loss: float,
        softcap: float | None,
        rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs = ctx.needs_input_grad
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        compute = _compute_type(hidden)
        sums = hidden.new_zeros(3, dtype=exact)
        grad_hidden = torch.empty_like(hidden) if needs[0] else None
        grad_weight = None
        grad_bias = bias.new_zeros(bias.shape, dtype=exact) if bias is not None and needs[2] else None
        matrix = weight.to(compute)
        learns = any(needs[:3])
        block = rows_per_block(weight.shape[0], rows, hidden.device)
        slopes = hidden.new_empty(min(block, len(hidden)) if learns else 0, len(weight), dtype=compute)
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, len(hidden), block):
                x = hidden[first : first + block].to(compute)
                for start in range(0, len(x), rows):
                    here = slice(first + start, first + start + rows)
                    logits = (x[start : start + rows] @ matrix.T).to(exact)
                    if bias is not None:
                        logits += bias
                    bend = None if softcap is None else _cap(logits, softcap)
                    w = row_weight[here].to(exact)
                    into_gradient = _chunk(logits, targets[here], w, smoothing, z_loss, sums)
                    if not learns:
                        continue
                    into_gradient()
                    if bend is not None:
                        logits.mul_(bend)
                    slopes[start : start + len(logits)] = logits
                    if grad_bias is not None:
                        grad_bias += logits.sum(0)
                slope = slopes[: len(x)]
                if grad_hidden is not None:
                    grad_hidden[first : first + block] = slope @ matrix
                if needs[1]:
                    grad_weight = _accumulate(grad_weight, slope, x, exact)
        if needs[1] and grad_weight is None:  # no row at all
            grad_weight = weight.new_zeros(weight.shape, dtype=exact)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.types = (weight.dtype, None if bias is None else bias.dtype)
        loss, nll, correct = sums.unbind()
        ctx.mark_non_differentiable(nll, correct)
        return loss, nll, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        weight_type, bias_type = ctx.types
        return (
            None if hidden is None else hidden * grad.to(hidden.dtype),
            None if weight is None else (weight * grad).to(weight_type),
            None if bias is None else (bias * grad).to(bias_type),
            *[None] * 6,
        )


def _accumulate(grad_VD: Tensor | None, slope_NV: Tensor, x_ND: Tensor, exact: torch.dtype) -> Tensor:
    """`slope.T @ x`, added to what earlier blocks gave, which is never narrower than fp32."""
    if grad_VD is None:
        return (slope_NV.T @ x_ND).to(exact)
    if slope_NV.dtype == exact:
        return grad_VD.addmm_(slope_NV.T, x_ND)
    return grad_VD.add_(slope_NV.T @ x_ND)


def _cap(logits: Tensor, softcap: float) -> Tensor:
    """Caps `logits` in place; returns the slope of that, 1 - tanh^2."""
    bent = torch.tanh(logits.div_(softcap))
    torch.mul(bent, softcap, out=logits)
    return bent.square_().neg_().add_(1)


def _chunk(
    logits: Tensor, targets: Tensor, w: Tensor, smoothing: float, z_loss: float, sums: Tensor
) -> Callable[[], None]:
    """Adds one chunk's loss, nll and right guesses to `sums`; returns what turns `logits` into their gradient.

    `logits` is overwritten with probabilities at once. The log-normalizer is taken at the largest logit, where
    its probability is at least 1/V, so it is exact where exp(logit) alone would vanish.
    """
    vocabulary = logits.shape[1]
    place = targets.unsqueeze(1)
    chosen = logits.gather(1, place).squeeze(1)
    largest = logits.amax(1)
    mean = logits.mean(1) if smoothing else None
    probabilities = torch.softmax(logits, 1, out=logits)
    normalizer = largest - probabilities.amax(1).log()
    nll = normalizer - chosen
    loss = nll if mean is None else nll * (1 - smoothing) + (normalizer - mean) * smoothing
    if z_loss:
        loss = loss + z_loss * normalizer.square()
    right = (chosen >= largest).to(w.dtype)
    sums += torch.stack([(loss * w).sum(), (nll * w).sum(), (right * w).sum()])

    def into_gradient() -> None:
        scale = w * (1 + 2 * z_loss * normalizer) if z_loss else w
        probabilities.mul_(scale.unsqueeze(1))
        if smoothing:
            probabilities.sub_((w * (smoothing / vocabulary)).unsqueeze(1))
        at_target = probabilities.gather(1, place) - ((1 - smoothing) * w).unsqueeze(1)
        probabilities.scatter_(1, place, at_target)  # not scatter_add_: that has no fixed order on a GPU

    return into_gradient
