"""Ragged rows against plain lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nalanda.data.ragged import Ragged, concatenate, join, ragged, ranks

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=8)


def lists(rows: Ragged) -> list[list[int]]:
    return [part.tolist() for part in np.split(rows.flat, np.cumsum(rows.lengths)[:-1])]


@given(ROWS, st.data())
@settings(max_examples=100, deadline=None)
def test_operations_equal_those_on_lists(rows: list[list[int]], data: st.DataObject) -> None:
    packed = ragged(rows)
    assert lists(packed) == rows
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1))
    assert lists(packed.take(np.array(order))) == [rows[i] for i in order]
    assert lists(packed.affix(prefix=np.arange(len(rows)), suffix=7)) == [
        [i, *r, 7] for i, r in enumerate(rows)
    ]
    assert lists(packed.affix(suffix=7)) == [[*r, 7] for r in rows]
    assert lists(packed.head(2)) == [r[:2] for r in rows]
    assert lists(packed.keep(packed.flat % 2 == 0)) == [[x for x in r if x % 2 == 0] for r in rows]
    assert packed.places().tolist() == [p for r in rows for p in range(len(r))]
    assert packed.rows().tolist() == [i for i, r in enumerate(rows) for _ in r]
    assert packed.pad(7, -1, len(rows) + 1).tolist() == [r + [-1] * (7 - len(r)) for r in [*rows, []]]
    assert lists(concatenate([packed, packed])) == rows + rows
    assert lists(join(packed, packed.head(1))) == [r + r[:1] for r in rows]


@given(ROWS)
@settings(max_examples=50, deadline=None)
def test_ranks(rows: list[list[int]]) -> None:
    packed = ragged(rows)
    found = lists(Ragged(ranks(packed.flat, packed.rows(), packed.starts), packed.lengths))
    for row, rank in zip(rows, found):
        assert [row[i] for i in np.argsort(rank)] == sorted(row)
        assert sorted(rank) == list(range(len(row)))
