"""One batch of prompts being continued: the model's side of decoding, for greedy, sampling and beam search alike.

    session = Session(model, prompts, seeds, tokenizer, config)   # encodes, or reads the prompts, once
    while session.alive:
        session.advance()                                         # one token for every hypothesis that lives
    session.results()

The prompts' states are computed once. A step feeds each live hypothesis its last token; keys and values of what
came before, and of the encoder's output, come from the cache, which follows the search's reordering.

    encoder-decoder   source ids -> encoder;   decoder: BOS -> first token -> ...
    decoder           prompt ids, padded on the left so that all rows grow at one place -> first token -> ...

Legend: B rows, N live hypotheses, P prompt, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nalanda.generate import sampling
from nalanda.generate.batching import pad, room
from nalanda.generate.beam import BeamSearch
from nalanda.generate.options import DecodeConfig, Generation, Hypothesis, Vocabulary
from nalanda.generate.paths import Paths
from nalanda.generate.stopping import StopStrings
from nalanda.nn.cache import Cache
from nalanda.nn.model import Model
from nalanda.nn.transformer import Memory

_NEVER = float("-inf")


class Session:
    """A batch in progress. The model is in evaluation mode and the prompts have passed `check_prompts`."""

    @torch.inference_mode()
    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        tokenizer: Vocabulary,
        config: DecodeConfig,
        starts: Sequence[int] | None = None,
        forced: Sequence[int | None] | None = None,
    ) -> None:
        """`starts`: what each row's decoder starts from, beside an encoder; None: BOS. `forced`: each row's first
        token, where it is given."""
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.device = next(model.parameters()).device
        self.stops = StopStrings(config.stop, tokenizer)
        self._forbidden_F = _forbidden(tokenizer, model.spec.vocabulary).to(self.device)
        limits = room(model, prompts, config.max_length)
        limits_B = torch.tensor(limits, device=self.device)
        self.search: BeamSearch | Paths
        if config.kind == "beam":
            self.search = BeamSearch(limits_B, config, tokenizer.eos, self.stops)
        else:
            row_seeds = np.array(seeds, dtype=np.uint64)
            self.search = Paths(limits_B, config, tokenizer.eos, self.stops, row_seeds)
        self._ends_E = torch.tensor(tokenizer.ends[1:], dtype=torch.int64, device=self.device)
        self._forced = forced or [None] * len(prompts)
        self._forced_B = None
        if forced is not None and any(token is not None for token in forced):
            self._forced_B = torch.tensor([-1 if t is None else t for t in forced], device=self.device)
        self._start(prompts, max(limits), starts)

    @property
    def alive(self) -> bool:
        """Whether any hypothesis can still grow."""
        return self.search.alive

    @torch.inference_mode()
    def advance(self) -> None:
        """Chooses one token for every live hypothesis and runs the model on those that go on."""
        rows_N = self.search.row_N
        parents_M = self.search.advance(self._log_probability())
        if not self.search.alive:
            return
        rows_M = self.search.row_N
        if parents_M is not None:
            # Hypotheses of one row have one source: reordered among themselves, the source need not be moved.
            moved = len(rows_M) != len(rows_N) or not torch.equal(rows_M, rows_N)
            self.cache.select(parents_M, source=moved)
        length = self.search.history_NT.shape[1]
        # A row that has ended but not yet left the batch must not run out of positions.
        positions_M = torch.minimum(self._start_B[rows_M] + length - 1, self._last_B[rows_M])
        self._read(self.search.history_NT[:, -1:], None, positions_M[:, None])

    def results(self) -> list[Generation]:
        """The best text of each prompt, when nothing is alive any more."""
        texts = [
            [self._generation(hypothesis, forced) for hypothesis in hypotheses]
            for hypotheses, forced in zip(self.search.finished, self._forced)
        ]
        return [replace(best, alternatives=tuple(others)) for best, *others in texts]

    def _generation(self, hypothesis: Hypothesis, forced: int | None) -> Generation:
        if hypothesis.finish == "stop":
            ids, text = self.stops.cut(hypothesis.ids)
        else:
            ids, text = hypothesis.ids, self.tokenizer.decode(hypothesis.ids)
        if forced is not None and ids[:1] == [forced]:
            ids = ids[1:]
        return Generation(ids, text, hypothesis.score, hypothesis.finish)

    def _start(self, prompts: Sequence[Sequence[int]], longest: int, starts: Sequence[int] | None) -> None:
        """Reads the prompts; the logits of the first new token are there afterwards."""
        transformer, pad_id = self.model.transformer, self.tokenizer.pad
        if transformer.both:
            memory = transformer.encode(*pad(prompts, pad_id, "right", self.device))
            self.cache = Cache(longest)
            begin = [self.tokenizer.bos] * len(prompts) if starts is None else list(starts)
            begin_B1 = torch.tensor(begin, device=self.device)[:, None]
            self._start_B = torch.ones(len(prompts), dtype=torch.int64, device=self.device)
            self._prompt_BP = begin_B1[:, :0]
            self._padding_BP = self._prompt_BP.bool()
            self._read(begin_B1, None, None, memory)
        else:
            ids_BP, segments_BP, positions_BP = pad(prompts, pad_id, "left", self.device)
            self.cache = Cache(ids_BP.shape[1] + longest)
            self._start_B = (segments_BP > 0).sum(dim=1)
            self._prompt_BP, self._padding_BP = ids_BP, segments_BP == 0
            self._read(ids_BP, segments_BP, positions_BP)
        limit = self.model.spec.decoder_position.limit
        self._last_B = torch.full_like(
            self._start_B, torch.iinfo(torch.int64).max if limit is None else limit - 1
        )

    def _read(
        self,
        ids_NT: Tensor,
        segments_NT: Tensor | None,
        positions_NT: Tensor | None,
        memory: Memory | None = None,
    ) -> None:
        output = self.model.transformer(ids_NT, segments_NT, positions_NT, memory=memory, cache=self.cache)
        self._logits_NV = self.model.logits(output.hidden_BTD[:, -1]).float()

    def _log_probability(self) -> Tensor:
        """Log-probabilities of the next token, N x V, with -inf for what may not be chosen."""
        config, search, logits_NV = self.config, self.search, self._logits_NV
        history_NT = search.history_NT
        prompt_NP = self._prompt_BP[search.row_N]
        if config.repetition_penalty != 1.0:
            # Padding stands for the prompt's last token, which is seen anyway: it must not be penalized itself.
            seen_NP = torch.where(self._padding_BP[search.row_N], prompt_NP[:, -1:], prompt_NP)
            seen_NT = torch.cat((seen_NP, history_NT), dim=1)
            logits_NV = sampling.repetition_penalty(logits_NV, seen_NT, config.repetition_penalty)
        scores_NV = logits_NV - logits_NV.logsumexp(dim=1, keepdim=True)
        if len(self._ends_E):
            self._join_ends(scores_NV)
        ends_N = scores_NV[:, self.tokenizer.eos].clone()
        scores_NV.index_fill_(1, self._forbidden_F, _NEVER)
        if history_NT.shape[1] < config.min_length:
            scores_NV[:, self.tokenizer.eos] = _NEVER
        if config.no_repeat_ngram:
            all_NT = torch.cat((prompt_NP, history_NT), dim=1)
            scores_NV = sampling.block_repeated_ngrams(scores_NV, all_NT, config.no_repeat_ngram)
            # Where every token would repeat something, the text can only end.
            stuck_N = scores_NV.amax(dim=1) == _NEVER
            end_N = torch.where(stuck_N, ends_N, scores_NV[:, self.tokenizer.eos])
            scores_NV[:, self.tokenizer.eos] = end_N
        if self._forced_B is not None and history_NT.shape[1] == 0:
            self._force(scores_NV, self._forced_B[search.row_N])
        return scores_NV

    def _join_ends(self, scores_NV: Tensor) -> None:
        """All ids that end a text count as EOS: a sample draws any of them, a search takes the likeliest."""
        every_E = torch.cat((self._ends_E, self._ends_E.new_tensor([self.tokenizer.eos])))
        found_NE = scores_NV[:, every_E]
        drawn = self.config.kind == "sample"
        scores_NV[:, self.tokenizer.eos] = found_NE.logsumexp(1) if drawn else found_NE.amax(1)
        scores_NV.index_fill_(1, self._ends_E, _NEVER)

    def _force(self, scores_NV: Tensor, forced_N: Tensor) -> None:
        """Only the forced token can come, at no cost, in the rows that have one."""
        rows_M = (forced_N >= 0).nonzero().flatten()
        scores_NV[rows_M] = _NEVER
        scores_NV[rows_M, forced_N[rows_M]] = 0.0


def _forbidden(tokenizer: Vocabulary, vocabulary: int) -> Tensor:
    """Ids that are never generated: special tokens except EOS, and rows of the model that are no token."""
    special = tokenizer.special_ids | set(range(tokenizer.vocabulary, vocabulary))
    return torch.tensor(sorted(special - {tokenizer.eos}), dtype=torch.int64)
