"""Muon: momentum whose update is orthogonalized, for the hidden matrices of a network (Jordan et al., 2024).

    optimizer = Muon([("block.0.up", weight, ())], lr=1e-3)

Each matrix's momentum G = U S V' is replaced by about U V', so that every direction is learned at the same pace.
Five Newton-Schulz steps approach it without a decomposition. Matrices of one shape are stacked and go through one
batched product, which is what makes this affordable on a CPU. Products are fp32 on CPUs and bf16 on GPUs.
A weight that holds several matrices one under the other (fused query, key and value) is split before and each part
orthogonalized by itself: orthogonalizing them together would tie their directions to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from nalanda.train.lanes import Lanes

_COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # Jordan's quintic: steepest at 0 that keeps (0, 1] in about [0.7, 1.2]

Scale = Literal["match_rms", "spectral"]


def orthogonalize(matrices_KRC: Tensor, steps: int = 5) -> Tensor:
    """For each of K matrices about the nearest one with all singular values 1 (between 0.7 and 1.2)."""
    a, b, c = _COEFFICIENTS
    x = matrices_KRC
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).to(matrices_KRC.dtype)


def update_scale(rows: int, columns: int, scale: Scale) -> float:
    """What an orthogonal update of a `rows` x `columns` matrix is multiplied by.

    match_rms: 0.2 sqrt(max(rows, columns)), the root mean square of AdamW's updates, so that one learning rate
    and weight decay fit both (Liu et al., 2025). spectral: sqrt(max(1, rows / columns)) (Jordan et al., 2024).
    """
    return 0.2 * max(rows, columns) ** 0.5 if scale == "match_rms" else max(1.0, rows / columns) ** 0.5


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized; decoupled weight decay. `lanes` share the stacks out to the cores."""

    def __init__(
        self,
        matrices: Sequence[tuple[str, torch.nn.Parameter, tuple[int, ...]]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
        scale: Scale = "match_rms",
    ) -> None:
        """`matrices`: (name, weight, rows of each fused part or ()). A 3-D weight is a stack of matrices."""
        for name, weight, rows in matrices:
            if weight.ndim not in (2, 3) or (rows and sum(rows) != weight.shape[-2]):
                raise ValueError(
                    f"{name}: shape {tuple(weight.shape)} with parts {rows} is not a matrix for Muon"
                )
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([weight for _, weight, _ in matrices], defaults)
        self._parts = {id(weight): rows or (weight.shape[-2],) for _, weight, rows in matrices}
        self.newton_schulz_steps = steps
        self.scale: Scale = scale
        self.lanes = Lanes(1)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            updates = self._momentum(weights, group["momentum"])
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            self._apply(weights, updates, group["lr"])

    def _orthogonal(self, rows: list[tuple[Tensor, Tensor, bool]]) -> Tensor:
        with torch.no_grad():  # a lane's thread does not inherit the caller's
            return orthogonalize(torch.stack([update for _, update, _ in rows]), self.newton_schulz_steps)

    def _momentum(self, weights: list[Tensor], momentum: float) -> list[Tensor]:
        """Nesterov's look-ahead of the running mean of gradients."""
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum"] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return list(torch._foreach_lerp(gradients, buffers, momentum))

    def _apply(self, weights: list[Tensor], updates: list[Tensor], lr: float) -> None:
        """Stacks parts of one shape (a tall one lies down), orthogonalizes each stack, and adds them."""
        stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor, bool]]] = {}
        for weight, update in zip(weights, updates, strict=True):
            sizes = list(self._parts[id(weight)])
            for target, part in zip(weight.split(sizes, -2), update.split(sizes, -2), strict=True):
                for w, u in zip(*(t.unsqueeze(0) if t.ndim == 2 else t for t in (target, part))):
                    tall = u.shape[0] > u.shape[1]
                    key = (min(u.shape), max(u.shape))
                    stacks.setdefault(key, []).append((w, u.mT if tall else u, tall))
        shares = [rows[i :: self.lanes.count] for rows in stacks.values() for i in range(self.lanes.count)]
        shares = [rows for rows in shares if rows]
        for rows, results in zip(shares, self.lanes.run(self._orthogonal, shares), strict=True):
            for (weight, _, tall), result in zip(rows, results):
                weight.add_(
                    result.mT if tall else result,
                    alpha=-lr * update_scale(weight.shape[0], weight.shape[1], self.scale),
                )
