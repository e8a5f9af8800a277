"""Beam search on a written table of probabilities, against exhaustive search and a plain reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from nalanda.generate.beam import BeamSearch
from nalanda.generate.options import DecodeConfig
from nalanda.generate.stopping import StopStrings

EOS, VOCABULARY, LENGTH = 0, 4, 4
NEVER = float("-inf")


class Table:
    """A made-up language model: the log-probabilities after a prefix depend on the row and the whole prefix."""

    def __init__(self, seed: int, sharpness: float = 1.5) -> None:
        self.seed, self.sharpness = seed, sharpness
        self.known: dict[tuple[int, ...], Tensor] = {}

    def after(self, row: int, prefix: tuple[int, ...]) -> Tensor:
        key = (row, *prefix)
        if key not in self.known:
            generator = torch.Generator().manual_seed(hash((self.seed, *key)) % 2**31)
            logits = torch.randn(VOCABULARY, generator=generator) * self.sharpness
            self.known[key] = logits.log_softmax(0)
        return self.known[key]

    def score(self, row: int, sequence: tuple[int, ...]) -> float:
        return sum(self.after(row, sequence[:i])[token].item() for i, token in enumerate(sequence))


class Letters:
    """A tokenizer whose ids are letters."""

    vocabulary, pad, bos, eos, special_ids = VOCABULARY, 9, 9, EOS, frozenset({EOS})

    def decode(self, ids: list[int]) -> str:
        return "".join("-abc"[i] for i in ids)


def search(
    table: Table, rows: int, limit: int = LENGTH, stop: tuple[str, ...] = (), **options: object
) -> BeamSearch:
    config = DecodeConfig(kind="beam", max_length=limit, stop=stop, **options)  # type: ignore[arg-type]
    found = BeamSearch(torch.full((rows,), limit), config, EOS, StopStrings(stop, Letters()))
    while found.alive:
        prefixes = zip(found.row_N.tolist(), found.history_NT.tolist())
        before = [(row, ids) for row, ids in zip(found.row_N.tolist(), found.history_NT.tolist())]
        parents = found.advance(torch.stack([table.after(row, tuple(ids)) for row, ids in prefixes]))
        for (row, ids), parent in zip(zip(found.row_N.tolist(), found.history_NT.tolist()), parents.tolist()):
            assert before[parent] == (row, ids[:-1])  # what the cache is reordered by
    return found


def exhaustive(table: Table, row: int, alpha: float, limit: int = LENGTH) -> list[tuple[float, list[int]]]:
    found = []
    for length in range(1, limit + 1):
        for body in itertools.product(range(1, VOCABULARY), repeat=length - 1):
            found.append((table.score(row, (*body, EOS)) / length**alpha, list(body)))
    return sorted(found, reverse=True)


def plain(table: Table, row: int, beams: int, alpha: float, limit: int) -> list[tuple[float, list[int]]]:
    """Beam search as a textbook has it: every beam lives to the limit, nothing stops early."""
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished = []
    for length in range(1, limit + 1):
        candidates = []
        for score, prefix in live:
            for token, value in enumerate(table.after(row, prefix).double().tolist()):
                candidates.append((score + value, (*prefix, token)))
        candidates.sort(reverse=True)
        ends = [c for c in candidates[:beams] if c[1][-1] == EOS]
        finished += [(score / length**alpha, list(ids[:-1])) for score, ids in ends]
        live = [c for c in candidates if c[1][-1] != EOS][:beams]
    return sorted(finished, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_as_wide_as_the_tree_finds_the_best(seed: int, alpha: float) -> None:
    table = Table(seed)
    found = search(table, rows=3, beams=VOCABULARY**LENGTH, length_penalty=alpha, n_best=5)
    for row in range(3):
        expected = exhaustive(table, row, alpha)[:5]
        assert [h.ids for h in found.finished[row]] == [ids for _, ids in expected]
        assert [h.rank for h in found.finished[row]] == pytest.approx(
            [rank for rank, _ in expected], abs=1e-6
        )


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.5, -0.5])
@pytest.mark.parametrize(("beams", "n_best"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (5, 1), (5, 4)])
def test_stopping_early_and_dropping_beams_never_change_the_result(
    beams: int, alpha: float, n_best: int
) -> None:
    for seed in range(12):
        table = Table(seed)
        found = search(table, rows=2, limit=7, beams=beams, length_penalty=alpha, n_best=n_best)
        for row in range(2):
            expected = plain(table, row, beams, alpha, 7)[:n_best]
            complete = [h for h in found.finished[row] if h.finish == "eos"]
            assert [h.ids for h in complete] == [ids for _, ids in expected]


def test_the_early_stop_saves_steps() -> None:
    class Counting(Table):
        calls = 0

        def after(self, row: int, prefix: tuple[int, ...]) -> Tensor:
            self.calls += 1
            return super().after(row, prefix)

    table = Counting(1)
    search(table, rows=1, limit=30, beams=3, length_penalty=0.0)
    assert table.calls < 3 * 15


def test_the_length_penalty_prefers_longer_texts() -> None:
    lengths = []
    for alpha in (-2.0, 0.0, 1.0, 3.0):
        found = [search(Table(seed), 1, beams=8, length_penalty=alpha).finished[0][0] for seed in range(10)]
        lengths.append(sum(len(h.ids) for h in found))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_a_text_cut_off_by_the_limit_is_the_last_resort() -> None:
    class Endless(Table):
        def after(self, row: int, prefix: tuple[int, ...]) -> Tensor:
            value = super().after(row, prefix).clone()
            value[EOS] = -0.1 if row == 1 and len(prefix) == 1 else NEVER
            return value

    found = search(Endless(3), rows=2, beams=3, length_penalty=1.0)
    assert [h.finish for h in found.finished[0]] == ["length"]
    assert len(found.finished[0][0].ids) == LENGTH
    assert [h.finish for h in found.finished[1]] == ["eos"]


def test_a_stop_string_ends_a_hypothesis() -> None:
    table = Table(5)
    free = search(table, rows=1, beams=64, length_penalty=0.0, n_best=64).finished[0]
    assert any("ab" in Letters().decode(h.ids) for h in free)
    stopped = search(table, rows=1, beams=64, length_penalty=0.0, n_best=64, stop=("ab",)).finished[0]
    assert {h.finish for h in stopped} >= {"eos", "stop"}
    for hypothesis in stopped:
        text = Letters().decode(hypothesis.ids)
        assert ("ab" in text) == (hypothesis.finish == "stop")
        if hypothesis.finish == "stop":
            assert text.index("ab") == len(text) - 2
            assert hypothesis.score == pytest.approx(table.score(0, tuple(hypothesis.ids)), abs=1e-5)
