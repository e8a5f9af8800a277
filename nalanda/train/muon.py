"""Muon: momentum whose update is orthogonalized, for the hidden matrices of a network (Jordan et al., 2024).

    optimizer = Muon([("block.0.up", weight, ())], lr=1e-3)

Each matrix's momentum G = U S V' is replaced by about U V', so that every direction is learned at the same pace.
Five Newton-Schulz steps approach it without a decomposition. Matrices of one shape are stacked and go through one
batched product, which is what makes this affordable on a CPU. Products are fp32 on CPUs and bf16 on GPUs unless asked
for: bf16 takes half the time or less on a CPU that multiplies it, and only directions are wanted of them.
A weight that holds several matrices one under the other (fused query, key and value) is split before and each part
orthogonalized by itself: orthogonalizing them together would tie their directions to each other.

Options: `neurons` (NorMuon, Li et al. 2025) divides each output's row of the orthogonal update by the running root
mean square of its entries, the whole keeping its size, so that no neuron learns much faster than another; `cautious`
(Chen et al. 2025) decays an entry only where the update makes it smaller as well.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nalanda.train.lanes import Lanes

_COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # Jordan's quintic: steepest at 0 that keeps (0, 1] in about [0.7, 1.2]

Polynomial = Literal["jordan", "minimax"]
Scale = Literal["match_rms", "spectral"]
Products = Literal["fp32", "bf16"]


def orthogonalize(
    matrices_KRC: Tensor,
    steps: int = 5,
    products: Products | None = None,
    polynomial: Polynomial = "jordan",
) -> Tensor:
    """For each of K matrices about the nearest one with all singular values 1 (between 0.7 and 1.2).

    `products`: the type of the matrix products; None: bf16 on GPUs, the matrices' own elsewhere. `polynomial`: one
    quintic for every step, or for each the best one there is (see `minimax`), which gets there a step sooner.
    """
    quintics = (_COEFFICIENTS,) * steps if polynomial == "jordan" else minimax(steps)
    x = matrices_KRC
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    if products == "bf16" or (products is None and x.is_cuda):
        x = x.bfloat16()
    for a, b, c in quintics:
        gram = x @ x.mT
        lift = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, lift, x, beta=a)
    return (x.mT if tall else x).to(matrices_KRC.dtype)


@functools.cache
def minimax(steps: int, low: float = 0.0) -> tuple[tuple[float, float, float], ...]:
    """Coefficients of x, x^3, x^5 for each step, so that singular values from `low` to 1 end as near to 1 as any
    quintics in turn can bring them (Polar Express, Amsel et al. 2025). `low` 0: 4^(2 - steps) / 5, what so many steps
    can lift."""
    low, high = low or 4.0 ** (2 - steps) / 5, 1.0
    found = []
    for _ in range(steps):
        *quintic, error = _best_quintic(low, high)
        found.append((quintic[0], quintic[1], quintic[2]))
        low, high = 1 - error, 1 + error
    return tuple(found)


def _best_quintic(low: float, high: float) -> tuple[float, float, float, float]:
    """a, b, c and the error of the a x + b x^3 + c x^5 that is nearest to 1 on [low, high]: the one whose error is
    the same, with turning signs, at both ends and at its two bends (Remez)."""
    if high - low < 1e-3:  # so near to 1 that the one which is flattest there does
        return 15 / 8, -10 / 8, 3 / 8, (high - low) ** 3
    bends = (low + (high - low) / 3, high - (high - low) / 3)
    for _ in range(100):
        places = torch.tensor([low, *bends, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        rows = torch.stack([places, places**3, places**5, signs], dim=1)
        a, b, c, error = torch.linalg.solve(rows, torch.ones(4, dtype=torch.float64)).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        before, bends = bends, (math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c)))
        if abs(bends[0] - before[0]) + abs(bends[1] - before[1]) < 1e-12:
            break
    return a, b, c, abs(error)


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
        products: Products | None = None,
        polynomial: Polynomial = "jordan",
        neurons: float | None = None,
        cautious: bool = False,
    ) -> None:
        """`matrices`: (name, weight, rows of each fused part or ()). A 3-D weight is a stack of matrices.

        `neurons`: what the running mean of each row's squares keeps at a step; None: rows are left as they are.
        """
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
        self.products, self.polynomial = products, polynomial
        self.neurons, self.cautious = neurons, cautious
        self.lanes = Lanes(1)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            updates = self._momentum(weights, group["momentum"])
            decay = group["lr"] * group["weight_decay"]
            if decay and not self.cautious:
                torch._foreach_mul_(weights, 1 - decay)
            self._apply(weights, updates, group["lr"], decay if self.cautious else 0.0)

    def _orthogonal(self, rows: list[_Part]) -> Tensor:
        with torch.no_grad():  # a lane's thread does not inherit the caller's
            stack = torch.stack([part.update for part in rows])
            return orthogonalize(stack, self.newton_schulz_steps, self.products, self.polynomial)

    def _momentum(self, weights: list[Tensor], momentum: float) -> list[Tensor]:
        """Nesterov's look-ahead of the running mean of gradients."""
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum"] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return list(torch._foreach_lerp(gradients, buffers, momentum))

    def _apply(self, weights: list[Tensor], updates: list[Tensor], lr: float, decay: float) -> None:
        """Stacks parts of one shape (a tall one lies down), orthogonalizes each stack, and adds them."""
        stacks: dict[tuple[int, int], list[_Part]] = {}
        for weight, update in zip(weights, updates, strict=True):
            sizes = list(self._parts[id(weight)])
            squares = weight if self.neurons is None else self._squares(weight)
            for parts in zip(weight.split(sizes, -2), update.split(sizes, -2), squares.split(sizes, -2)):
                for w, u, s in zip(*(t.unsqueeze(0) if t.ndim == 2 else t for t in parts), strict=True):
                    tall = u.shape[0] > u.shape[1]
                    key = (min(u.shape), max(u.shape))
                    stacks.setdefault(key, []).append(_Part(w, u.mT if tall else u, tall, s))
        shares = [rows[i :: self.lanes.count] for rows in stacks.values() for i in range(self.lanes.count)]
        shares = [rows for rows in shares if rows]
        for rows, results in zip(shares, self.lanes.run(self._orthogonal, shares), strict=True):
            for part, result in zip(rows, results):
                update = result.mT if part.tall else result
                if self.neurons is not None:
                    update = _even(update, part.squares, self.neurons)
                weight = part.weight
                if decay:
                    weight.sub_(torch.where(update * weight > 0, weight, 0), alpha=decay)
                weight.add_(update, alpha=-lr * update_scale(weight.shape[0], weight.shape[1], self.scale))

    def _squares(self, weight: Tensor) -> Tensor:
        """The running means of the rows' squared updates, one column."""
        state = self.state[weight]
        if "squares" not in state:
            state["squares"] = weight.new_zeros(*weight.shape[:-1], 1)
        found: Tensor = state["squares"]
        return found


class _Part(NamedTuple):
    """One matrix of a weight, its update (lying down where it is `tall`), and its rows' running squares."""

    weight: Tensor
    update: Tensor
    tall: bool
    squares: Tensor


def _even(update_RC: Tensor, squares_R1: Tensor, keep: float) -> Tensor:
    """The update with its rows divided by their running size, as large as before on the whole."""
    squares_R1.lerp_(update_RC.square().mean(-1, keepdim=True), 1 - keep)
    even_RC = update_RC / (squares_R1.sqrt() + 1e-8)
    return even_RC * (torch.linalg.matrix_norm(update_RC) / (torch.linalg.matrix_norm(even_RC) + 1e-8))
