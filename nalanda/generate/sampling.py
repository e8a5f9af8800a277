"""Which tokens may be chosen, and the choice: pure functions on `logits_BV`, none of which changes its input.

    logits_BV = repetition_penalty(logits_BV, history_BT, 1.2)
    logits_BV = top_p(top_k(logits_BV / temperature, 50), 0.9)
    ids_B = choose(logits_BV, uniforms(seeds_B, step))

Legend: B rows, V vocabulary, T tokens so far. A token that may not be chosen has logit -inf.
Random numbers are a function of (seed, step) alone, so a row draws the same ones in any batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_NEVER = float("-inf")


def top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Keeps the `k` largest of each row and what ties with the last of them; k = 0 keeps all."""
    if k == 0 or k >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(k, dim=-1).values[..., -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, _NEVER)


def top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Nucleus (Holtzman et al. 2020): keeps the smallest set of likeliest tokens whose mass reaches `p`."""
    if p >= 1.0:
        return logits_BV
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probability_BV = sorted_BV.double().softmax(dim=-1)
    before_BV = probability_BV.cumsum(dim=-1) - probability_BV
    drop_BV = before_BV >= p
    drop_BV[..., 0] = False
    return logits_BV.masked_fill(torch.zeros_like(drop_BV).scatter(-1, order_BV, drop_BV), _NEVER)


def min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keeps tokens at least `p` times as likely as the likeliest (Nguyen et al. 2024); p = 0 keeps all."""
    if p <= 0.0:
        return logits_BV
    floor_B1 = logits_BV.max(dim=-1, keepdim=True).values + float(np.log(p))
    return logits_BV.masked_fill(logits_BV < floor_B1, _NEVER)


def repetition_penalty(logits_BV: Tensor, history_BT: Tensor, penalty: float) -> Tensor:
    """Divides positive and multiplies negative logits of tokens in the history (CTRL, Keskar et al. 2019)."""
    if penalty == 1.0 or history_BT.shape[1] == 0:
        return logits_BV
    seen_BT = logits_BV.gather(-1, history_BT)
    seen_BT = torch.where(seen_BT > 0, seen_BT / penalty, seen_BT * penalty)
    return logits_BV.scatter(-1, history_BT, seen_BT)


def block_repeated_ngrams(logits_BV: Tensor, history_BT: Tensor, n: int) -> Tensor:
    """Forbids every token that would complete an n-gram which the history already holds; n = 0 forbids none.

    Padding on the left of the history is harmless: an n-gram that holds it never comes again.
    """
    length = history_BT.shape[1]
    if n == 0 or length < n:
        return logits_BV
    windows_BWN = history_BT.unfold(1, n, 1)
    tail_B1N = history_BT[:, length - n + 1 :].unsqueeze(1)
    repeats_BW = (windows_BWN[..., : n - 1] == tail_B1N).all(dim=-1)
    banned_BV = torch.zeros(logits_BV.shape, dtype=torch.int32, device=logits_BV.device)
    banned_BV.scatter_add_(1, windows_BWN[..., -1], repeats_BW.int())
    return logits_BV.masked_fill(banned_BV > 0, _NEVER)


def uniforms(seeds_B: np.ndarray, step: int) -> np.ndarray:
    """One number in [0, 1) per row: splitmix64 (Steele et al. 2014) of the row's seed at counter `step`.

    52 bits, so that the number times a total of about 1 stays below the total after rounding.
    """
    with np.errstate(over="ignore"):
        state = seeds_B.astype(np.uint64) + np.uint64(step + 1) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(12)).astype(np.float64) * 2.0**-52


def choose(logits_BV: Tensor, uniform_B: np.ndarray) -> Tensor:
    """Draws one token per row from softmax(logits) by inverting its distribution at the row's uniform number.

    In double precision: the draw must not depend on how a batch's sums were rounded.
    """
    mass_BV = logits_BV.double().softmax(dim=-1).cumsum(dim=-1)
    point_B1 = torch.from_numpy(uniform_B).to(logits_BV.device).unsqueeze(1) * mass_BV[:, -1:]
    return torch.searchsorted(mass_BV, point_B1, right=True).squeeze(1)
