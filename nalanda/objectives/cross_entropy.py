"""Cross-entropy of a linear head, computed in chunks of rows so that all logits are never held at once.

    loss, nll, correct = linear_cross_entropy(hidden_ND, weight_VD, bias_V, targets_N, weight_N)

A head's loss is a scalar, so its gradient is known up to one factor as soon as the logits are: each chunk's
logits are turned into their own gradient in place and multiplied out while they are still in cache. Three
matrix products, as with plain autograd, but one chunk of memory (Liger Kernel, Hsu et al. 2024, the same idea).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CPU_LOGITS = 2**21  # logits held at once: 8 MiB, about what stays in the last-level cache
_GPU_LOGITS = 2**26  # 256 MiB


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits to hold at once on `device`."""
    return max(256, (_CPU_LOGITS if device.type == "cpu" else _GPU_LOGITS) // vocabulary)


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
        grad_weight = weight.new_zeros(weight.shape, dtype=exact) if needs[1] else None
        grad_bias = bias.new_zeros(bias.shape, dtype=exact) if bias is not None and needs[2] else None
        matrix = weight.to(compute)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], rows):
                part = slice(start, start + rows)
                x = hidden[part].to(compute)
                logits = (x @ matrix.T).to(exact)
                if bias is not None:
                    logits += bias
                bend = None if softcap is None else _cap(logits, softcap)
                w = row_weight[part].to(exact)
                into_gradient = _chunk(logits, targets[part], w, smoothing, z_loss, sums)
                if not any(needs[:3]):
                    continue
                into_gradient()
                if bend is not None:
                    logits.mul_(bend)
                slope = logits.to(compute)
                if grad_hidden is not None:
                    grad_hidden[part] = slope @ matrix
                if grad_weight is not None:
                    _accumulate(grad_weight, slope, x)
                if grad_bias is not None:
                    grad_bias += logits.sum(0)
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


def _accumulate(grad_VD: Tensor, slope_NV: Tensor, x_ND: Tensor) -> None:
    """Adds `slope.T @ x` to an accumulator that is never narrower than fp32."""
    if slope_NV.dtype == grad_VD.dtype:
        grad_VD.addmm_(slope_NV.T, x_ND)
    else:
        grad_VD += slope_NV.T @ x_ND


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
