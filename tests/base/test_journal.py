"""metrics.jsonl: whole lines, and a checkpoint that knows whether the rows before it are what they were."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nalanda.base import journal as module
from nalanda.base.errors import UserError
from nalanda.base.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        made.append({"step": step, "loss": 1 / step})
    yield made
    made.close()


def test_a_mark_holds_until_a_byte_before_it_changes(journal: Journal) -> None:
    mark = journal.mark()
    journal.append({"step": 4})
    assert journal.problem(mark) == ""
    journal.rewind(3)
    assert journal.problem(mark) == ""
    journal.append({"step": 4})
    assert journal.mark()["bytes"] > mark["bytes"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes().replace(b"0.5", b"0.4")), "SHA-256 differs"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "truncated"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_damage_before_a_mark_is_named(journal: Journal, harm: Callable[[Path], Any], said: str) -> None:
    mark = journal.mark()
    journal.close()
    harm(journal.path)
    assert said in journal.problem(mark)
    assert "metrics.jsonl" in journal.problem(mark)


def test_the_mark_of_a_file_that_was_there_before_counts_all_of_it(journal: Journal) -> None:
    journal.close()
    again = Journal(journal.path)
    assert again.mark() == journal.mark()
    again.close()


def test_a_full_disk_is_one_line_and_closing_says_nothing_more(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            return

    before = journal.path.read_bytes()
    journal.close()
    monkeypatch.setattr(journal, "_file", Full())
    with pytest.raises(UserError, match=r"metrics\.jsonl: the disk is full"):
        journal.append({"step": 4})
    journal.close()
    assert journal.path.read_bytes() == before


def test_rows_of_a_damaged_file_that_can_be_read_stay(journal: Journal) -> None:
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"step": "x"}\n{"stop": 7}\n\x00\xff\n')
    journal.rewind(2)
    assert journal.path.read_bytes().count(b"\n") == 4
    assert module.metrics_row(b"\xff") is None
