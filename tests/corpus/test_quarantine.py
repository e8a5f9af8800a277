"""The quarantine keeps place, reason and bytes, and stops a run that loses too much."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from nalanda.base.errors import DataError
from nalanda.corpus.quarantine import Quarantine


def test_records_hold_place_reason_and_bytes(tmp_path: Path) -> None:
    with Quarantine(folder=tmp_path, source="my names") as quarantine:
        quarantine.saw()
        quarantine.add("a.txt", "not UTF-8", row=3, offset=17, data=b"\xff\xfe", language="hin_Deva")
    record = json.loads((tmp_path / "my_names.jsonl").read_text(encoding="utf-8"))
    assert base64.b64decode(record.pop("bytes")) == b"\xff\xfe"
    assert record == {
        "file": "a.txt", "row": 3, "offset": 17, "length": 2, "reason": "not UTF-8", "language": "hin_Deva"
    }  # fmt: skip
    quarantine.ledger.check()


def test_nothing_is_written_where_nothing_is_damaged(tmp_path: Path) -> None:
    with Quarantine(folder=tmp_path) as quarantine:
        quarantine.saw()
    assert list(tmp_path.iterdir()) == []


def test_too_large_a_share_stops_and_names_the_first_reasons() -> None:
    quarantine = Quarantine(source="names", max_share=0.05)
    for row in range(100):
        quarantine.saw()
        if row >= 94:
            quarantine.add("a.txt", "not UTF-8", row=row)
    with pytest.raises(DataError, match=r"6 of 100 rows .* a\.txt, row 94: not UTF-8; a\.txt, row 95"):
        quarantine.close()


def test_a_share_at_the_bound_passes() -> None:
    quarantine = Quarantine(max_share=0.05)
    for row in range(100):
        quarantine.saw()
        if row < 5:
            quarantine.add("a.txt", "bad")
    quarantine.close()


def test_a_flood_stops_before_the_end() -> None:
    quarantine = Quarantine(max_share=0.5)
    for _ in range(9_999):
        quarantine.saw()
        quarantine.add("a.bin", "bad")
    quarantine.saw()
    with pytest.raises(DataError):
        quarantine.add("a.bin", "bad")
    assert quarantine.ledger.total("quarantined") == 10_000


def test_long_bytes_are_cut_and_their_length_kept(tmp_path: Path) -> None:
    with Quarantine(folder=tmp_path) as quarantine:
        quarantine.saw()
        quarantine.add("a.txt", "long", data=b"x" * 100_000)
    record = json.loads((tmp_path / "source.jsonl").read_text(encoding="utf-8"))
    assert record["length"] == 100_000
    assert len(base64.b64decode(record["bytes"])) == 65536
