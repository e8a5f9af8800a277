"""Exact duplicates."""

from __future__ import annotations

import dataclasses

from nalanda.corpus.dedup import ExactDedup
from nalanda.corpus.document import Document


def test_the_first_of_equal_rows_is_new_whatever_its_id() -> None:
    dedup = ExactDedup()
    row = Document("Sun", "1", "eng_Latn", "सूर्य", "hin_Deva", "a")
    assert dedup.is_new(row)
    assert not dedup.is_new(dataclasses.replace(row, id="2", origin="b"))
    for change in (
        {"text": "Suns"},
        {"target": "रवि"},
        {"target": None},
        {"target_language": "mar_Deva"},
        {"language": ""},
    ):
        assert dedup.is_new(dataclasses.replace(row, **change)), change
    assert len(dedup) == 6


def test_rows_that_join_to_the_same_text_differ() -> None:
    dedup = ExactDedup()
    assert dedup.is_new(Document("a\0b", "1", "x", "c", "y"))
    assert dedup.is_new(Document("a", "1", "x", "b\0c", "y"))
    assert dedup.is_new(Document("a", "1", "x", None, "y"))
    assert dedup.is_new(Document("a", "1", "x", "", "y"))
