"""A model made this rank's part of itself, and made whole again after training.

    arrangement = arrange(model, config, sizes, ranks, device)      # changes `model`
    ...
    arrangement.restore(model, ranks)                               # plain again; its weights on the first rank

In this order: weights are cut among tensor and expert ranks, blocks are told what to work out again, and FSDP2 shares
out what is left among the ranks that compute different parts of a step.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nalanda.base.distributed import Ranks
from nalanda.nn.block import Block
from nalanda.train.parallel_layout import Layout, Layouts, Range

if TYPE_CHECKING:
    from nalanda.train.parallel import ParallelConfig, Sizes

DIMENSIONS = ("data", "expert", "context", "tensor")


@dataclass(frozen=True)
class Cut:
    """How a weight is cut along `axis` among the ranks of one dimension of the mesh: the ranges of each."""

    dimension: str
    axis: int
    parts: tuple[tuple[Range, ...], ...]


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
    sharded: bool
    cuts: dict[str, Cut] = field(default_factory=dict)

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
        model.load_state_dict(kept, assign=True)


def arrange(model: nn.Module, config: ParallelConfig, sizes: Sizes, device: torch.device) -> Arrangement:
    """Makes `model` this rank's part of itself. Raises UserError where a size does not divide the model."""
    mesh = Mesh(sizes, device)
    skeleton = bare(model)
    cuts: dict[int, Cut] = {}
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters(remove_duplicate=False)}
    owners = {name: id(weight) for name, weight in model.named_parameters(remove_duplicate=False)}
    layouts = {}
    for name, shape in shapes.items():
        layouts[name] = _layout(shape, cuts.get(owners[name]), mesh, config.shard)
    if config.shard:
        shard(model, mesh)
    return Arrangement(Layouts(layouts), mesh, skeleton, config.shard)


def bare(model: nn.Module) -> nn.Module:
    """A copy whose weights have no memory; buffers are real."""
    weights = {id(w): nn.Parameter(w.detach().to("meta"), w.requires_grad) for w in model.parameters()}
    return copy.deepcopy(model, weights)


def _layout(shape: tuple[int, ...], cut: Cut | None, mesh: Mesh, sharded: bool) -> Layout:
    spread = [d for d in DIMENSIONS[:3] if cut is None or d != cut.dimension] if sharded else []
    held = {*spread, *([cut.dimension] if cut else [])}
    return Layout(
        shape,
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


def shard(model: nn.Module, mesh: Mesh) -> None:
    """FSDP2: each block is gathered while it computes, what is outside of blocks during the whole pass.

    Gradients are added over ranks in fp32, never averaged: losses are divided by counts of the whole step.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    spread = mesh.along(*DIMENSIONS[:3])
    for block in blocks_of(model):
        fully_shard(block, mesh=spread, mp_policy=policy)
    fully_shard(model, mesh=spread, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
