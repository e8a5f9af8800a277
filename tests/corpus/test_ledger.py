"""The ledger adds up, and says so when it does not."""

from __future__ import annotations

import pytest

from nalanda.corpus.ledger import Ledger


def filled() -> Ledger:
    ledger = Ledger()
    for fate, reason in [("kept", ""), ("filtered", "untranslated"), ("duplicate", ""), ("quarantined", "")]:
        ledger.saw("names")
        ledger.arrived("names", "hin_Deva")
        ledger.count("names", "hin_Deva", fate, reason)
    return ledger


def test_rows_are_counted_by_source_language_and_fate() -> None:
    ledger = filled()
    ledger.check()
    row = {"read": 4, "kept": 1, "filtered": {"untranslated": 1}, "duplicate": 1, "quarantined": 1}
    assert ledger.to_dict() == {"sources": {"names": {"hin_Deva": row}}, "total": row}


def test_a_row_read_and_forgotten_is_found() -> None:
    ledger = filled()
    ledger.saw("names")
    ledger.arrived("names", "tam_Taml")
    with pytest.raises(RuntimeError, match="names, tam_Taml: 1 read, 0 accounted for"):
        ledger.check()


def test_a_row_met_that_never_came_out_is_found() -> None:
    ledger = filled()
    ledger.saw("names")
    with pytest.raises(RuntimeError, match="5 rows met, 4 came out"):
        ledger.check()


def test_a_row_counted_twice_is_found() -> None:
    ledger = filled()
    ledger.count("names", "hin_Deva", "kept")
    with pytest.raises(RuntimeError, match="4 read, 5 accounted for"):
        ledger.check()


def test_a_kept_row_may_move_to_filtered_once() -> None:
    ledger = filled()
    ledger.move("names", "hin_Deva", "near_test")
    ledger.check()
    assert ledger.to_dict()["total"]["kept"] == 0
    assert ledger.to_dict()["total"]["filtered"] == {"near_test": 1, "untranslated": 1}
    ledger.move("names", "hin_Deva", "near_test")
    with pytest.raises(RuntimeError, match="below zero"):
        ledger.check()


def test_a_fate_needs_a_reason_exactly_when_filtered() -> None:
    for fate, reason in [("filtered", ""), ("kept", "nice"), ("lost", "")]:
        with pytest.raises(ValueError):
            Ledger().count("names", "hin_Deva", fate, reason)
