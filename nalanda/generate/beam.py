"""Beam search bookkeeping, with an early stop that never changes the result. It knows no model.

    search = BeamSearch(limits_B, config, eos, stops)
    while search.alive:
        parents_M = search.advance(log_probability_NV)    # N live hypotheses before, M after
        cache.select(parents_M)                           # their last tokens: search.history_NT[:, -1]
    search.finished                                       # per row, the best hypotheses, best first

Live hypotheses of all rows lie in one flat list, so a row that needs fewer beams costs less:

    row   0 0 0 0 | 1 1 | 3 3 3      row 2 is finished, row 1 has two hypotheses that can still win
    slot  0 1 2 3 | 0 1 | 0 1 2      0 = likeliest

A hypothesis finishes when its EOS (or a token that completes a stop string) is among the row's `beams` best
continuations; it is ranked by log-probability / length ** length_penalty (length with EOS). A live one can at
best keep the log-probability it has and end at the length that favours it, which bounds its rank: below the
worst finished hypothesis kept (of `n_best`), it is dropped. Its descendants are below too, and so is everything
that would take its place, hence the result is that of the search without dropping.

Legend: B rows, N live hypotheses, K beams, W slots, C candidates, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nalanda.generate.options import DecodeConfig, Hypothesis
from nalanda.generate.stopping import StopStrings

_NEVER = float("-inf")


class BeamSearch:
    """The live and the finished hypotheses of a batch of rows."""

    def __init__(self, limits_B: Tensor, config: DecodeConfig, eos: int, stops: StopStrings) -> None:
        rows, device = len(limits_B), limits_B.device
        self.config, self.eos, self.stops = config, eos, stops
        self.limits_B = limits_B
        self.row_N = torch.arange(rows, device=device)
        self.slot_N = torch.zeros_like(self.row_N)
        self.score_N = torch.zeros(rows, dtype=torch.float64, device=device)
        self.history_NT = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        self.finished: list[list[Hypothesis]] = [[] for _ in range(rows)]
        self._worst_B = torch.full((rows,), _NEVER, dtype=torch.float64, device=device)
        alpha = config.length_penalty
        self._length_B = limits_B.double().pow(alpha) if alpha > 0 else None

    @property
    def alive(self) -> bool:
        """Whether a live hypothesis can still change the result."""
        return len(self.row_N) > 0

    def advance(self, log_probability_NV: Tensor) -> Tensor:
        """Adds a token to every live hypothesis; returns parents_M, the place before of each that lives on.

        The log-probabilities have -inf for what may not be chosen.
        """
        beams, length = self.config.beams, self.history_NT.shape[1] + 1
        score_BC, slot_BC, token_BC, ends_BC = self._candidates(log_probability_NV)
        parent_BC = self._places(log_probability_NV.device).gather(1, slot_BC)
        place_C = torch.arange(score_BC.shape[1], device=score_BC.device)
        rank_BC = score_BC / length**self.config.length_penalty
        entering_BC = ends_BC & (place_C < beams) & (rank_BC > self._worst_B[:, None])
        if bool(entering_BC.any()):
            self._finish(entering_BC, rank_BC, score_BC, parent_BC)
        # What goes on, likeliest first: the order within a row stays, endings move behind.
        order_BK = (place_C + ends_BC * len(place_C)).argsort(dim=1)[:, :beams]
        score_BK, parent_BK, token_BK = (x.gather(1, order_BK) for x in (score_BC, parent_BC, token_BC))
        score_BK = score_BK.masked_fill(ends_BC.gather(1, order_BK), _NEVER)
        row_M, slot_M = self._hopeful(score_BK, length).nonzero(as_tuple=True)
        parents_M = parent_BK[row_M, slot_M]
        history_MT = torch.cat((self.history_NT[parents_M], token_BK[row_M, slot_M, None]), dim=1)
        self.row_N, self.slot_N, self.history_NT = row_M, slot_M, history_MT
        self.score_N = score_BK[row_M, slot_M]
        keep_M = self._cut_off(length)
        return parents_M if keep_M is None else parents_M[keep_M]

    def _candidates(self, log_probability_NV: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The 2K likeliest continuations of each row: score, slot of the parent, token, whether it ends.

        At most K of them end (one per parent), so K that go on are among them. The K best of each parent and
        its EOS are enough to find them, which is far less to sort than K x V.
        """
        beams, rows = self.config.beams, len(self.limits_B)
        end_N1 = log_probability_NV[:, self.eos, None]
        on_NV = log_probability_NV.index_fill(1, end_N1.new_tensor([self.eos], dtype=torch.int64), _NEVER)
        best_NK, token_NK = on_NV.topk(min(beams, on_NV.shape[1]), dim=1)
        per_parent = best_NK.shape[1] + 1
        slots = int(self.slot_N.max()) + 1
        score_BWC = self.score_N.new_full((rows, slots, per_parent), _NEVER)
        token_BWC = token_NK.new_full((rows, slots, per_parent), self.eos)
        score_BWC[self.row_N, self.slot_N] = self.score_N[:, None] + torch.cat((best_NK, end_N1), 1).double()
        token_BWC[self.row_N, self.slot_N, :-1] = token_NK
        score_BC, index_BC = score_BWC.flatten(1).topk(min(2 * beams, slots * per_parent), dim=1)
        ends_BC = (index_BC % per_parent == per_parent - 1) & (score_BC > _NEVER)
        return score_BC, index_BC // per_parent, token_BWC.flatten(1).gather(1, index_BC), ends_BC

    def _places(self, device: torch.device) -> Tensor:
        """Where in the flat list the hypothesis of each row and slot lies."""
        places_BW = torch.zeros(
            len(self.limits_B), int(self.slot_N.max()) + 1, dtype=torch.int64, device=device
        )
        places_BW[self.row_N, self.slot_N] = torch.arange(len(self.row_N), device=device)
        return places_BW

    def _hopeful(self, score_BK: Tensor, length: int) -> Tensor:
        """Which live hypotheses may still enter the pool; the heading of the file has the argument."""
        if self._length_B is None:
            bound_BK = score_BK / (length + 1) ** self.config.length_penalty
        else:
            bound_BK = score_BK / self._length_B[:, None]
        return (score_BK > _NEVER) & (bound_BK > self._worst_B[:, None])

    def _finish(self, entering_BC: Tensor, rank_BC: Tensor, score_BC: Tensor, parent_BC: Tensor) -> None:
        """Puts candidates that end with EOS into the pool."""
        rows, places = entering_BC.nonzero(as_tuple=True)
        values = zip(
            rows.tolist(),
            rank_BC[rows, places].tolist(),
            score_BC[rows, places].tolist(),
            self.history_NT[parent_BC[rows, places]].tolist(),
        )
        for row, rank, score, ids in values:
            self._keep(row, Hypothesis(rank, score, ids, "eos"))

    def _cut_off(self, length: int) -> Tensor | None:
        """Ends hypotheses that completed a stop string or reached their row's limit; returns who lives on.

        One cut off by the limit is kept only where too few have finished by themselves, and ranks below those.
        """
        limit_N = self.limits_B[self.row_N] == length
        stopped_N = torch.tensor(self.stops.hits(self.history_NT), dtype=torch.bool, device=limit_N.device)
        ended_N = stopped_N | limit_N
        if not bool(ended_N.any()):
            return None
        rank_N = self.score_N / length**self.config.length_penalty
        worst_N = self._worst_B[self.row_N]
        kept_N = torch.where(stopped_N, rank_N > worst_N, limit_N & (worst_N == _NEVER)).nonzero().flatten()
        values = zip(
            self.row_N[kept_N].tolist(),
            rank_N[kept_N].tolist(),
            self.score_N[kept_N].tolist(),
            self.history_NT[kept_N].tolist(),
            stopped_N[kept_N].tolist(),
        )
        for row, rank, score, ids, stopped in values:
            self._keep(row, Hypothesis(rank, score, ids, "stop" if stopped else "length"))
        living_N = (~ended_N).nonzero().flatten()
        self.row_N, self.slot_N = self.row_N[living_N], self.slot_N[living_N]
        self.history_NT, self.score_N = self.history_NT[living_N], self.score_N[living_N]
        return living_N

    def _keep(self, row: int, hypothesis: Hypothesis) -> None:
        pool = self.finished[row]
        pool.append(hypothesis)
        pool.sort(key=lambda h: (h.finish != "length", h.rank), reverse=True)
        del pool[self.config.n_best :]
        if len(pool) == self.config.n_best and pool[-1].finish != "length":
            self._worst_B[row] = pool[-1].rank
