"""Greedy and sampled decoding bookkeeping: one hypothesis per row. The counterpart of `beam.BeamSearch`.

    paths = Paths(limits_B, config, eos, stops, seeds_B)
    while paths.alive:
        parents_M = paths.advance(log_probability_NV)   # None: the same rows go on, in the same order
        if parents_M is not None:
            cache.select(parents_M)
    paths.finished

A row that has ended leaves the batch together with others once an eighth of the batch has ended: moving the
cache of those that go on costs more than one row's step. Until then its tokens are ignored.

Legend: B rows, N rows still in the batch, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nalanda.generate import sampling
from nalanda.generate.options import DecodeConfig, Finish, Hypothesis
from nalanda.generate.stopping import StopStrings


class Paths:
    """The growing text of each row of a batch."""

    def __init__(
        self, limits_B: Tensor, config: DecodeConfig, eos: int, stops: StopStrings, seeds_B: np.ndarray
    ) -> None:
        rows, device = len(limits_B), limits_B.device
        self.config, self.eos, self.stops = config, eos, stops
        self.row_N = torch.arange(rows, device=device)
        self.history_NT = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        self.finished: list[list[Hypothesis]] = [[] for _ in range(rows)]
        self._limits_N, self._seeds_N = limits_B, seeds_B
        self._score_N = torch.zeros(rows, dtype=torch.float64, device=device)
        self._ended_N = torch.zeros(rows, dtype=torch.bool, device=device)

    @property
    def alive(self) -> bool:
        """Whether any row goes on."""
        return len(self.row_N) > 0

    def advance(self, log_probability_NV: Tensor) -> Tensor | None:
        """Adds a token to every row; returns the places of the rows kept, None where all are.

        The log-probabilities have -inf for what may not be chosen.
        """
        token_N = self._pick(log_probability_NV)
        self._score_N += log_probability_NV.gather(1, token_N[:, None])[:, 0].double()
        self.history_NT = torch.cat((self.history_NT, token_N[:, None]), dim=1)
        eos_N = ~self._ended_N & (token_N == self.eos)
        self._end(eos_N, "eos")
        if self.stops.stops:
            hits = self.stops.hits(self.history_NT)
            self._end(torch.tensor(hits, device=token_N.device) & ~self._ended_N, "stop")
        self._end(~self._ended_N & (self._limits_N == self.history_NT.shape[1]), "length")
        return self._compact()

    def _pick(self, log_probability_NV: Tensor) -> Tensor:
        config = self.config
        if config.kind == "greedy":
            return log_probability_NV.argmax(dim=1)
        logits_NV = sampling.top_k(log_probability_NV / config.temperature, config.top_k)
        logits_NV = sampling.min_p(sampling.top_p(logits_NV, config.top_p), config.min_p)
        return sampling.choose(logits_NV, sampling.uniforms(self._seeds_N, self.history_NT.shape[1]))

    def _end(self, which_N: Tensor, finish: Finish) -> None:
        places_E = which_N.nonzero().flatten()
        if len(places_E) == 0:
            return
        self._ended_N = self._ended_N | which_N
        ids_ET = self.history_NT[places_E, :-1] if finish == "eos" else self.history_NT[places_E]
        scores = self._score_N[places_E].tolist()
        for row, score, ids in zip(self.row_N[places_E].tolist(), scores, ids_ET.tolist()):
            self.finished[row].append(Hypothesis(score, score, ids, finish))

    def _compact(self) -> Tensor | None:
        ended = int(self._ended_N.sum())
        if 8 * ended < len(self.row_N):
            return None
        living_N = (~self._ended_N).nonzero().flatten()
        self._seeds_N = self._seeds_N[living_N.cpu().numpy()]
        self.row_N, self.history_NT = self.row_N[living_N], self.history_NT[living_N]
        self._limits_N, self._score_N = self._limits_N[living_N], self._score_N[living_N]
        self._ended_N = self._ended_N[living_N]
        return living_N
