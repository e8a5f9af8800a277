"""Optimizers: AdamW, and Muon on the hidden matrices with AdamW for the rest.

    optimizer = Optimizer(AdamWConfig(lr=1e-3), model)
    optimizer.step(factor)            # `factor` from the schedule multiplies every learning rate
    optimizer.state(); optimizer.load(tensors)      # names to tensors, for checkpoints

Which weight is what is read from the modules that own them, once:

    matrix      2-D (or stacked 3-D) weights of hidden layers      decayed; Muon's
    head        matrices under `heads.` that are not tied          decayed; AdamW's
    embedding   weights of torch.nn.Embedding, tied heads included not decayed unless asked; AdamW's
    vector      norms, biases, everything 1-D                      never decayed; AdamW's

`rates` multiplies the rate of a role. With `base_width` the rates are those found on a network of that width and
are carried over to this one's as muP says (Yang et al. 2022): Adam's updates of matrices and of an untied head shrink
with the width, embeddings' and vectors' do not; Muon's spectral updates fit any width as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from nalanda.base.errors import RunError
from nalanda.config import Config, unset
from nalanda.train.lanes import Lanes
from nalanda.train.muon import Muon, Polynomial, Products, Scale

Role = Literal["matrix", "head", "embedding", "vector"]


class AdamWConfig(Config):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), on matrices only."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    decay_embeddings: bool = False
    rates: dict[Role, PositiveFloat] = Field(default={}, exclude_if=unset, description="of a role, times lr")
    base_width: int | None = Field(
        default=None, gt=0, exclude_if=unset, description="width that the rates were found at"
    )


class MuonConfig(Config):
    """Muon on hidden matrices (Jordan et al., 2024), AdamW on embeddings, heads and vectors.

    lr: the matrices' rate; with `scale: match_rms` it is on AdamW's scale. other_lr: AdamW's, None for the same.
    neurons, cautious, products: see train/muon.py.
    """

    kind: Literal["muon"] = "muon"
    lr: float = Field(default=1e-3, gt=0)
    other_lr: float | None = Field(default=None, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    newton_schulz_steps: int = Field(default=5, gt=0)
    scale: Scale = "match_rms"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    decay_embeddings: bool = False
    rates: dict[Role, PositiveFloat] = Field(
        default={}, exclude_if=unset, description="of a role, times lr or other_lr"
    )
    base_width: int | None = Field(
        default=None, gt=0, exclude_if=unset, description="width that the rates were found at"
    )
    products: Products | None = Field(
        default=None, exclude_if=unset, description="type of Muon's products; None: bf16 on GPUs, else fp32"
    )
    polynomial: Polynomial = Field(
        default="jordan",
        exclude_if="jordan".__eq__,
        description="minimax: the best polynomial for each Newton-Schulz step; a step fewer does as well",
    )
    neurons: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        exclude_if=unset,
        description="what rows' mean squares keep; None: no NorMuon",
    )
    cautious: bool = Field(
        default=False, exclude_if=unset, description="decay only entries that the update shrinks as well"
    )


OptimizerConfig = Annotated[AdamWConfig | MuonConfig, Field(discriminator="kind")]


def roles(model: nn.Module) -> dict[str, Role]:
    """What each trainable weight of `model` is, by name; a tied weight appears once, as an embedding."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found: dict[str, Role] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if id(weight) in embeddings:
            found[name] = "embedding"
        elif weight.ndim < 2:
            found[name] = "vector"
        else:
            found[name] = "head" if name.startswith("heads.") else "matrix"
    return found


def _shares(config: AdamWConfig | MuonConfig, model: nn.Module) -> dict[Role, float]:
    """What each role's rate is multiplied by. Raises RunError where `base_width` cannot be carried over."""
    shares: dict[Role, float] = {role: config.rates.get(role, 1.0) for role in get_args(Role)}
    if config.base_width is None:
        return shares
    width = getattr(getattr(model, "spec", None), "hidden", None)
    if width is None:
        raise RunError("optimizer.base_width: this model does not say how wide it is; leave it out")
    spectral = isinstance(config, MuonConfig) and config.scale == "spectral"
    shares["head"] *= config.base_width / width
    shares["matrix"] *= 1.0 if spectral else config.base_width / width
    return shares


def fused_rows(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Rows of each part of the weights that hold several matrices, by name.

    A module says so with an attribute `fused_rows`: weight name -> rows of its parts.
    """
    found: dict[str, tuple[int, ...]] = {}
    for prefix, module in model.named_modules():
        for name, rows in getattr(module, "fused_rows", {}).items():
            found[f"{prefix}.{name}" if prefix else name] = tuple(rows)
    return found


class Optimizer:
    """One or two torch optimizers over a model's trainable weights, with state by the weights' names."""

    def __init__(self, config: AdamWConfig | MuonConfig, model: nn.Module) -> None:
        """Raises RunError when the model has nothing to train."""
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.named:
            raise RunError("the model has no trainable weight; unfreeze some or choose another adapter")
        self.roles = roles(model)
        self._shares = _shares(config, model)
        self.parts: list[torch.optim.Optimizer] = []
        by_adam = list(self.named)
        lr = config.lr
        if isinstance(config, MuonConfig):
            by_muon = [n for n in self.named if self.roles[n] == "matrix"]
            by_adam = [n for n in self.named if self.roles[n] != "matrix"]
            lr = config.other_lr or config.lr
            if by_muon:
                self.parts.append(self._muon(config, by_muon, fused_rows(model)))
        if by_adam:
            self.parts.append(self._adamw(config, by_adam, lr))
        self._peaks = [[float(g["lr"]) for g in part.param_groups] for part in self.parts]

    def _muon(self, config: MuonConfig, names: Iterable[str], fused: dict[str, tuple[int, ...]]) -> Muon:
        return Muon(
            [(name, self.named[name], fused.get(name, ())) for name in names],
            lr=config.lr * self._shares["matrix"],
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            steps=config.newton_schulz_steps,
            scale=config.scale,
            products=config.products,
            polynomial=config.polynomial,
            neurons=config.neurons,
            cautious=config.cautious,
        )

    def _adamw(self, config: AdamWConfig | MuonConfig, names: list[str], lr: float) -> torch.optim.Optimizer:
        decayed = {"matrix", "head"} | ({"embedding"} if config.decay_embeddings else set())
        by_kind: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name in sorted(names, key=lambda n: self.roles[n] not in decayed):
            role = self.roles[name]
            by_kind.setdefault((role in decayed, self._shares[role]), []).append(self.named[name])
        groups = [
            {"params": weights, "weight_decay": config.weight_decay * decays, "lr": lr * share}
            for (decays, share), weights in by_kind.items()
        ]
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in self.named.values())
        return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=fused)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights that are trained."""
        return list(self.named.values())

    def step(self, factor: float) -> float:
        """Updates the weights with every rate at `factor` of its peak; returns the first group's rate."""
        for part, peaks in zip(self.parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
        return self._peaks[0][0] * factor

    def share_out(self, lanes: Lanes) -> None:
        """Lets Muon use the lanes of the loop between two backward passes; the updates are the same."""
        for part in self.parts:
            if isinstance(part, Muon):
                part.lanes = lanes

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every state tensor, as `WEIGHT/KEY`."""
        tensors: dict[str, Tensor] = {}
        for part in self.parts:
            for name, weight in self.named.items():
                for key, value in part.state.get(weight, {}).items():
                    tensors[f"{name}/{key}"] = value
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what `state` gave, and that alone. Raises RunError for a state of another model or optimizer."""
        for part in self.parts:
            part.state.clear()
        owner = {id(p): part for part in self.parts for group in part.param_groups for p in group["params"]}
        for key, value in tensors.items():
            name, _, field = key.rpartition("/")
            weight = self.named.get(name)
            if weight is None:
                raise RunError(f"optimizer state names the weight '{name}', which the model does not train")
            column = (*weight.shape[:-1], 1)  # a number for each row
            if value.ndim and tuple(value.shape) not in (tuple(weight.shape), column):
                raise RunError(
                    f"optimizer state of '{name}' is {tuple(value.shape)}, the weight {tuple(weight.shape)}"
                )
            owner[id(weight)].state[weight][field] = value.to(weight.device).clone()
