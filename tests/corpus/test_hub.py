"""The hub reader against a stand-in for the package `datasets`, which the tests do not need."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import pytest

from nalanda.base.errors import DataError
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.readers import check, read
from nalanda.corpus.sources import HubSource


def library(rows: object) -> types.ModuleType:
    module = types.ModuleType("datasets")
    module.calls = []  # type: ignore[attr-defined]

    def load_dataset(*names: object, **options: object) -> object:
        module.calls.append((names, options))  # type: ignore[attr-defined]
        if isinstance(rows, Exception):
            raise rows
        return rows

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    return module


def test_rows_are_streamed_and_bad_ones_quarantined(monkeypatch: pytest.MonkeyPatch) -> None:
    module = library([{"text": "एक"}, {"body": "x"}, {"text": "दो"}])
    monkeypatch.setitem(sys.modules, "datasets", module)
    quarantine = Quarantine(source="hub")
    source = HubSource(dataset="a/b", subset="hi", language="hi")
    assert [(d.text, d.id) for d in read(source, quarantine)] == [("एक", "hub:1"), ("दो", "hub:3")]
    assert quarantine.ledger.total("quarantined") == 1
    assert module.calls == [(("a/b", "hi"), {"split": "train", "revision": None, "streaming": True})]


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[hub\]'"):
        check(HubSource(dataset="a/b"))


def test_offline_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", library(ConnectionError("no route\nto host")))
    with pytest.raises(DataError, match="'a/b' cannot be opened: ConnectionError: no route; check"):
        list(read(HubSource(dataset="a/b"), Quarantine()))


def test_a_stream_that_breaks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise TimeoutError("slow")

    monkeypatch.setitem(sys.modules, "datasets", library(rows()))
    with pytest.raises(DataError, match="after 1 rows: TimeoutError: slow"):
        list(read(HubSource(dataset="a/b"), Quarantine()))
