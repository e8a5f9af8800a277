"""Balance among experts without a loss: after each step every expert's bias moves towards even loads.

    hooks = [ExpertBias(rate=0.001), ...]       # with an objective that tallies the choices (objectives/experts.py)

An expert that was chosen less than its share in the step becomes `rate` easier to choose, the others harder (Wang et
al. 2024, DeepSeek-V3). The biases are buffers of the model, so checkpoints and exported models hold them.
"""

from __future__ import annotations

import torch

from nalanda.nn.moe import Router
from nalanda.train.hooks import Hook, Moment


class ExpertBias(Hook):
    """Moves `balance_bias` of every router that has one by `rate`. Put it before hooks that keep the best weights."""

    name = "expert_bias"

    def __init__(self, rate: float) -> None:
        self.rate = rate

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """By the loads of the whole step, whatever its split."""
        for name, module in moment.model.named_modules():
            if isinstance(module, Router) and module.balance_bias is not None and name in moment.tallies:
                load_E = moment.tallies[name]
                missing_E = load_E.double().mean() - load_E
                module.balance_bias.add_(missing_E.sign().to(module.balance_bias.dtype), alpha=self.rate)
