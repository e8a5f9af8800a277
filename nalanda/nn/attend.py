"""How scores become sums of values: one call, several ways to work it out.

    x_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, mask, scale, softcap=50.0, sinks_H=sinks)

    score = q k^T * scale  ->  softcap * tanh(score / softcap)  ->  + bias of the mask  ->  softmax  ->  @ v

Sinks are one more column of scores, a learned one per head, whose value is zero: it takes weight to nowhere, so
that a head can look at nothing (Xiao et al. 2023; gpt-oss 2025). Soft-capping bounds scores (Gemma 2, 2024).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from nalanda.nn.dropout import drop
from nalanda.nn.mask import AttentionMask

_STRIP = 128  # queries


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: AttentionMask,
    scale: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """softmax(score) v, B x H x T x K; softmax in fp32. A query that may see nothing gets zeros."""
    if mask.backend == "flex" and not dropout:
        return _flex(q_BHTK, k_BGSK, v_BGSK, mask, scale, softcap, sinks_H)
    mask = mask.dense(q_BHTK.dtype)
    if mask.backend == "manual" or softcap is not None or sinks_H is not None:
        parts = [
            _manual(
                q_BHTK[:, :, here],
                k_BGSK[:, :, seen],
                v_BGSK[:, :, seen],
                part,
                scale,
                dropout,
                softcap,
                sinks_H,
            )
            for here, seen, part in _strips(mask, q_BHTK.shape[2])
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=mask.bias,
        dropout_p=dropout,
        is_causal=mask.causal,
        scale=scale,
        enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
    )


def _strips(mask: AttentionMask, width: int) -> list[tuple[slice, slice, AttentionMask]]:
    """Queries in strips, each with the keys that any of them may see and its part of the mask.

    In a causal order the strips leave out up to half of the scores: at 512 places 1.6 times as fast, forward and
    backward, as all scores at once. Below two strips of 128 the pieces are too small to gain.
    """
    if not mask.ordered or torch.compiler.is_compiling():
        return [(slice(None), slice(None), mask)]
    strips = []
    for first, last, low in strip_bounds(width, mask.window):
        here, seen = slice(first, last), slice(low, last)
        bias = None if mask.bias is None else mask.bias[:, :, here, seen]
        strips.append((here, seen, replace(mask, bias=bias)))
    return strips


def strip_bounds(width: int, window: int | None) -> list[tuple[int, int, int]]:
    """(first query, last query + 1, first key) of each strip of a causal order; one strip for short rows."""
    if width < 2 * _STRIP:
        return [(0, width, 0)]
    step = max(_STRIP, min(-(-width // 4), window or width))
    starts = range(0, width, step)
    return [(i, min(i + step, width), max(0, i - window + 1) if window else 0) for i in starts]


def attention_map(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    mask: AttentionMask,
    scale: float,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The weights that `attend` gives to values, B x H x T x S fp32: for looking at, not for speed.

    A row sums to 1, with sinks to less: the rest went to the sink.
    """
    wide = _wide(q_BHTK.dtype)
    mask = mask.dense(wide)
    return _weights(q_BHTK.to(wide), k_BGSK.to(wide), mask, scale, softcap, sinks_H)[..., : k_BGSK.shape[2]]


def _manual(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: AttentionMask,
    scale: float,
    dropout: float,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    weights_BHTS = _weights(q_BHTK, k_BGSK, mask, scale, softcap, sinks_H)[..., : k_BGSK.shape[2]]
    weights_BHTS = drop(weights_BHTS.to(v_BGSK.dtype), dropout)
    x_BGRK = weights_BHTS.reshape(v_BGSK.shape[0], v_BGSK.shape[1], -1, v_BGSK.shape[2]) @ v_BGSK
    return x_BGRK.view(*q_BHTK.shape[:3], v_BGSK.shape[3])


def _weights(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    mask: AttentionMask,
    scale: float,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """B x H x T x S; with sinks S + 1, the last column being what the sink takes."""
    rows, heads, width, dim = q_BHTK.shape
    grouped = (q_BHTK * scale).reshape(
        rows, k_BGSK.shape[1], -1, dim
    )  # the heads of a group share one product
    score = (grouped @ k_BGSK.transpose(-1, -2)).view(rows, heads, width, k_BGSK.shape[2])
    if softcap is not None:
        # In fp32: rounding after each of three steps would cost bf16 scores another bit.
        score = softcap * torch.tanh(score.to(_wide(score.dtype)) / softcap)
    if mask.causal:
        score = score.masked_fill(torch.ones_like(score[0, 0], dtype=torch.bool).triu(1), -torch.inf)
    if mask.bias is not None:
        score = score + mask.bias
    if sinks_H is not None:
        sink = sinks_H.to(score.dtype)[None, :, None, None].expand(rows, heads, width, 1)
        return torch.cat([score, sink], dim=-1).softmax(-1)
    if mask.blind and mask.bias is not None:
        # Where nothing may be seen, softmax is 0 / 0, and so is its gradient; looking for that takes its time.
        return _spelt_softmax(score) if torch.compiler.is_compiling() else torch._safe_softmax(score, -1)
    return score.softmax(-1)


def _spelt_softmax(score: Tensor) -> Tensor:
    """`torch._safe_softmax` in parts that torch.compile can fuse; it does not know that one."""
    wide = score.to(_wide(score.dtype))
    largest = wide.detach().amax(-1, keepdim=True)
    weights = torch.exp(wide - torch.where(largest == -torch.inf, 0.0, largest))
    total = weights.sum(-1, keepdim=True)
    return (weights / torch.where(total == 0, 1.0, total)).to(score.dtype)


def _flex(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: AttentionMask,
    scale: float,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    learned = mask.learned

    def change(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if learned is not None:
            score = score + learned[row if learned.shape[0] > 1 else 0, head, query, key]
        return score

    x_BHTK, aux = _flex_kernel(q_BHTK.device.type)(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        score_mod=None if softcap is None and learned is None else change,
        block_mask=mask.blocks,
        scale=scale,
        enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
        return_aux=AuxRequest(lse=sinks_H is not None),
    )
    if sinks_H is None:
        return x_BHTK
    # A sink adds exp(sink) to the softmax's sum, exp(lse), and nothing to what is summed.
    kept_BHT = torch.sigmoid(aux.lse - sinks_H.to(aux.lse.dtype)[:, None])
    return x_BHTK * kept_BHT[..., None].to(x_BHTK.dtype)


@functools.cache
def _flex_kernel(device: str) -> Callable[..., Any]:
    """Fused on a GPU, where a kernel is compiled for each pattern; elsewhere as torch spells it out, for tests."""
    kernel: Callable[..., Any] = flex_attention
    return torch.compile(kernel, dynamic=True) if device == "cuda" else kernel


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
