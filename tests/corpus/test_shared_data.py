"""Every file of message pairs in the benchmark data is read, row for row."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.readers import read
from nalanda.corpus.sources import JsonlSource, TextSource


@pytest.mark.shared
@pytest.mark.slow
def test_all_pairs_are_read(shared_data: Path) -> None:
    paths = sorted((shared_data / "mt/ui").glob("*.jsonl.gz"))
    assert len(paths) >= 60
    total = 0
    for path in paths:
        with gzip.open(path) as file:
            expected = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
        quarantine = Quarantine()
        source = JsonlSource(path=str(path), text="en", target="xx", origin_field="source", language="en")
        assert sum(1 for _ in read(source, quarantine)) == expected, path
        assert quarantine.ledger.total("quarantined") == 0
        total += expected
    assert total > 700_000


@pytest.mark.shared
def test_aligned_files_are_read_line_by_line(shared_data: Path) -> None:
    paths = sorted((shared_data / "mt/flores200").glob("*.dev.gz"))
    for path in paths:
        quarantine = Quarantine()
        rows = list(read(TextSource(path=str(path)), quarantine))
        assert len(rows) == 997, path
        assert quarantine.ledger.total("quarantined") == 0
