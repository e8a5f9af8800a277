"""JSON message files of four kinds of software."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nalanda.base.errors import DataError
from nalanda.corpus.document import Document
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.readers import check, read
from nalanda.corpus.sources import MessagesSource

ENGLISH = {"search": "Search", "menu": {"open": "Open", "items": ["One", "Two"]}, "only_here": "Alone"}


def pairs(folder: Path, english: object, hindi: object) -> tuple[list[Document], Quarantine]:
    for name, values in (("en", english), ("hin_Deva", hindi)):
        text = values if isinstance(values, str) else json.dumps(values)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    source = MessagesSource(
        path=f"{folder}/{{language}}.json", source_path=f"{folder}/en.json", languages=("hi",)
    )
    check(source)
    quarantine = Quarantine(source="app")
    return list(read(source, quarantine)), quarantine


@pytest.mark.parametrize(
    ("english", "hindi"),
    [
        ({"@metadata": {"authors": ["x"]}, "search": "Search"}, {"@metadata": {}, "search": "खोजें"}),
        ({"search": {"message": "Search", "description": "a button"}}, {"search": {"message": "खोजें"}}),
        ({"@@locale": "en", "search": "Search", "@search": {"type": "text"}}, {"search": "खोजें"}),
    ],
)
def test_each_kind(tmp_path: Path, english: object, hindi: object) -> None:
    documents, _ = pairs(tmp_path, english, hindi)
    assert documents == [Document("Search", "app:hin_Deva.json:search", "eng_Latn", "खोजें", "hin_Deva", "app")]


def test_nested_messages_lists_and_keys_without_english(tmp_path: Path) -> None:
    hindi = {"menu": {"open": "खोलें", "items": ["एक", "दो", "तीन"]}, "new": "नया"}
    documents, _ = pairs(tmp_path, ENGLISH, hindi)
    assert [(d.text, d.target, d.meta.get("flag")) for d in documents] == [
        ("Open", "खोलें", None), ("One", "एक", None), ("Two", "दो", None), ("", "तीन", "no_source"),
        ("", "नया", "no_source"),
    ]  # fmt: skip


def test_what_is_no_text_is_quarantined(tmp_path: Path) -> None:
    documents, quarantine = pairs(tmp_path, ENGLISH, {"search": 3, "menu": {"open": "खोलें"}, "x": None})
    assert len(documents) == 1
    assert quarantine.ledger.total("quarantined") == 2


def test_a_damaged_file_is_quarantined_whole(tmp_path: Path) -> None:
    documents, quarantine = pairs(tmp_path, ENGLISH, '{"search": "खो')
    assert documents == []
    assert "not JSON" in quarantine.damaged[0]
    with pytest.raises(DataError, match="not JSON"):
        pairs(tmp_path, "{", {})


def test_without_english_they_are_texts(tmp_path: Path) -> None:
    (tmp_path / "hin_Deva.json").write_text('{"a": "खोलें"}', encoding="utf-8")
    source = MessagesSource(path=f"{tmp_path}/{{language}}.json", languages=("hi",))
    (document,) = read(source, Quarantine())
    assert (document.text, document.language, document.target) == ("खोलें", "hin_Deva", None)
