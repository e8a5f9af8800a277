"""Scaling laws: how much text a model of some size wants, and what another size would make of the same compute.

    REPLICATED.optimal_tokens(124e6)             # for which this size is the best use of compute
    REPLICATED.loss(124e6, 10e9)                 # nats per token
    tradeoff(REPLICATED, 124e6, 10e9)            # smaller and larger models of equal compute, and of equal loss

    L(N, D) = E + A / N^alpha + B / D^beta       N parameters, D tokens; compute C = 6 N D FLOPs

Minimizing L at fixed C gives N = G (C/6)^a and D = (C/6)^b / G with a = beta / (alpha + beta), b = 1 - a and
G = (alpha A / (beta B))^(1 / (alpha + beta)) (Hoffmann et al., 2022, equation 4).

Both fits are of decoders of 44 million to 16 billion parameters, trained once through English web text with a
vocabulary of 32,000: elsewhere the losses are guesses, and ratios of tokens to parameters are better than nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fit:
    """One fit of the law; `source` says whose."""

    source: str
    irreducible: float
    parameters: float
    tokens: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats per token after `tokens` tokens."""
        return self.irreducible + self.parameters / parameters**self.alpha + self.tokens / tokens**self.beta

    @property
    def _ratio(self) -> float:
        return (self.alpha * self.parameters / (self.beta * self.tokens)) ** (1 / (self.alpha + self.beta))

    def optimum(self, compute: float) -> tuple[float, float]:
        """The parameters and tokens that make the best of `compute` FLOPs."""
        share = self.beta / (self.alpha + self.beta)
        return self._ratio * (compute / 6) ** share, (compute / 6) ** (1 - share) / self._ratio

    def optimal_tokens(self, parameters: float) -> float:
        """The tokens for which a model of this size is the best use of compute."""
        return (parameters / self._ratio) ** (self.alpha / self.beta) / self._ratio

    def tokens_for(self, parameters: float, loss: float) -> float | None:
        """The tokens after which a model of this size reaches `loss`; None where it never does."""
        left = loss - self.irreducible - self.parameters / parameters**self.alpha
        return None if left <= 0 else (self.tokens / left) ** (1 / self.beta)


FITTED_FROM = 44e6
"""Parameters of the smallest model that both fits have seen."""
HOFFMANN = Fit("Hoffmann et al. 2022, approach 3", 1.69, 406.4, 410.7, 0.34, 0.28)
REPLICATED = Fit(
    "Besiroglu et al. 2024, refitting Hoffmann et al. 2022", 1.8172, 482.01, 2085.43, 0.3478, 0.3658
)
"""The one that is used: on the same data, and unlike the published constants it agrees with the two other approaches
of the paper (about 20 tokens for each parameter)."""


@dataclass(frozen=True)
class Choice:
    """A model of another size. `tokens` and `loss` at equal compute; `equal_tokens` and `equal_compute` (as a share
    of the plan's) where it reaches the plan's loss, None where it never does."""

    parameters: float
    tokens: float
    loss: float
    equal_tokens: float | None
    equal_compute: float | None


def tradeoff(
    fit: Fit, parameters: float, tokens: float, factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)
) -> list[Choice]:
    """What models of `factors` times the size make of the compute of `parameters` and `tokens`, and what they need
    for its loss. A smaller one that is trained longer costs less to use ever after."""
    compute, loss = 6 * parameters * tokens, fit.loss(parameters, tokens)
    choices = []
    for factor in factors:
        size = parameters * factor
        needed = tokens if factor == 1 else fit.tokens_for(size, loss)
        choices.append(
            Choice(
                parameters=size,
                tokens=tokens / factor,
                loss=fit.loss(size, tokens / factor),
                equal_tokens=needed,
                equal_compute=None if needed is None else 6 * size * needed / compute,
            )
        )
    return choices
