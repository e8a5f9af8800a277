"""What training a mixture of experts needs besides a model and an objective: that the two fit, and a hook.

problem = experts_problem(objective, model.spec)
hooks += balance_hooks(objective)
"""

from __future__ import annotations

from typing import Any

from nalanda.nn.spec import MoESpec, Spec
from nalanda.objectives.experts import ExpertsConfig
from nalanda.train.hooks import Hook
from nalanda.train.hooks_moe import ExpertBias


def inner_objective(objective: Any) -> Any:
    """The objective that `kind: experts` is around, or `objective` itself."""
    return objective.objective if isinstance(objective, ExpertsConfig) else objective


def experts_problem(objective: Any, spec: Spec) -> str:
    """Why the objective's terms on experts do not go with the network, in one line; empty where they do."""
    mixtures = [
        block.feedforward
        for _, blocks, _ in spec.stacks()
        for block in blocks
        if isinstance(block.feedforward, MoESpec)
    ]
    balanced = any(mixture.balance_bias for mixture in mixtures)
    if isinstance(objective, ExpertsConfig):
        if not mixtures:
            return "objective: kind 'experts' needs a model with mixtures of experts; give it `moe` or use `upcycle`"
        if objective.bias_rate and not balanced:
            return "objective.bias_rate: the model's mixtures have no balance_bias; set it there, or bias_rate to 0"
    return ""


def balance_hooks(objective: Any) -> list[Hook]:
    """The hook that moves the biases, where the objective says how far."""
    if isinstance(objective, ExpertsConfig) and objective.bias_rate:
        return [ExpertBias(objective.bias_rate)]
    return []
