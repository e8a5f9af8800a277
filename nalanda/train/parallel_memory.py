"""Activation checkpointing: what a block keeps for its backward pass, and what it works out again (Chen et al. 2016).

full        a block keeps its input alone
selective   it keeps the results of products as well, which are dear to repeat and small beside what lies between them
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.linear.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
} | {getattr(_aten, name).default for name in ("_grouped_mm",) if hasattr(_aten, name)}


def _policy(context: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def recompute(blocks: Iterable[nn.Module], mode: Literal["selective", "full"]) -> None:
    """Makes blocks work their activations out again in the backward pass; without gradients nothing changes."""
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    how: dict[str, Any] = {"context_fn": contexts} if mode == "selective" else {}
    for block in blocks:
        block.forward = partial(_run, block.forward, how)


def undo(blocks: Iterable[nn.Module]) -> None:
    """Takes `recompute` back."""
    for block in blocks:
        block.__dict__.pop("forward", None)


def _run(forward: Callable[..., Any], how: dict[str, Any], *arguments: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments)
    return checkpoint(forward, *arguments, use_reentrant=False, **how)
