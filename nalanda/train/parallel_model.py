"""A model made this rank's part of itself, and made whole again after training.

    arrangement = arrange(model, config, sizes, device)      # changes `model`
    ...
    arrangement.restore(model, ranks)                               # plain again; its weights on the first rank

In this order: weights are cut among tensor and expert ranks, blocks are told what to work out again, and FSDP2 shares
out what is left among the ranks that compute different parts of a step.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nalanda.base.distributed import Ranks
from nalanda.base.errors import UserError
from nalanda.nn.block import Block
from nalanda.nn.moe import Experts
from nalanda.train.parallel_context import Context
from nalanda.train.parallel_exchange import shared
from nalanda.train.parallel_experts import own
from nalanda.train.parallel_layout import Layout, Layouts
from nalanda.train.parallel_sizes import ParallelConfig, Sizes, sizes_of
from nalanda.train.parallel_tensor import Parts, cut

DIMENSIONS = ("data", "expert", "context", "tensor")


@dataclass(frozen=True)
class Cut:
    """How a weight is cut along `axis` among the ranks of one dimension of the mesh, the ranges of each."""

    dimension: str
    axis: int
    parts: Parts
    shape: tuple[int, ...]  # of the whole


class Mesh:
    """The ranks in their dimensions. Every rank makes it at the same time."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        shape = (sizes.data, sizes.expert, sizes.context, sizes.tensor)
        self.device = device
        self.mesh = init_device_mesh(device.type, shape, mesh_dim_names=DIMENSIONS)
        self._flat: dict[tuple[str, ...], Any] = {}

    def along(self, *dimensions: str) -> Any:
        """The one-dimensional mesh of the ranks that differ from this one in `dimensions` alone."""
        if len(dimensions) == 1:
            return self.mesh[dimensions[0]]
        if dimensions not in self._flat:
            self._flat[dimensions] = self.mesh[dimensions]._flatten("_".join(dimensions))
        return self._flat[dimensions]

    def index(self, dimension: str) -> int:
        """This rank's place in a dimension."""
        return int(self.mesh.get_local_rank(dimension))

    def group(self, *dimensions: str) -> Any:
        """The process group of `along`."""
        return self.along(*dimensions).get_group()


@dataclass
class Arrangement:
    """A model's layouts, and the model as it was, without the memory of its weights."""

    layouts: Layouts
    mesh: Mesh
    skeleton: nn.Module
    context: Context | None
    sums: list[tuple[list[str], tuple[str, ...]]]
    """Names of weights, and the dimensions of the mesh over which their gradients are still to be added."""

    def restore(self, model: nn.Module, ranks: Ranks) -> None:
        """Makes `model` plain again, in place. Its weights are on the first rank; others get none to save memory."""
        kept: dict[str, Tensor] = {}
        for name, value in model.state_dict().items():
            layout = self.layouts.of(name, value)
            whole = value if layout is None else layout.whole(value)
            kept[name] = (
                whole.detach().clone() if ranks.first or layout is None else whole.detach().to("meta")
            )
        model.__class__ = type(self.skeleton)
        model.__dict__ = self.skeleton.__dict__
        first: dict[int, str] = {}
        names = {n: first.setdefault(id(w), n) for n, w in model.named_parameters(remove_duplicate=False)}
        model.load_state_dict(kept, assign=True)
        weights = dict(model.named_parameters(remove_duplicate=False))
        for name, tied_to in names.items():  # to load is to give each name a weight of its own
            module, _, last = name.rpartition(".")
            setattr(model.get_submodule(module), last, weights[tied_to])

    def groups(self, model: nn.Module) -> list[tuple[list[nn.Parameter], Any]]:
        """`sums` as weights and process groups."""
        weights = dict(model.named_parameters())
        return [([weights[n] for n in names], self.mesh.group(*over)) for names, over in self.sums if names]


def arrange(model: Any, config: ParallelConfig, sizes: Sizes, device: torch.device) -> Arrangement:
    """Makes `model` this rank's part of itself. Raises UserError where a size does not divide the model."""
    if not hasattr(model, "transformer"):
        raise UserError("parallel: this kind of model is trained by data ranks alone, without shard")
    mesh, skeleton = Mesh(sizes, device), bare(model)
    cuts: dict[int, Cut] = {}
    context, partial_weights = _shared_out(model, sizes, mesh, cuts)
    names = {id(weight): name for name, weight in model.named_parameters()}
    spread = {name: _spread(cuts.get(number), mesh) for number, name in names.items()}
    layouts = {
        name: _layout(tuple(weight.shape), cuts.get(id(weight)), mesh, config.shard)
        for name, weight in model.named_parameters(remove_duplicate=False)
    }
    sums: list[tuple[list[str], tuple[str, ...]]] = [([names[id(w)] for w in partial_weights], ("tensor",))]
    if config.shard:
        shard(model, mesh, sizes)
    else:
        for over in dict.fromkeys(spread.values()):
            sums.append(([name for name, dimensions in spread.items() if dimensions == over], over))
    return Arrangement(Layouts(layouts), mesh, skeleton, context, sums)


def check_parallel(config: ParallelConfig, model: nn.Module, world: int) -> None:
    """Raises UserError, before any work, where sizes do not multiply to `world` or do not divide the model."""
    sizes = sizes_of(config, world)
    if (sizes.tensor, sizes.expert, sizes.context) != (1, 1, 1):
        trial = bare(model)
        if sizes.tensor > 1:
            cut(trial, 0, sizes.tensor, None, lambda weight, axis, parts: None)
        if sizes.expert > 1:
            own(trial, sizes.expert, None, lambda weight, axis, parts: None)
        if sizes.context > 1:
            Context(trial, 0, sizes.context, None)


def _shared_out(
    model: Any, sizes: Sizes, mesh: Mesh, cuts: dict[int, Cut]
) -> tuple[Context | None, list[nn.Parameter]]:
    """Cuts weights among tensor and expert ranks (noted in `cuts`) and rows among context ranks."""

    def take(dimension: str, weight: Tensor, axis: int, parts: Parts) -> None:
        cuts[id(weight)] = found = Cut(dimension, axis, parts, tuple(weight.shape))
        ranges = found.parts[mesh.index(dimension)]
        weight.data = torch.cat([weight.data.narrow(axis, a, b - a) for a, b in ranges], axis)

    partial_weights: list[nn.Parameter] = []
    if sizes.tensor > 1:
        group = mesh.group("tensor")
        partial_weights = cut(model, mesh.index("tensor"), sizes.tensor, group, partial(take, "tensor"))
        model.forward = partial(_split_after, model.forward, group)
    if sizes.expert > 1:
        own(model, sizes.expert, mesh.group("expert"), partial(take, "expert"))
    context = None
    if sizes.context > 1:
        context = Context(model, mesh.index("context"), sizes.context, mesh.group("context"))
    return context, partial_weights


def _split_after(forward: Callable[..., Any], group: Any, *arguments: Any, **named: Any) -> Any:
    """Hidden states, of which each tensor rank's loss sees its own places."""
    output = forward(*arguments, **named)
    return output._replace(hidden_BTD=shared(output.hidden_BTD, group))


def bare(model: nn.Module) -> nn.Module:
    """A copy whose weights have no memory; buffers are real."""
    weights = {id(w): nn.Parameter(w.detach().to("meta"), w.requires_grad) for w in model.parameters()}
    return copy.deepcopy(model, weights)


def _spread(cut: Cut | None, mesh: Mesh) -> tuple[str, ...]:
    """The dimensions whose ranks compute different parts of a step with the same part of a weight."""
    return tuple(d for d in DIMENSIONS[:3] if cut is None or d != cut.dimension)


def _layout(local: tuple[int, ...], cut: Cut | None, mesh: Mesh, sharded: bool) -> Layout:
    spread = _spread(cut, mesh) if sharded else ()
    held = {*spread, *([cut.dimension] if cut else [])}
    return Layout(
        cut.shape if cut else local,
        axis=cut.axis if cut else 0,
        parts=cut.parts if cut else (),
        index=mesh.index(cut.dimension) if cut else 0,
        group=mesh.group(cut.dimension) if cut else None,
        mesh=mesh.along(*spread) if spread else None,
        copies=any(mesh.index(d) for d in DIMENSIONS if d not in held),
    )


def blocks_of(model: nn.Module) -> Iterator[Block]:
    """The layers of all stacks, in order."""
    return (module for module in model.modules() if isinstance(module, Block))


def shard(model: nn.Module, mesh: Mesh, sizes: Sizes) -> None:
    """FSDP2: each block is gathered while it computes, what is outside of blocks during the whole pass.

    Gradients are added over ranks in fp32, never averaged: losses are divided by counts of the whole step.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    if sizes.expert > 1:
        for experts in [module for module in model.modules() if isinstance(module, Experts)]:
            fully_shard(experts, mesh=mesh.along("data", "context"), mp_policy=policy)
    for block in list(blocks_of(model)):
        fully_shard(block, mesh=mesh.along(*DIMENSIONS[:3]), mp_policy=policy)
    fully_shard(model, mesh=mesh.along(*DIMENSIONS[:3]), mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
