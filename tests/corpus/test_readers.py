"""Text and JSON lines, good and bad."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nalanda.corpus.document import Document
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.readers import read
from nalanda.corpus.sources import JsonlSource, SourceBase, TextSource


def collect(source: SourceBase, folder: Path | None = None) -> tuple[list[Document], Quarantine]:
    quarantine = Quarantine(folder=folder, source="test")
    documents = list(read(source, quarantine))
    for document in documents:
        quarantine.ledger.arrived("test", document.group())
        quarantine.ledger.count("test", document.group(), "kept")
    quarantine.ledger.check()  # whatever was met came out, as a document or quarantined
    quarantine.close()
    return documents, quarantine


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]


def test_lines_of_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("एक\n\nदो\r\nthree".encode())
    documents, _ = collect(TextSource(path=str(path), language="hi"))
    assert [d.text for d in documents] == ["एक", "", "दो", "three"]
    assert documents[2] == Document("दो", "test:a.txt:3", "hin_Deva", origin="test")


def test_paragraphs_and_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\none\ntwo\n\n\n  \nthree\n")
    documents, _ = collect(TextSource(path=str(path), unit="paragraph"))
    assert [(d.text, d.id) for d in documents] == [("one\ntwo", "test:a.txt:3"), ("three", "test:a.txt:8")]
    documents, _ = collect(TextSource(path=str(path), unit="file"))
    assert [d.text for d in documents] == ["\n\none\ntwo\n\n\n  \nthree\n"]


def test_a_paragraph_with_a_bad_byte_is_quarantined_whole_and_a_long_one_divided(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n\nb\xffad\nmore\n\naaaa\nbbbb\ncccc\n")
    documents, quarantine = collect(TextSource(path=str(path), unit="paragraph", max_row_bytes=11))
    assert [d.text for d in documents] == ["good", "aaaa\nbbbb", "cccc"]
    assert quarantine.ledger.total("quarantined") == 1


def test_bad_bytes_are_quarantined_with_their_place_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntw\xe9o\nthree\n")
    documents, _ = collect(TextSource(path=str(path)), tmp_path / "q")
    assert [d.text for d in documents] == ["one", "three"]
    (record,) = records(tmp_path / "q")
    assert (record["row"], record["offset"], record["bytes"]) == (2, 4, "dHfpbw==")
    assert record["reason"] == "not UTF-8 at byte 2 of the row (0xe9)"


def test_utf16_is_recognized(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("some text".encode("utf-16"))
    _, quarantine = collect(TextSource(path=str(path)))
    assert "looks like UTF-16" in quarantine.reasons[0]


def test_pairs_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"en": "Sun", "xx": "सूर्य", "source": "sky", "id": 7}\n', encoding="utf-8")
    source = JsonlSource(
        path=str(path),
        text="en",
        target="xx",
        language="en",
        target_language="hi",
        origin_field="source",
        id_field="id",
    )
    documents, _ = collect(source)
    assert documents == [Document("Sun", "7", "eng_Latn", "सूर्य", "hin_Deva", "sky")]


def test_languages_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "lang": "ta"}\n{"text": "x", "lang": "klingon"}\n', encoding="utf-8")
    documents, quarantine = collect(JsonlSource(path=str(path), language_field="lang"))
    assert [d.language for d in documents] == ["tam_Taml"]
    assert "'klingon' is unknown" in quarantine.reasons[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "not JSON"),
        (b"", "an empty line"),
        (b"[1, 2]", "a JSON list, not an object"),
        (b'{"body": "a"}', "field 'text' is missing; the row has body"),
        (b"{}", "the row has no fields"),
        (b'{"text": 3}', "field 'text' is int, expected text"),
        (b'{"text": null}', "field 'text' is null"),
        (b'{"text": "\\ud800"}', r"half a surrogate pair \(\\ud800\)"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 10"),
        (b'{"text": 1' + b"0" * 5000 + b"}", "not JSON"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    documents, quarantine = collect(JsonlSource(path=str(path)))
    assert [d.text for d in documents] == ["before", "after"]
    assert quarantine.ledger.total("quarantined") == 1
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(quarantine.reasons[0])


def test_a_half_written_file_keeps_the_rows_before_the_break(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(b"".join(b'{"text": "row %d"}\n' % (n * 7919) for n in range(5000)))
    path.write_bytes(packed[: len(packed) // 2])
    documents, quarantine = collect(JsonlSource(path=str(path)))
    assert 1000 < len(documents) < 5000
    assert documents[-1].text == f"row {(len(documents) - 1) * 7919}"
    assert quarantine.ledger.total("quarantined") == 1
    assert "ends early" in quarantine.damaged[0]


def test_a_line_of_50_megabytes_is_quarantined_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    documents, quarantine = collect(JsonlSource(path=str(path), max_row_bytes=1 << 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [d.text for d in documents] == ["before", "after"]
    assert "a row of 50,000,012 bytes" in quarantine.reasons[0]
    assert peak < 8 << 20
