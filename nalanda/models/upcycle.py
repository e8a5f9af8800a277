"""A trained dense network becomes a mixture of experts whose experts start as copies of its feed-forwards.

    sparse = upcycle(load_model(folder), UpcycleConfig(experts=8, top_k=2))     # Komatsuzaki et al. 2022

With normalized weights (the default), scale 1 and no noise it says what the dense network said: whatever K copies the
router chooses, their weights sum to 1. The router is new, drawn from torch's global generator as every new weight is.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import nn

from nalanda.base.errors import DataError
from nalanda.models.plain import MoEConfig
from nalanda.nn.linear import ExpertLinear
from nalanda.nn.model import Model
from nalanda.nn.moe import MoE
from nalanda.nn.spec import BlockSpec, FeedForwardSpec, Spec


class UpcycleConfig(MoEConfig):
    """Which layers become mixtures, and of what kind."""

    noise: float = Field(
        default=0.0,
        ge=0,
        description="normal noise on each expert's matrices, as a share of their standard deviation",
    )

    @model_validator(mode="after")
    def _copies(self) -> UpcycleConfig:
        if self.inner is not None:
            raise ValueError(
                "inner: an expert is a copy of the dense feed-forward and has its width; leave it out"
            )
        if self.shared is not None:
            raise ValueError("shared: a dense checkpoint has no shared expert to copy; leave it out")
        return self


def upcycled_spec(spec: Spec, config: UpcycleConfig) -> Spec:
    """`spec` with mixtures in place of dense feed-forwards. Raises DataError where no layer is one."""

    def sparse(layer: int, block: BlockSpec) -> BlockSpec:
        dense = block.feedforward
        if not isinstance(dense, FeedForwardSpec) or not config.covers(layer):
            return block
        return block.model_copy(update={"feedforward": config.spec(dense)})

    stacks = {name: tuple(sparse(*item) for item in enumerate(blocks)) for name, blocks, _ in spec.stacks()}
    made = spec.model_copy(update=stacks)
    if made == spec:
        raise DataError("upcycle: no layer becomes a mixture; lower upcycle.every or upcycle.dense")
    return made


@torch.no_grad()
def upcycle(model: Model, config: UpcycleConfig) -> Model:
    """A new model, on the CPU, with copies of `model`'s weights. Layers that are mixtures already stay as they are.

    Raises DataError where no layer becomes a mixture.
    """
    made = Model(upcycled_spec(model.spec, config), model.head_specs)
    old = dict(model.named_modules())
    taken = model.state_dict()
    for name, module in made.named_modules():
        if isinstance(module, MoE) and not isinstance(old[name], MoE):
            for part, stacked in module.experts.named_children():
                if isinstance(stacked, ExpertLinear):
                    _copy(old[name].get_submodule(part), stacked, config.noise)
                    for kind, weight in stacked.named_parameters():
                        del taken[f"{name}.{part}.{kind}"]
                        taken[f"{name}.experts.{part}.{kind}"] = weight
            taken |= {f"{name}.router.{kind}": value for kind, value in module.router.state_dict().items()}
    made.load_state_dict(taken)
    return made.train(model.training)


def _copy(dense: nn.Module, stacked: ExpertLinear, noise: float) -> None:
    """Each expert's matrix becomes the dense one's, with noise; biases are copied as they are."""
    weight = dense.get_parameter("weight")
    stacked.weight.copy_(weight.expand_as(stacked.weight))
    if noise:
        stacked.weight.add_(torch.randn_like(stacked.weight), alpha=noise * float(weight.std()))
    if stacked.bias is not None:
        stacked.bias.copy_(dense.get_parameter("bias").expand_as(stacked.bias))
